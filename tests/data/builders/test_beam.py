"""Builds on Apache Beam, in an environment of its own: make test-beam."""

import csv
import functools
import pathlib

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam has an environment of its own: make test-beam")

import test_collection
from workbench import Bench, picture

from mmclip_jax import cli
from mmclip_jax.data import records
from mmclip_jax.data.builders import beam
from mmclip_jax.data.builders.options import CollectionOptions
from mmclip_jax.errors import UserError

TWO_PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """150 images, of which one is damaged."""
    for number in range(150):
        test_collection.draw(tmp_path / "images", number)
    (tmp_path / "images" / "0077.png").write_bytes(b"not an image")
    return tmp_path


def on_beam(folder: pathlib.Path, options: tuple[str, ...] = (), **told: float) -> pathlib.Path:
    builder = test_collection.Toy(CollectionOptions(str(folder / "images"), **told), folder / "beam")  # type: ignore[arg-type]
    return records.build(builder, make=functools.partial(beam.make, options=options))


@pytest.mark.parametrize("options", [(), TWO_PROCESSES])
def test_the_files_are_those_of_a_build_without_beam(images: pathlib.Path, options: tuple[str, ...]) -> None:
    plain = test_collection.build(images, "plain", max_reject_share=0.1)
    assert test_collection.contents(on_beam(images, options, max_reject_share=0.1)) == test_collection.contents(plain)
    assert not list((images / "beam").glob(".*")), "nothing is left of the chunks"


def test_too_many_unusable_rows_stop_a_build_on_beam_too(images: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"1 of 150 rows cannot be used.*toy.csv row 79"):
        on_beam(images)
    assert not (images / "beam" / "toy" / "1.0.0").exists()
    with open(images / "beam" / "toy" / "rejects.csv", newline="") as stream:
        assert [row["image"] for row in csv.DictReader(stream)] == ["0077.png"]


def test_an_option_that_beam_does_not_have_is_named(images: pathlib.Path) -> None:
    with pytest.raises(UserError, match="Apache Beam has no option --runer=DirectRunner"):
        on_beam(images, ("--runer=DirectRunner",))


def test_a_published_data_set_with_reports_by_the_command(tmp_path: pathlib.Path) -> None:
    bench = Bench(tmp_path)
    bench.write("indiana_reports.csv", "uid,MeSH,findings,impression\n7,normal,Clear lungs.,Normal.\n")
    bench.write("indiana_projections.csv", "uid,filename,projection\n7,7_IM-0001-1001.dcm.png,Frontal\n")
    picture(bench.raw / "images" / "7_IM-0001-1001.dcm.png")
    command = ["data", "build", "openi", "--manual-dir", str(bench.raw), "--data-dir"]
    assert cli.main([*command, str(tmp_path / "beam"), "--beam", ""]) == 0
    assert cli.main([*command, str(tmp_path / "plain")]) == 0
    contents = [test_collection.contents(tmp_path / name / "openi") for name in ("beam", "plain")]
    assert contents[0] == contents[1]
