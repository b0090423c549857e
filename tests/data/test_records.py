import collections
import dataclasses
import io
import json
import math
import pathlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mmclip_jax.data import info, records, schema
from mmclip_jax.data.records import facts
from mmclip_jax.data.schema import PARTS, SPLITS, Box, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text.schema import Entity

REPORT = "Naïve reader: no effusion.\nLoculated pneumothorax, 3 µm."


def make(number: int, split: str = "train", **fields: Any) -> Example:
    """An example that differs from its neighbours in every field; odd numbers have a report."""
    rng = np.random.default_rng(number)
    paired = number % 2 == 1
    return records.finish_example(
        **{
            "id": f"{split}/{number}.png",
            "source": "hospital",
            "split": split,
            "patient": f"{split}-{number // 3}",
            "study": f"{split}-{number // 2}",
            "pixels": rng.integers(0, 256, (11 + number % 3, 13), dtype=np.uint8),
            "original_size": (1100 + number, 1300),
            "findings": REPORT if paired else "",
            "impression": f"Number {number}." if paired else "",
            "entities": (
                (
                    Entity(17, 25, "effusion", "observation", True, "pleural_effusion"),
                    Entity(27, 36, "Loculated", "modifier", False),
                    Entity(37, 49, "pneumothorax", "observation", False, "pneumothorax"),
                )
                if paired
                else ()
            ),
            "labels": {} if paired else {"mass": LabelState(number % 3), "edema": LabelState.UNKNOWN},
            "boxes": [Box("mass", 0.1, 0.2, 0.3, 1.0), Box("nodule", 0.0, 0.5, 1 / 3, 0.7)][: number % 3],
            "view": ["PA", "AP", ""][number % 3],
            "sex": ["M", "F", ""][number % 3],
            "age": float(number) if number % 5 else math.nan,
        }
        | fields
    )


class Hospital(records.RecordsBuilder):
    name = "hospital"

    def __init__(self, data_dir: Any, examples: Sequence[Example], recipe: Any = None):
        super().__init__(data_dir)
        self._examples = examples
        self._recipe = recipe

    def examples(self, split: str) -> Iterator[Example]:
        return (example for example in self._examples if example.split == split)

    def recipe(self) -> Any:
        return self._recipe


EXAMPLES = [make(n) for n in range(17)] + [make(n, "validation") for n in range(0, 10, 2)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return records.build(Hospital(tmp_path_factory.mktemp("data"), EXAMPLES))


def assert_same(one: Example, other: Example) -> None:
    """Equal field by field; numbers as float32, as they are stored, and NaN equal to NaN. UNKNOWN labels may stay."""
    np.testing.assert_equal(np.float32(one.age), np.float32(other.age))
    assert len(one.boxes) == len(other.boxes)
    for box, twin in zip(one.boxes, other.boxes, strict=True):
        assert box.kind == twin.kind
        corners = np.array([(b.x_min, b.y_min, b.x_max, b.y_max) for b in (box, twin)], np.float32)
        np.testing.assert_array_equal(corners[0], corners[1])
    for name in one.__dataclass_fields__.keys() - {"age", "boxes"}:
        assert getattr(one, name) == getattr(other, name), name


def read_all(path: pathlib.Path) -> dict[str, Example]:
    return {e.id: e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)}


def test_what_is_written_is_read_back(built: pathlib.Path) -> None:
    found = read_all(built)
    assert found.keys() == {example.id for example in EXAMPLES}
    for example in EXAMPLES:
        assert_same(example, found[example.id])
        assert type(found[example.id].image) is bytes
    paired = found["train/3.png"]
    assert [paired.text[e.start : e.end] for e in paired.entities] == ["effusion", "Loculated", "pneumothorax"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(paired.image))),
        np.random.default_rng(3).integers(0, 256, (11, 13), dtype=np.uint8),
    )


def test_every_example_is_in_its_split_and_part(built: pathlib.Path) -> None:
    counts = {(split, part): len(records.open_records(built, split, part)) for split in SPLITS for part in PARTS}
    assert counts == {
        ("train", "paired"): 8,
        ("train", "unpaired"): 9,
        ("validation", "paired"): 0,
        ("validation", "unpaired"): 5,
        ("test", "paired"): 0,
        ("test", "unpaired"): 0,
    }
    for (split, part), count in counts.items():
        opened = records.open_records(built, split, part)
        assert opened.empty == (count == 0)
        assert all((e.split, e.part) == (split, part) for e in opened)


def test_empty_splits_are_left_out(built: pathlib.Path) -> None:
    written = json.loads((built / "dataset_info.json").read_text())["splits"]
    assert {split["name"] for split in written} == {"train_paired", "train_unpaired", "validation_unpaired"}


def test_own_reader_agrees_with_tfds(built: pathlib.Path) -> None:
    source = tfds.builder_from_directory(str(built)).as_data_source(
        "train_paired", decoders={"image": tfds.decode.SkipDecoding()}
    )
    ours = records.open_records(built, "train", "paired")
    assert len(source) == len(ours) == 8
    for index in range(8):
        assert_same(schema.from_features(source[index]), ours[index])


def test_reading_needs_no_tfds(built: pathlib.Path) -> None:
    program = (
        "import sys; from mmclip_jax.data import records; "
        f"r = records.open_records({str(built)!r}, 'train', 'paired'); ids = sorted(e.id for e in r); "
        "assert not {'tensorflow', 'tensorflow_datasets', 'pandas', 'pyarrow'} & set(sys.modules); print(len(ids))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8\n"


@pytest.mark.parametrize("index", [-1, 8, 100])
def test_indices_out_of_range(built: pathlib.Path, index: int) -> None:
    with pytest.raises(IndexError, match="of 8 in train_paired"):
        records.open_records(built, "train", "paired")[index]


def test_records_feed_grain_and_survive_pickling(built: pathlib.Path) -> None:
    opened = records.open_records(built, "train", "unpaired")
    expected = [opened[i].id for i in range(9)]  # opens the files first: what is open must not be pickled
    copy = pickle.loads(pickle.dumps(opened))
    assert repr(copy) == repr(opened) == "Records(hospital/1.0.0, train_unpaired, 9 examples)"
    dataset = grain.MapDataset.source(copy).map(lambda e: e.id)
    assert list(dataset.to_iter_dataset(grain.ReadOptions(num_threads=5))) == expected


def test_several_shards(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = records.build(Hospital(tmp_path / "one", EXAMPLES))
    monkeypatch.setattr(tfds.core.utils.shard_utils.ShardConfig, "get_number_shards", lambda *_: 3)
    three = records.build(Hospital(tmp_path / "three", EXAMPLES))
    assert len(list(three.glob("*train_paired*"))) == 3
    for split, part in (("train", "paired"), ("train", "unpaired")):
        ids = [[e.id for e in records.open_records(path, split, part)] for path in (one, three)]
        assert ids[0] == ids[1]
        assert ids[0] != sorted(ids[0]), "TFDS shuffles by a hash of the ids"
    next(three.glob("*train_paired*-00001-*")).unlink()
    with pytest.raises(UserError, match="00001-of-00003 is missing"):
        records.open_records(three, "train", "paired")


@pytest.mark.parametrize(("split", "part"), [("training", "paired"), ("train", "both")])
def test_unknown_split_or_part(built: pathlib.Path, split: str, part: str) -> None:
    with pytest.raises(UserError, match="it is one of"):
        records.open_records(built, split, part)


# Building


def test_result_depends_on_the_examples_alone(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    again = records.build(Hospital(tmp_path, EXAMPLES[::-1]))
    files = [{file.name: file.read_bytes() for file in path.iterdir()} for path in (built, again)]
    assert files[0].keys() == files[1].keys()
    assert {name for name in files[0] if files[0][name] != files[1][name]} == set()


def test_building_is_quiet_and_leaves_nothing_else(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = records.build(Hospital(tmp_path, EXAMPLES))
    out, err = capfd.readouterr()
    assert out == ""
    assert "huffling" not in err
    assert "ownload" not in err
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*")] == ["hospital"]
    assert path == tmp_path / "hospital" / "1.0.0"


def test_progress_goes_to_stderr(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    records.build(Hospital(tmp_path, EXAMPLES), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "22 images" in err


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([make(1), make(1)], "example 2 has the id of an earlier one"),
        (
            [make(1), make(2, "validation", patient="train-0")],
            "the patient of example 2 is in two splits, train and validation",
        ),
        ([], "no examples"),
    ],
)
def test_what_cannot_be_built(examples: list[Example], message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=message):
        records.build(Hospital(tmp_path, examples))
    assert list(tmp_path.iterdir()) == []


def test_patients_of_two_sources_may_share_a_number(tmp_path: pathlib.Path) -> None:
    examples = [make(1), make(2, "validation", patient="train-0", source="elsewhere")]
    facts = records.dataset_facts(records.build(Hospital(tmp_path, examples)))
    assert facts["patients"] == 2
    assert facts["sources"] == {"elsewhere": {"paired": 0, "unpaired": 1}, "hospital": {"paired": 1, "unpaired": 0}}


def test_existing_data_is_replaced_only_on_request_and_only_by_success(tmp_path: pathlib.Path) -> None:
    path = records.build(Hospital(tmp_path, EXAMPLES))
    before = records.dataset_facts(path)["fingerprint"]
    with pytest.raises(UserError, match="exists already"):
        records.build(Hospital(tmp_path, EXAMPLES[:3]))
    with pytest.raises(UserError, match="example 2 has the id"):
        records.build(Hospital(tmp_path, [make(1), make(1)]), overwrite=True)
    assert records.dataset_facts(path)["fingerprint"] == before
    assert len(read_all(path)) == len(EXAMPLES)
    assert records.build(Hospital(tmp_path, EXAMPLES[:3]), overwrite=True) == path
    assert read_all(path).keys() == {example.id for example in EXAMPLES[:3]}


def test_same_recipe_is_not_built_again(tmp_path: pathlib.Path) -> None:
    path = records.build(Hospital(tmp_path, EXAMPLES, recipe={"seed": 3, "sizes": (5, 7)}))
    # The same recipe: what is there is taken, without asking for examples.
    assert records.build(Hospital(tmp_path, [], recipe={"sizes": (5, 7), "seed": 3})) == path
    assert len(read_all(path)) == len(EXAMPLES)
    with pytest.raises(UserError, match="exists already"):
        records.build(Hospital(tmp_path, EXAMPLES, recipe={"seed": 4, "sizes": (5, 7)}))


def _with(**fields: Any) -> Callable[[], Example]:
    import dataclasses

    return lambda: dataclasses.replace(make(1), **fields)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_with(id=""), "id is empty"),
        (_with(patient=""), "patient or study is empty"),
        (_with(split="dev"), "split 'dev'"),
        (_with(image=b"GIF89a"), "not PNG or JPEG"),
        (_with(pixels_sha256=""), "pixels_sha256 is missing"),
        (_with(original_width=0), "original size"),
        (_with(sex="male"), "sex 'male'"),
        (_with(findings="Something else."), "does not match the text"),
        (_with(entities=(make(1).entities[2], make(1).entities[0])), "not in order"),
        (_with(boxes=(Box("mass", 0.5, 0.1, 0.5, 0.2),)), "not within 0..1"),
        (_with(boxes=(Box("mass", 0.5, 0.1, 1.5, 0.2),)), "not within 0..1"),
    ],
)
def test_broken_examples_are_refused(broken: Callable[[], Example], message: str) -> None:
    records.check_example(make(1))
    with pytest.raises(ValueError, match=message):
        records.check_example(broken())


def test_finish_example_fills_in_what_follows() -> None:
    pixels = np.arange(77, dtype=np.uint8).reshape(7, 11)
    example = records.finish_example(
        id="a", source="s", split="test", patient="p", study="t", pixels=pixels, findings=" No pleural effusion. "
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(example.image))), pixels)
    assert (example.original_height, example.original_width) == (7, 11)
    assert example.pixels_sha256 == schema.pixels_sha256(pixels)
    assert example.findings == "No pleural effusion."
    assert [(e.text, e.negated, e.kind) for e in example.entities] == [("pleural effusion", True, "pleural_effusion")]
    from_file = records.finish_example(id="b", source="s", split="test", patient="p", study="t", image=example.image)
    assert from_file.pixels_sha256 == example.pixels_sha256
    assert from_file.image == example.image
    assert from_file.entities == ()


def test_finish_example_takes_grey_only() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (7, 11)).save(stream, "PNG")
    fields: Any = {"id": "a", "source": "s", "split": "test", "patient": "p", "study": "t"}
    with pytest.raises(ValueError, match="PNG RGB"):
        records.finish_example(**fields, image=stream.getvalue())
    with pytest.raises(ValueError, match="uint8"):
        records.finish_example(**fields, pixels=np.zeros((7, 11), np.uint16))
    with pytest.raises(ValueError, match="neither image nor pixels"):
        records.finish_example(**fields)


# Finding data sets


def test_a_data_set_is_found_from_its_folders(built: pathlib.Path) -> None:
    for path in (built, built.parent, built.parent.parent, str(built)):
        assert records.dataset_dir(path) == built


def test_where_there_is_no_one_data_set(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        records.dataset_dir(tmp_path / "nothing")
    (tmp_path / "photographs").mkdir()
    with pytest.raises(UserError, match="found there: photographs"):
        records.dataset_dir(tmp_path)
    records.build(Hospital(tmp_path, EXAMPLES[:2]))
    assert records.dataset_dir(tmp_path) == tmp_path / "hospital" / "1.0.0"
    other = Hospital(tmp_path, EXAMPLES[:2])
    other.name = "clinic"
    records.build(other)
    with pytest.raises(UserError, match=r"holds 2 data sets \(clinic/1.0.0, hospital/1.0.0\)"):
        records.dataset_dir(tmp_path)


# Facts


def test_facts_are_the_counts_of_the_examples(built: pathlib.Path) -> None:
    facts = records.dataset_facts(built)
    assert (facts["name"], facts["version"], facts["examples"]) == ("hospital", "1.0.0", 22)
    assert facts["patients"] == len({e.patient for e in EXAMPLES})
    assert facts["studies"] == len({e.study for e in EXAMPLES})
    assert facts["sources"] == {"hospital": {"paired": 8, "unpaired": 14}}
    unpaired = [e for e in EXAMPLES if e.split == "train" and e.part == "unpaired"]
    part = facts["splits"]["train_unpaired"]
    assert part["examples"] == len(unpaired) == 9
    states = collections.Counter(e.labels["mass"].name.lower() for e in unpaired)
    assert part["labels"] == {"mass": dict(states)}, "a kind that is unknown throughout does not appear"
    assert part["boxes"] == collections.Counter(box.kind for e in unpaired for box in e.boxes)
    assert part["sources"]["hospital"] == {"examples": 9, "label_kinds": ["mass"], "report_kinds": []}
    ages = [e.age for e in unpaired if not math.isnan(e.age)]
    assert part["age"] == {
        "number": len(ages),
        "min": min(ages),
        "max": max(ages),
        "mean": pytest.approx(np.mean(ages)),
        "median": np.median(ages),
    }
    paired = facts["splits"]["train_paired"]
    assert paired["sources"]["hospital"]["report_kinds"] == ["pneumothorax"]
    assert paired["entities"]["affirmed"] == {"pneumothorax": 8}
    assert paired["entities"]["negated"] == {"pleural_effusion": 8}
    assert paired["entities"]["negated_share"] == 0.5
    assert paired["reports"]["words"]["median"] == len(REPORT.split()) + 2
    total = collections.Counter(e.labels["mass"].name.lower() for e in EXAMPLES if e.part == "unpaired")
    assert facts["labels"] == {"mass": dict(total)}


@pytest.mark.parametrize("values", [[3.0], [5.0, 1.0], [1.0, 1.0, 2.0, 9.0, 9.0], [4.0, 4.0, 7.0, 1.0], [0.5] * 6])
def test_spread_against_numpy(values: list[float]) -> None:
    spread = facts._spread(collections.Counter(values))
    assert spread == {
        "number": len(values),
        "min": min(values),
        "median": np.median(values),
        "mean": pytest.approx(np.mean(values)),
        "max": max(values),
    }


def test_facts_can_be_counted_anew(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import shutil

    copy = tmp_path / "hospital" / "1.0.0"
    shutil.copytree(built, copy)
    (copy / "facts.json").unlink()
    assert records.dataset_facts(copy) == records.dataset_facts(built)


def test_fingerprint_is_of_contents(tmp_path: pathlib.Path) -> None:
    def fingerprint(examples: list[Example]) -> str:
        counter = records.FactsCounter()
        for example in examples:
            counter.add(example)
        return counter.result()["fingerprint"]

    examples = EXAMPLES[:5]
    assert fingerprint(examples) == fingerprint(examples[::-1])
    changes: list[dict[str, Any]] = [
        {"patient": "someone else"},
        {"labels": {"mass": LabelState.PRESENT}},
        {"boxes": [Box("mass", 0.1, 0.2, 0.3, 0.9)]},
        {"impression": "Another."},
        {"pixels": np.full((11, 13), 7, np.uint8)},
        {"age": 77},
        {"entities": ()},
    ]
    found = {fingerprint([*examples[:3], make(3, **change), examples[4]]) for change in changes}
    assert len(found | {fingerprint(examples)}) == 1 + len(changes)
    # The same pixels in another file are the same contents.
    stream = io.BytesIO()
    Image.open(io.BytesIO(examples[0].image)).save(stream, "PNG", compress_level=0)
    assert stream.getvalue() != examples[0].image
    other_file = make(0, pixels=None, image=stream.getvalue())
    assert fingerprint([other_file, *examples[1:]]) == fingerprint(examples)


def test_info_shows_the_facts(built: pathlib.Path) -> None:
    text = info.describe(built.parent)
    lines = [line.split() for line in text.splitlines()]
    part = records.dataset_facts(built)["splits"]["train_unpaired"]
    row = next(line for line in lines if line[:1] == ["train_unpaired"])
    assert row[1:5] == ["9", str(part["patients"]), str(part["studies"]), str(sum(part["boxes"].values()))]
    labels = records.dataset_facts(built)["labels"]["mass"]
    assert any(line[:4] == ["mass", *(str(labels[s]) for s in ("present", "absent", "uncertain"))] for line in lines)
    assert ["pneumothorax", "8", "0"] in lines
    assert ["pleural_effusion", "0", "8"] in lines


# map_in_order


@pytest.mark.parametrize("threads", [1, 3])
def test_map_in_order(threads: int) -> None:
    import random
    import time

    def slow(x: int) -> int:
        time.sleep(random.random() / 500)
        return x * x

    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for x in range(101):
            drawn += 1
            yield x

    results = records.map_in_order(slow, items(), threads)
    assert next(results) == 0
    assert drawn <= 4 * threads + 1, "items are not all taken at once"
    assert list(results) == [x * x for x in range(1, 101)]


def test_map_in_order_passes_errors_on() -> None:
    with pytest.raises(ZeroDivisionError):
        list(records.map_in_order(lambda x: 1 // x, [3, 0, 1], 2))


def test_scanner_and_side_are_kept_and_older_records_have_none() -> None:
    plain = EXAMPLES[0]
    sided = dataclasses.replace(plain, laterality="L")
    scanned = dataclasses.replace(sided, scanner="Philips")
    assert facts._content_digest(sided) != facts._content_digest(plain)
    assert facts._content_digest(scanned) != facts._content_digest(plain)
    written = schema.to_features(scanned)
    stored = {name: value.encode() if isinstance(value, str) else value for name, value in written.items()}
    for name in ("entities", "labels", "boxes", "masks"):
        keys = schema.features()[name].feature.keys()
        stored[name] = {
            key: [v.encode() if isinstance(v := each[key], str) else v for each in written[name]] for key in keys
        }
    assert (schema.from_features(stored).scanner, schema.from_features(stored).laterality) == ("Philips", "L")
    del stored["scanner"], stored["laterality"]
    assert (schema.from_features(stored).scanner, schema.from_features(stored).laterality) == ("", "")
    del stored["view"]
    with pytest.raises(KeyError):
        schema.from_features(stored)


def test_damaged_files_of_a_data_set_are_one_line(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Neither another number nor fewer records in silence, nor what the libraries raise."""

    def damaged(name: str, old: str, new: str) -> pathlib.Path:
        copy = tmp_path / "given" / "1.0.0"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(built, copy)
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new, 1))
        return copy

    with pytest.raises(UserError, match=r"facts\.json is damaged \(it holds other facts"):
        records.dataset_facts(damaged("facts.json", '"examples": ', '"examples": 1'))
    for old, new in (("{SPLIT}", "{SPLYT}"), ("shardLengths", "shardLenghts"), ("train_paired", "trajn_paired")):
        copy = damaged("dataset_info.json", old, new)
        with pytest.raises(UserError, match=r"dataset_info\.json is damaged"):
            [records.open_records(copy, split, part) for split in SPLITS for part in PARTS]
    copy = damaged("facts.json", "{", "{")
    for file in copy.glob("*array_record*"):
        file.write_bytes(b"")
    source = records.open_records(copy, "train", "paired")
    for read in (lambda: source[0], lambda: source.image(0), lambda: source.texts(0, ("id",))):
        with pytest.raises(UserError, match=r"record 0 of train_paired .*copy the data set again"):
            read()
