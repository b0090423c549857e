import collections
import csv
import dataclasses
import fcntl
import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmclip_jax.data import records
from mmclip_jax.data import unfinished as unfinished_lib
from mmclip_jax.data.builders import files, fractions
from mmclip_jax.data.builders.cells import BadRow
from mmclip_jax.data.builders.collection import Collection, split_of_patient
from mmclip_jax.data.builders.items import ON_PURPOSE, Item, Reject
from mmclip_jax.data.builders.labels import Beside, listed_labels, settle_no_finding, settle_uncertain
from mmclip_jax.data.builders.masks import RunLengths
from mmclip_jax.data.builders.options import CollectionOptions
from mmclip_jax.data.builders.registry import COLLECTIONS, load
from mmclip_jax.data.builders.table import TableBuilder
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState
from mmclip_jax.errors import UserError

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN


class Toy(Collection):
    """Every image file of the manual directory, in alphabetical order; file 007.png is patient 7 // 2."""

    name = "toy"
    instructions = "draw them yourself."

    def __init__(self, options: Any, data_dir: pathlib.Path, changes: dict[int, dict[str, Any]] | None = None):
        super().__init__(options, data_dir)
        self.changes = changes or {}

    def read(self) -> Iterator[Item | Reject]:
        for number, file in enumerate(sorted(self.manual_dir.glob("*.png"))):
            self.rows += 1
            labels = {"edema": (P, A, U)[number % 3]}
            item = Item("toy.csv", number + 2, str(file), file.name, f"p{number // 2}", file.stem, "", labels=labels)
            yield dataclasses.replace(item, **self.changes.get(number, {}))


def draw(folder: pathlib.Path, number: int, shape: tuple[int, int] = (17, 23)) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def build(tmp_path: pathlib.Path, out: str = "out", changes: Any = None, **options: Any) -> pathlib.Path:
    given: dict[str, Any] = {"manual_dir": str(tmp_path / "images"), "workers": 1} | options
    chosen = CollectionOptions(**given)
    return records.build(Toy(chosen, tmp_path / out, changes))


def read(path: pathlib.Path) -> dict[str, Example]:
    return {e.id: e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)}


def contents(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def rejects(file: pathlib.Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


# Workers and restarts


def test_the_number_of_workers_does_not_matter(tmp_path: pathlib.Path) -> None:
    for number in range(150):
        draw(tmp_path / "images", number)
    (tmp_path / "images" / "0077.png").write_bytes(b"not an image")
    one = build(tmp_path, "one", max_reject_share=0.1)
    three = build(tmp_path, "three", max_reject_share=0.1, workers=3)
    assert contents(one) == contents(three)
    assert not list((tmp_path / "three").glob(".*")), "nothing is left of the chunks"


_KILLED_BUILD = """
import pathlib, sys, time
sys.path.insert(0, {tests!r})
from mmclip_jax.data.builders import making
import test_collection
make = making.make_example
def slowly(item, storing):
    time.sleep(0.01)
    return make(item, storing)
making.make_example = slowly
test_collection.build(pathlib.Path({folder!r}), "killed")
"""


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: pathlib.Path) -> None:
    for number in range(300):
        draw(tmp_path / "images", number)
    program = _KILLED_BUILD.format(tests=str(pathlib.Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    chunks = tmp_path / "killed" / ".unfinished-toy"
    deadline = time.monotonic() + 60
    while len(list(chunks.glob("*.chunk"))) < 2:
        assert time.monotonic() < deadline, "no chunk was kept"
        assert process.poll() is None, "the build ended too early"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(list(chunks.glob("*.chunk"))) < 5
    assert contents(build(tmp_path, "killed")) == contents(build(tmp_path, "whole"))


def test_kept_chunks_are_used_unless_a_file_has_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(130):
        draw(tmp_path / "images", number)
    decoded: list[str] = []
    original = files.read_bytes

    def counting(place: str) -> bytes:
        decoded.append(pathlib.Path(place).name)
        return original(place)

    monkeypatch.setattr(files, "read_bytes", counting)

    def interrupted(self: Any, directory: pathlib.Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
    assert sorted(decoded) == [f"{number:04d}.png" for number in range(130)]
    decoded.clear()
    draw(tmp_path / "images", 3, shape=(19, 29))
    examples = read(build(tmp_path))
    again = {name.removesuffix(".png") for name in decoded}
    assert "0003" in again
    assert len(again) <= 64, "the chunk of the changed file is made anew, and no other"
    assert (examples["0003.png"].original_height, examples["0003.png"].original_width) == (19, 29)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: pathlib.Path):
        self.file = file

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.file,)


def stopped(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of chunks of a build that was stopped before its end."""

    def interrupted(self: Any, directory: pathlib.Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
    return tmp_path / "out" / ".unfinished-toy"


def test_chunks_run_no_code_and_are_their_owners_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(70):
        draw(tmp_path / "images", number)
    chunks = stopped(tmp_path, monkeypatch)
    kept = sorted(chunks.iterdir())
    assert len(kept) >= 2
    assert chunks.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in kept} == {0o600}
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    kept[0].write_bytes(trap)
    for name in (kept[0].with_suffix(".pickle"), chunks / "0.pickle", kept[1].with_suffix(".999999999")):
        name.write_bytes(trap)
    stopped(tmp_path, monkeypatch)
    assert {file.suffix for file in chunks.iterdir()} == {".chunk"}, "what others left is gone at the start"
    path = build(tmp_path)
    assert not sprung.exists()
    assert contents(path) == contents(build(tmp_path, "whole"))
    assert not chunks.exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "junk", "json"])
def test_damaged_chunks_are_made_anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    for number in range(10):
        draw(tmp_path / "images", number)
    kept = max(stopped(tmp_path, monkeypatch).iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(kept.read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 4
    changed = {"cut": bytes(data[:-9]), "bit": bytes(data), "empty": bytes(40), "junk": b"\xff" * 99}
    if damage == "json":  # whole, but of another form
        with open(kept, "wb") as stream:
            unfinished_lib.write(stream, {"id": "x", "words": 1}, [b"x"])
    else:
        kept.write_bytes(changed[damage])
    assert contents(build(tmp_path)) == contents(build(tmp_path, "whole"))


def test_what_killed_builds_left_is_removed_and_a_living_ones_is_not(tmp_path: pathlib.Path) -> None:
    for number in range(3):
        draw(tmp_path / "images", number)
    out = tmp_path / "out"
    dead, living, other = (out / name for name in (".building-toy-dead", ".building-toy-live", ".building-x-dead"))
    for folder in (dead, living, other):
        (folder / "spool").mkdir(parents=True)
        (folder / "spool" / "train_paired.spool").write_bytes(b"a report")
        (folder / "lock").touch()
    with open(living / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(tmp_path)
    assert [folder.exists() for folder in (dead, living, other)] == [False, True, True]


# What is left out


def test_bad_images_fail_the_build_or_are_skipped_and_are_listed(tmp_path: pathlib.Path) -> None:
    for number in range(20):
        draw(tmp_path / "images", number)
    (tmp_path / "images" / "0004.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 20 rows .* toy.csv row 6: the file is empty .*--on-bad skip") as raised:
        build(tmp_path)
    assert str(tmp_path / "out" / "toy" / "rejects.csv") in str(raised.value)
    assert [each["row"] for each in rejects(tmp_path / "out" / "toy" / "rejects.csv")] == ["6"]
    assert not (tmp_path / "out" / "toy" / "1.0.0").exists()
    path = build(tmp_path, on_bad="skip")
    assert len(read(path)) == 19
    assert [each["image"] for each in rejects(path / "rejects.csv")] == ["0004.png"]
    assert records.dataset_facts(path)["rejects"] == 1


def test_views_are_left_out_on_purpose_and_do_not_count_as_bad(tmp_path: pathlib.Path) -> None:
    for number in range(8):
        draw(tmp_path / "images", number)
    views = dict(enumerate(["PA", "AP", "LATERAL", "AP_HORIZONTAL", "", "LATERAL", "RIB", "PA"]))
    changes = {number: {"view": view} for number, view in views.items()}
    path = build(tmp_path, changes=changes)
    assert {example.view for example in read(path).values()} == {"PA", "AP", "AP_HORIZONTAL", ""}
    facts = records.dataset_facts(path)
    assert facts["left_out_on_purpose"] == {"view LATERAL": 2, "view RIB": 1}
    assert facts["rejects"] == 0
    assert {each["consequence"] for each in rejects(path / "rejects.csv")} == {ON_PURPOSE}
    assert len(read(build(tmp_path, "all", changes, views="all"))) == 8


def test_a_missing_file_and_a_missing_folder(tmp_path: pathlib.Path) -> None:
    draw(tmp_path / "images", 0)
    with pytest.raises(UserError, match=r"toy.csv row 2: there is no such image file"):
        build(tmp_path, changes={0: {"file": ""}})
    with pytest.raises(UserError, match=r"does not exist; how to get toy: draw them yourself"):
        build(tmp_path, manual_dir=str(tmp_path / "nowhere"))


def test_ids_of_published_sets_that_are_one_are_joined_and_listed(tmp_path: pathlib.Path) -> None:
    for number in range(6):
        draw(tmp_path / "raw", number)
    changes: dict[int, dict[str, Any]] = {0: {"patient": "00001299"}, 1: {"patient": "1299.0"}, 2: {"patient": "1299"}}
    toy = Toy(CollectionOptions(str(tmp_path / "raw"), workers=1), tmp_path, changes)
    path = records.build(toy)
    facts = records.dataset_facts(path)
    assert (facts["ids_joined"], facts["cells_left_out"], facts["rejects"]) == (2, 0, 0)
    assert {item.patient for item in toy.items} == {"00001299", "p1", "p2"}
    assert len({item.split for item in toy.items if item.patient == "00001299"}) == 1
    options = CollectionOptions(str(tmp_path / "raw"), alike_ids="other")
    assert {item.patient for item in Toy(options, tmp_path, changes).items} == {"00001299", "1299", "p1", "p2"}
    with pytest.raises(UserError, match="may be the same patient"):
        _ = Toy(CollectionOptions(str(tmp_path / "raw"), alike_ids="refuse"), tmp_path, changes).items


def test_two_images_of_one_id_are_listed(tmp_path: pathlib.Path) -> None:
    for number in range(2):
        draw(tmp_path / "raw", number)
    options = CollectionOptions(str(tmp_path / "raw"), on_bad="skip")
    toy = Toy(options, tmp_path, {0: {"id": "7"}, 1: {"id": "7.0"}})
    assert len(toy.items) == 1
    assert [reject.reason for reject in toy.rejects] == ["the image's id is that of toy.csv row 2 too"]


def test_a_patient_in_two_splits_is_an_error(tmp_path: pathlib.Path) -> None:
    for number in range(4):
        draw(tmp_path / "images", number)
    with pytest.raises(UserError, match=r"two splits: train \(toy.csv row 2\) and test \(toy.csv row 3\)"):
        build(tmp_path, changes={0: {"split": "train"}, 1: {"split": "test"}})


@pytest.mark.parametrize(
    "bad", [{"on_bad": "ask"}, {"views": "side"}, {"shorter_side": 3}, {"workers": -1}, {"uncertain": "?"}]
)
def test_options_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        CollectionOptions("x", **bad)


# Labels


def test_policies_for_uncertain_labels(tmp_path: pathlib.Path) -> None:
    labels = {"edema": U, "cardiomegaly": U, "consolidation": U, "pleural_effusion": P, "mass": A}
    fixed = {"pleural_effusion": P, "mass": A}
    assert settle_uncertain(labels, "keep") == labels
    assert settle_uncertain(labels, "ones") == fixed | {"edema": P, "cardiomegaly": P, "consolidation": P}
    assert settle_uncertain(labels, "zeros") == fixed | {"edema": A, "cardiomegaly": A, "consolidation": A}
    assert settle_uncertain(labels, "mixed") == fixed | {"edema": P, "cardiomegaly": A, "consolidation": A}
    assert settle_uncertain(labels, "ignore") == fixed
    for number in range(6):
        draw(tmp_path / "images", number)
    found = [example.labels.get("edema") for _, example in sorted(read(build(tmp_path, uncertain="ones")).items())]
    assert found == [P, A, P, P, A, P]


def test_listed_labels_say_nothing_against_a_broader_kind() -> None:
    labels = listed_labels({"covid_19"}, {"covid_19", "viral_pneumonia", "pneumonia", "edema"})
    assert labels == {"covid_19": P, "edema": A}


@pytest.mark.parametrize("policy", Beside)
def test_no_finding_beside_a_disease_is_settled_as_the_policy_says(policy: Beside) -> None:
    for whole in ({"no_finding"}, {"no_finding", "pacemaker"}, {"edema", "pacemaker"}, set[str]()):
        assert settle_no_finding(whole, policy) == whole, "devices alone are no disease"
    both = {"no_finding", "edema", "mass", "pacemaker"}
    match policy:
        case Beside.BELIEVE:
            assert settle_no_finding(both, policy) == {"edema", "mass", "pacemaker"}
        case Beside.KEEP:
            assert settle_no_finding(both, policy) == both
        case Beside.REFUSE:
            with pytest.raises(BadRow, match="labelled as no finding and as edema, mass"):
                settle_no_finding(both, policy)
        case Beside.NEVER:
            with pytest.raises(ValueError, match="labelled as no finding and as edema, mass"):
                settle_no_finding(both, policy)


def test_every_builder_states_its_policy_for_no_finding() -> None:
    stated = {name: vars(load(name)).get("no_finding") for name in COLLECTIONS}
    stated["table"] = vars(TableBuilder).get("no_finding")
    assert {name for name, policy in stated.items() if not isinstance(policy, Beside)} == set()


# Training fractions

_rows = st.lists(
    st.tuples(st.integers(0, 60), st.sets(st.sampled_from(["edema", "mass", "nodule"]), max_size=2)),
    min_size=1,
    max_size=300,
)


@settings(max_examples=50)
@given(_rows, st.randoms())
def test_fractions_are_nested_whole_patients_of_exact_number(pairs: Any, random: Any) -> None:
    rows = [fractions.Row(f"i{n}", f"p{patient}", frozenset(kinds)) for n, (patient, kinds) in enumerate(pairs)]
    shares = (0.01, 0.1, 0.37, 1.0)
    chosen = fractions.choose(rows, shares)
    patient_of = {row.id: row.patient for row in rows}
    patients = set(patient_of.values())
    before: set[str] = set()
    for share in shares:
        ids = set(chosen[share])
        held = {patient_of[id] for id in ids}
        assert before <= ids
        assert ids == {row.id for row in rows if row.patient in held}
        assert len(held) == max(1, round(share * len(patients)))
        before = ids
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert fractions.choose(shuffled, shares) == chosen


def test_fractions_keep_the_mix_of_kinds() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.choice(["edema", "mass", "nodule", ""], size=4000, p=[0.3, 0.05, 0.02, 0.63])
    rows = [fractions.Row(f"i{n}", f"p{n}", frozenset({kind} - {""})) for n, kind in enumerate(kinds)]
    for share, ids in fractions.choose(rows, (0.01, 0.1)).items():
        counts = collections.Counter(kinds[int(id[1:])] for id in ids)
        for kind in ("edema", "mass", "nodule", ""):
            expected = share * np.sum(kinds == kind)
            assert abs(counts[kind] - expected) <= 1, (
                "as even as whole patients allow, where a random draw would not be"
            )


def test_fractions_are_written_and_read(tmp_path: pathlib.Path) -> None:
    for number in range(60):
        draw(tmp_path / "images", number)
    path = build(tmp_path)
    train = {id: example for id, example in read(path).items() if example.split == "train"}
    tenth = fractions.read(path, 0.1)
    assert tenth < train.keys()
    patients = {example.patient for example in train.values()}
    assert len({train[id].patient for id in tenth}) == round(0.1 * len(patients))
    assert records.dataset_facts(path)["fractions"] == {
        "fractions/train_1.txt": len(fractions.read(path, 0.01)),
        "fractions/train_10.txt": len(tenth),
    }
    with pytest.raises(UserError, match="no fraction of 50 %"):
        fractions.read(path, 0.5)


def test_the_split_depends_on_the_patient_alone(tmp_path: pathlib.Path) -> None:
    for number in range(40):
        draw(tmp_path / "images", number)
    for example in read(build(tmp_path)).values():
        assert example.split == split_of_patient(example.patient, (0.8, 0.1, 0.1))


# Masks, archives, value ranges


def runs_of(inside: np.ndarray) -> str:
    """Relative run lengths, column by column, written with a plain loop."""
    words, gap, run = [], 0, 0
    for value in inside.T.ravel():
        if value:
            run += 1
        elif run:
            words += [gap, run]
            gap, run = 1, 0
        else:
            gap += 1
    return " ".join(map(str, words + ([gap, run] if run else [])))


def test_masks_and_their_boxes_are_in_the_record(tmp_path: pathlib.Path) -> None:
    draw(tmp_path / "images", 0, (29, 43))
    first, second = np.zeros((29, 43), bool), np.zeros((29, 43), bool)
    first[3:7, 5:11] = True
    second[20, 30:43] = second[21, 33] = True
    runs = tuple(RunLengths("pneumothorax", runs_of(mask), 29, 43) for mask in (first, second))
    (example,) = read(build(tmp_path, changes={0: {"masks": runs}})).values()
    assert [(m.kind,) for m in example.masks] == [("pneumothorax",)]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(example.masks[0].image))), first | second)
    boxes = [[box.x_min * 43, box.y_min * 29, box.x_max * 43, box.y_max * 29] for box in example.boxes]
    np.testing.assert_allclose(boxes, [[5, 3, 11, 7], [30, 20, 43, 22]], rtol=1e-6)


@pytest.mark.parametrize("runs", ["", "3", "1 2 3", "a b", "-1 4", "1247 1", "0 1248", "1 99999999999999999999"])
def test_bad_run_lengths_are_listed(tmp_path: pathlib.Path, runs: str) -> None:
    draw(tmp_path / "images", 0, (29, 43))
    with pytest.raises(UserError, match=r"toy.csv row 2: the run lengths"):
        build(tmp_path, changes={0: {"masks": (RunLengths("mass", runs, 29, 43),)}})


def test_images_are_found_in_folders_and_archives(tmp_path: pathlib.Path) -> None:
    draw(tmp_path / "deep", 1)
    (tmp_path / "deep" / "deeper").mkdir()
    with zipfile.ZipFile(tmp_path / "deep" / "deeper" / "0.zip", "w") as archive:
        archive.writestr("in/side.PNG", b"inside")
        archive.writestr("0001.png", b"the folder's file goes first")
        archive.writestr("notes.txt", b"")
    found = files.FileIndex(tmp_path / "deep")
    assert len(found) == 3
    assert files.read_bytes(found.find("side.PNG")) == b"inside"
    (tmp_path / "deep" / "broken.zip").write_bytes(b"PK but no archive")
    with pytest.raises(UserError, match=r"broken.zip cannot be read"):
        files.FileIndex(tmp_path / "deep")
    with pytest.raises(UserError, match="nowhere does not exist"):
        files.FileIndex(tmp_path / "nowhere")
