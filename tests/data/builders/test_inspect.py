"""`mmclip data inspect`: every fault by kind, and a command that works."""

import contextlib
import io
import pathlib
import shlex
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmclip_jax import cli
from mmclip_jax.data import records
from mmclip_jax.data.builders import inspect
from mmclip_jax.data.schema import PARTS, SPLITS, Example
from mmclip_jax.errors import UserError


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    for n in range(12):
        file = tmp_path / "images" / f"{n}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30), dtype=np.uint8)).save(file)
    (tmp_path / "images" / "damaged.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:200])
    return tmp_path


def look(folder: pathlib.Path, text: str | bytes, **options: Any) -> inspect.Inspection:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "My table (1).csv").write_bytes(data)
    data_dir = str(folder / "DATA")
    return inspect.inspect(str(folder / "My table (1).csv"), str(folder / "images"), data_dir=data_dir, **options)


def built(found: inspect.Inspection, folder: pathlib.Path) -> dict[str, Example]:
    """Runs the command as a shell reads what was printed."""
    words = shlex.split(str(found).splitlines()[-1])
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main([*words[1:], "--workers", "1", "--overwrite"])
    assert status == 0, said.getvalue()
    name = words[words.index("--name") + 1]
    opened = [records.open_records(folder / "DATA" / name, split, part) for split in SPLITS for part in PARTS]
    return {each.id: each for part in opened for each in part}


def problems(found: inspect.Inspection) -> dict[str, int]:
    return {problem.kind: problem.count for problem in found.problems}


def test_a_good_table_needs_no_options(folder: pathlib.Path) -> None:
    found = look(folder, "image,patient,labels\n" + "".join(f"{n}.png,p{n},Edema|Mass\n" for n in range(12)))
    assert found.problems == []
    assert found.choices == []
    assert found.command[4:10] == ["--table", str(folder / "My table (1).csv"), "--images", str(folder / "images"),
                                   "--name", "my_table_1"]  # fmt: skip
    assert len(built(found, folder)) == 12


def test_all_faults_in_one_pass(folder: pathlib.Path) -> None:
    lines = [
        "image;patient;labels;sex;Edema;split",
        "0.png;10000032;Mass;f;1;train",
        "1.png;10000032.0;Hernia/Mass;q;0;test",
        "2.png;2;Sniffles;m;;train",
        "nowhere.png;3;Mass;m;;train",
        "gone.png;3;Mass;m;;train",
        "damaged.png;4;Mass;m;;train",
        "5.png;;Mass;m;;train",
        "6.png;00077;Mass;m;maybe so;train",
        "7.png;77;Mass;m;1;train",
        "8.png;8;Mass;m;1;train;more",
        "9.png;1.0E+07;Mass;m;1;train",
    ]
    found = look(folder, "\n".join(lines).encode("cp1252") + b"\n10.png;\xfcnal;Mass;m;1;test\n")
    seen = problems(found)
    assert seen["there is no such image file"] == 2
    assert seen["no patient is named"] == 1
    assert seen["… cells where the header has …"] == 1
    assert any("cannot be decoded" in kind for kind in seen)
    assert any("lost digits" in kind for kind in seen)
    assert any("'Edema' is named like a label" in kind for kind in seen)
    assert any("unknown labels in column 'labels'" in kind for kind in seen)
    assert any("may be the same patient" in kind for kind in seen)
    assert any("in two splits" in kind for kind in seen)
    assert seen["cells not understood: sex left out"] == 1
    assert found.command
    for flag in ("--csv-encoding", "--label-separator", "--alike-ids", "--split-column", "--max-reject-share"):
        assert flag in found.command
    assert "encoding cp1252, separator semicolon" in str(found)
    made = built(found, folder)
    assert made.keys() == {"0.png", "1.png", "6.png", "7.png", "10.png"}
    assert made["10.png"].patient == "ünal"
    assert made["0.png"].split == made["1.png"].split
    assert made["6.png"].patient == made["7.png"].patient == "00077"


def test_codes_are_no_labels(folder: pathlib.Path) -> None:
    text = "image,patient,diagnosis,report\n" + "".join(f"{n}.png,{n},J18.{n % 3},Clear.\n" for n in range(12))
    found = look(folder, text)
    assert "column 'diagnosis' holds codes (ICD)" in problems(found)
    assert len(built(found, folder)) == 12


def test_words_that_a_finding_has_in_another_language_are_pointed_out(folder: pathlib.Path) -> None:
    text = "image,patient,Erguss,report\n" + "".join(f"{n}.png,{n},{'ja' if n % 2 else 'nein'},x\n" for n in range(12))
    found = look(folder, text)
    (column,) = [column for column in found.columns if column.name == "Erguss"]
    assert column.role == "not used"
    assert "nein 6, ja 6" in column.content
    assert "--label-map Erguss=KIND" in column.content


def test_the_language_of_reports_is_chosen_as_a_build_checks_it(folder: pathlib.Path) -> None:
    german, english = ("Kein Pneumothorax, kein Pleuraerguss.", "No pneumothorax and no pleural effusion.")
    head = "image,patient,report\n"
    found = look(folder, head + "".join(f'{n}.png,p{n},"{german}"\n' for n in range(12)))
    assert found.command[found.command.index("--language") + 1] == "de"
    assert len(built(found, folder)) == 12
    found = look(folder, head + "".join(f'{n}.png,p{n},"{english}"\n' for n in range(12)))
    assert found.problems == found.choices == []
    found = look(folder, head + "".join(f'{n}.png,p{n},"{german if n % 2 else english}"\n' for n in range(12)))
    assert not found.command
    assert "6 are in another language" in str(found)


def test_names_of_columns_that_need_quotes(folder: pathlib.Path) -> None:
    text = "image;patient;Edema;Pleural Effusion\n" + "".join(f"{n}.png;$(x) '{n};1;high\n" for n in range(12))
    found = look(folder, text)
    assert {e.patient for e in built(found, folder).values()} == {f"$(x) '{n}" for n in range(12)}


def test_nothing_private_is_shown(folder: pathlib.Path) -> None:
    text = "image,patient,report,Name\n" + "".join(f"{n}.png,p{n},Secret effusion {n}.,Jane Doe\n" for n in range(12))
    said = str(look(folder, text))
    assert "Secret" not in said
    assert "Jane" not in said


def test_a_table_without_a_header_shows_no_report(folder: pathlib.Path) -> None:
    report = "Secret effusion in a patient whose name is in this report, which is long."
    for text in (f"0.png,1,{report},{report}\n1.png,2,x,y\n", f"0.png,1,{report},x\n1.png,2,x,y\n"):
        try:
            said = str(look(folder, text))
        except UserError as error:
            said = str(error)
        assert "Secret" not in said
        assert "characters)" in said


def test_no_command_where_no_image_can_be_read(folder: pathlib.Path) -> None:
    found = look(folder, "image,patient,labels\ndamaged.png,1,Edema\n")
    assert found.command == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [("image,report\n0.png,Clear.\n", "no column of patients"), ("a,b\n1,2\n", "no column of images"),
     ("image,patient,report\nx.png,1,Clear.\n", "no such image file")],
)  # fmt: skip
def test_no_command_where_none_can_work(folder: pathlib.Path, text: str, problem: str) -> None:
    found = look(folder, text)
    assert found.command == []
    assert any(problem in kind for kind in problems(found))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(["data", "inspect", str(folder / "My table (1).csv"), "--images", str(folder / "images")])
    assert status == 2
    assert said.getvalue().count("\n") == 1


def test_few_images_are_decoded_where_told(folder: pathlib.Path) -> None:
    text = "image,patient,labels\n" + "".join(f"{n}.png,p{n},Edema\n" for n in range(12))
    assert "3 of 12 images were decoded" in look(folder, text, read_images=3).found
    assert "0 of 12 images were decoded" in look(folder, text, read_images=0).found


def test_a_folder_that_does_not_exist(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient\n1,2\n")
    with pytest.raises(UserError, match="does not exist"):
        inspect.inspect(str(tmp_path / "t.csv"), str(tmp_path / "nowhere"))


LANGUAGES = {
    "de": "Fragestellung: Pneumonie?\nBefund: Kein Pneumothorax. Kleiner Pleuraerguss links.",
    "fr": "Motif : toux.\nRésultat : Pas de pneumothorax. Petit épanchement pleural gauche.",
    "es": "Motivo: Tos.\nHallazgos: Sin neumotórax. Pequeño derrame pleural izquierdo.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_language_of_reports_is_proposed(folder: pathlib.Path, language: str) -> None:
    text = "image,n° patient,report\n" + "".join(f'{n}.png,p{n},"{LANGUAGES[language]}"\n' for n in range(12))
    found = look(folder, text)
    assert found.command[found.command.index("--language") + 1] == language
    for example in built(found, folder).values():
        said = {entity.kind: entity.negated for entity in example.entities if entity.kind}
        assert said == {"pneumothorax": True, "pleural_effusion": False}


def test_no_command_for_reports_in_an_unknown_language(folder: pathlib.Path) -> None:
    text = "image,patient,report\n" + "".join(
        f'{n}.png,p{n},"Ei ilmarintaa. Sydän on laajentunut."\n' for n in range(12)
    )
    found = look(folder, text)
    assert not found.command
    assert any("not in English" in problem.kind for problem in found.problems)
