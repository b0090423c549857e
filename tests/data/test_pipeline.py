import dataclasses
import io
import pickle
import re
import time
import types

import grain
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from mmclip_jax.data import pipeline, sources, texts
from mmclip_jax.data.images import transforms
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts
from mmclip_jax.text.entities import find_entities

SIZE, LENGTH = 19, 23
FIELDS = {
    "image": (np.uint8, (SIZE, SIZE, 1)),
    "tokens": (np.int32, (LENGTH,)),
    "entity": (np.int32, (LENGTH,)),
    "affirmed": (np.bool_, (LENGTH,)),
    "text_id": (np.int32, (2,)),
    "stated": (np.int8, (len(prompts.KINDS),)),
    "known": (np.int8, (len(prompts.KINDS),)),
    "source": (np.int32, ()),
    "record": (np.int32, ()),
}


class Words:
    """A tokenizer whose tokens are words, numbered by a hash: independent of the package's model."""

    def tokenize(self, text, entities, length, entity_labels=("observation",)):
        tokens, entity_numbers = np.zeros(length, np.int32), np.zeros(length, np.int32)
        affirmed, spans = np.zeros(length, bool), np.zeros((length, 2), np.int32)
        for i, match in enumerate(list(re.finditer(r"\S+", text))[:length]):
            tokens[i] = 1 + texts.stable_hash(match.group()) % 9973
            spans[i] = match.span()
            for number, entity in enumerate(entities, 1):
                if entity.label in entity_labels and entity.start < match.end() and match.start() < entity.end:
                    entity_numbers[i] = number
                    affirmed[i] = not entity.negated and entity.label in ("observation", "device")
        return types.SimpleNamespace(tokens=tokens, entity=entity_numbers, affirmed=affirmed, spans=spans)


def png(seed, height=29, width=31):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def paired(number, source="hospital", **fields):
    findings = f"Patient {number}. There is a pleural effusion. The heart is enlarged. No pneumothorax or edema."
    defaults = {"id": f"{source}-p{number}", "image": png(number), "source": source, "split": "train"}
    entities = tuple(find_entities(findings))
    return Example(**defaults | fields, patient=str(number), study=f"s{number}", findings=findings, entities=entities)


def unpaired(number, source="clinic", **fields):
    labels = {"edema": LabelState.PRESENT, "mass": LabelState(number % 2), "hernia": LabelState.ABSENT}
    defaults = {"id": f"{source}-u{number}", "image": png(1000 + number), "source": source, "split": "train"}
    return Example(**defaults | fields, patient=str(number), study=f"s{number}", labels=labels)


HOSPITAL, OFFICE = [paired(i) for i in range(13)], [paired(i, "office") for i in range(5)]
SETS = (
    sources.TrainSet("first", HOSPITAL, [unpaired(i) for i in range(7)], ("hospital", "clinic")),
    sources.TrainSet("second", OFFICE, [], ("office",)),
    sources.TrainSet("third", [], [unpaired(i, "ward") for i in range(17)], ("ward",)),
)


def config(**data):
    return ml_collections.ConfigDict(
        {
            "seed": 11,
            "model": {"image_size": SIZE, "text": {"length": LENGTH}},
            "objective": {"hard_negatives": {"weight": 0.0}},
            "data": {
                "train": (),
                "paired_weights": None,
                "unpaired_weights": None,
                "batch_paired": 6,
                "batch_unpaired": 4,
                "bridge": 0.25,
                "max_negated": 2,
                "shuffled_labels": False,
                "deny_alone": 0.0,
                "share_no_finding": True,
                "sentence_subset": 0.5,
                "entity_labels": ("observation", "device", "anatomy"),
                "augment": {"rotate": 10.0, "shift": 0.06, "scale": 0.1, "brightness": 0.2, "contrast": 0.2},
                "workers": 0,
                "threads": 0,
            }
            | data,
        }
    )


def iterator(settings=None, sets=SETS, **arguments):
    return pipeline.make_train_iterator(settings or config(), Words(), train_sets=sets, **arguments)


def take(batches, number):
    return [next(batches) for _ in range(number)]


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for part in a:
            assert a[part].keys() == b[part].keys()
            for name in a[part]:
                np.testing.assert_array_equal(a[part][name], b[part][name], err_msg=f"{part}/{name}")


def records(batches, part):
    return np.concatenate([batch[part]["record"] for batch in batches]).tolist()


def test_batches_hold_the_agreed_fields():
    batch = next(iterator())
    assert {part: len(rows["record"]) for part, rows in batch.items()} == {"paired": 6, "unpaired": 4}
    for part, size in (("paired", 6), ("unpaired", 4)):
        assert {name: (v.dtype, v.shape[1:]) for name, v in batch[part].items()} == {
            name: (np.dtype(dtype), shape) for name, (dtype, shape) in (FIELDS | {"damaged": (np.int32, ())}).items()
        }
        assert all(len(values) == size for values in batch[part].values())


def test_a_row_is_made_of_its_own_record():
    batches = iterator()
    for batch in take(batches, 10):
        for part, rows in batch.items():
            for i, record in enumerate(rows["record"]):
                example = batches.table.example(int(record))
                assert example.part == part
                assert batches.record_ids([record]) == [example.id]
                assert batches.source_names[rows["source"][i]] == example.source
                assert rows["text_id"][i, 0] == texts.stable_hash(f"study\0{example.source}\0{example.study}")
                stated = {prompts.KINDS[k] for k in np.flatnonzero(rows["stated"][i] == 1)}
                if part == "paired":
                    assert stated <= {"pleural_effusion", "cardiomegaly"}
                else:
                    assert stated
                    assert all(example.labels[kind] == LabelState.PRESENT for kind in stated)


def test_image_is_that_of_the_record():
    still = {"rotate": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}
    batches = iterator(config(augment=still))
    for batch in take(batches, 3):
        for rows in batch.values():
            for image, record in zip(rows["image"], rows["record"], strict=True):
                stored = transforms.decode_image(batches.table.example(int(record)).image)
                np.testing.assert_array_equal(image, transforms.fit_image(stored, SIZE))


def test_record_numbers_cover_all_parts_of_all_sets():
    table = sources.RecordTable(SETS)
    expected = [part[i].id for s in SETS for part in (s.paired, s.unpaired) for i in range(len(part))]
    assert len(expected) == 13 + 7 + 5 + 17
    assert table.ids(range(len(table))) == expected
    with pytest.raises(IndexError):
        table.example(len(table))


@pytest.mark.parametrize("part", ["paired", "unpaired"])
def test_every_record_is_seen_once_an_epoch_in_another_order(part):
    size, total = {"paired": (6, 18), "unpaired": (4, 24)}[part]
    order = records(take(iterator(), 3 * total // size), part)
    epochs = [order[start : start + total] for start in range(0, 3 * total, total)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == total for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_seed_decides_everything():
    assert_equal(take(iterator(), 5), take(iterator(seed=11), 5))
    one, other = take(iterator(), 3), take(iterator(seed=12), 3)
    assert records(one, "paired") != records(other, "paired")
    assert records(one, "unpaired") != records(other, "unpaired")
    # Not the order alone: with one record there is no order.
    alone = (dataclasses.replace(SETS[0], paired=HOSPITAL[:1]),)
    one, other = next(iterator(sets=alone)), next(iterator(sets=alone, seed=12))
    assert (one["paired"]["image"] != other["paired"]["image"]).mean() > 0.5


def test_the_same_record_is_drawn_anew_each_epoch():
    batches = take(iterator(), 12)
    rows: dict[int, list[tuple[bytes, bytes]]] = {}
    for batch in batches:
        for i, record in enumerate(batch["paired"]["record"]):
            rows.setdefault(int(record), []).append(
                (batch["paired"]["image"][i].tobytes(), batch["paired"]["tokens"][i].tobytes())
            )
    assert all(len({image for image, _ in seen}) == len(seen) for seen in rows.values())
    assert np.mean([len({tokens for _, tokens in seen}) for seen in rows.values()]) > 2


def test_draws_depend_on_seed_and_position_not_on_the_other_settings():
    # The same positions with another batch size: the stream of rows is the same.
    small, large = (
        take(iterator(config(batch_paired=3, batch_unpaired=0)), 4),
        take(iterator(config(batch_paired=12)), 1),
    )
    for name in FIELDS:
        joined = np.concatenate([batch["paired"][name] for batch in small])
        np.testing.assert_array_equal(joined, large[0]["paired"][name])


@pytest.mark.parametrize("process_count", [2])
def test_processes_share_the_global_batches(process_count):
    whole = take(iterator(), 7)
    shards = [take(iterator(process_index=p, process_count=process_count), 7) for p in range(process_count)]
    for number, batch in enumerate(whole):
        for part in batch:
            for name in batch[part]:
                joined = np.concatenate([shard[number][part][name] for shard in shards])
                np.testing.assert_array_equal(batch[part][name], joined)


@pytest.mark.parametrize("threads", [0, 2])
def test_resumed_equals_uninterrupted(tmp_path, threads):
    settings = config(threads=threads)
    uninterrupted = take(iterator(settings), 9)
    first = iterator(settings)
    take(first, 4)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(first)))
        manager.wait_until_finished()
        take(first, 2)  # batches after the save do not matter
        resumed = iterator(settings)
        manager.restore(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
    assert_equal(take(resumed, 5), uninterrupted[4:])
    first.close()
    resumed.close()


def test_state_goes_back_as_well_as_forward():
    batches = iterator(config(threads=1))
    start = batches.get_state()
    first = take(batches, 3)
    batches.set_state(start)
    assert_equal(take(batches, 3), first)
    batches.close()


def test_state_moves_between_numbers_of_processes_and_threads():
    whole = iterator(config(threads=2))
    take(whole, 3)
    state = whole.get_state()
    expected = take(whole, 2)
    whole.close()
    shards = [iterator(process_index=p, process_count=2) for p in range(2)]
    for shard in shards:
        shard.set_state(state)
    for batch, one, two in zip(expected, take(shards[0], 2), take(shards[1], 2), strict=True):
        np.testing.assert_array_equal(
            batch["paired"]["image"], np.concatenate([one["paired"]["image"], two["paired"]["image"]])
        )


def test_state_of_other_data_is_refused():
    state = iterator().get_state()
    for other in (iterator(seed=12), iterator(config(batch_paired=12)), iterator(sets=SETS[:1])):
        with pytest.raises(UserError, match="data order"):
            other.set_state(state)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    batches = iterator(config(workers=2))
    expected = take(iterator(), 9)
    assert_equal(take(batches, 5), expected[:5])
    state = batches.get_state()
    batches.close()
    resumed = iterator(config(workers=1))
    resumed.set_state(state)
    assert_equal(take(resumed, 4), expected[5:])
    resumed.close()


@pytest.mark.slow
def test_worker_process_reports_a_damaged_record():
    broken = dataclasses.replace(paired(3), image=b"\x89PNG nothing")
    sets = (dataclasses.replace(SETS[0], paired=[broken] * 6),)
    batches = iterator(config(workers=1, batch_unpaired=0), sets)
    with pytest.raises(UserError, match=r"first .*record \d: "):
        next(batches)
    batches.close()


def test_weights_decide_how_often_a_set_is_drawn():
    batches = take(iterator(config(unpaired_weights=(3.0, 0.0, 1.0))), 50)
    table = sources.RecordTable(SETS)
    drawn = [table.example(r).source for r in records(batches, "unpaired")]
    assert drawn.count("clinic") / len(drawn) == pytest.approx(0.75, abs=0.01)
    # Within each set an epoch still sees each record once.
    clinic = [r for r in records(batches, "unpaired") if table.example(r).source == "clinic"]
    assert all(len(set(clinic[start : start + 7])) == 7 for start in range(0, 140, 7))


def test_weight_zero_leaves_a_set_out():
    batches = take(iterator(config(paired_weights=(1.0, 0.0, 0.0))), 10)
    assert set(records(batches, "paired")) == set(range(13))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paired_weights": (1.0, 1.0)}, "one weight"),
        ({"paired_weights": (0.0, 0.0, 0.0)}, "one weight"),
        ({"paired_weights": (1.0, -1.0, 1.0)}, "one weight"),
        ({"paired_weights": (1.0, 1.0, 1.0)}, "third has no paired"),
        ({"batch_paired": 0, "batch_unpaired": 0}, "nothing to train on"),
        ({"batch_paired": -2}, "does not divide"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        iterator(config(**settings))


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"batch_unpaired = 4 does not divide among 3"):
        iterator(process_count=3)


def test_part_without_records():
    batch = next(iterator(config(batch_unpaired=0), SETS[1:2]))
    assert list(batch) == ["paired"]
    batch = next(iterator(config(batch_paired=0), SETS[2:]))
    assert list(batch) == ["unpaired"]
    with pytest.raises(UserError, match=r"no unpaired training images .*second.*batch_unpaired = 0"):
        iterator(sets=SETS[1:2])


def test_labels_do_not_leak_into_paired_rows():
    labels = {"mass": LabelState.PRESENT, "no_finding": LabelState.PRESENT, "hernia": LabelState.ABSENT}
    leaky = tuple(
        dataclasses.replace(s, paired=[dataclasses.replace(e, labels=labels) for e in examples])
        for s, examples in zip(SETS, (HOSPITAL, OFFICE, []), strict=True)
    )
    assert_equal(take(iterator(), 12), take(iterator(sets=leaky), 12))


class Unreadable(list):
    def __getitem__(self, index):
        if index == 2:
            raise RuntimeError("CRC mismatch")
        return super().__getitem__(index)


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("way", ["decode", "read"])
def test_a_damaged_record_is_replaced_by_the_next_whole_one(threads, way):
    broken = {
        4: dataclasses.replace(paired(4), image=paired(4).image[:60]),
        5: dataclasses.replace(paired(5), image=b""),
    }
    examples = [broken.get(n, e) for n, e in enumerate(HOSPITAL)] if way == "decode" else Unreadable(HOSPITAL)
    damaged = {4: 6, 5: 6} if way == "decode" else {2: 3}
    sets = (dataclasses.replace(SETS[0], paired=examples),)
    settings = config(threads=threads)
    whole, got = take(iterator(settings, SETS[:1]), 9), take(iterator(settings, sets), 9)
    seen = set()
    for before, after in zip(whole, got, strict=True):
        np.testing.assert_array_equal(before["unpaired"]["image"], after["unpaired"]["image"])
        for row, record in enumerate(before["paired"]["record"].tolist()):
            assert int(before["paired"]["damaged"][row]) == -1
            assert int(after["paired"]["record"][row]) == damaged.get(record, record)
            assert int(after["paired"]["damaged"][row]) == (record if record in damaged else -1)
            seen |= {record} & damaged.keys()
            if record not in damaged:
                np.testing.assert_array_equal(before["paired"]["image"][row], after["paired"]["image"][row])
    assert seen == damaged.keys()
    assert_equal(got, take(iterator(settings, sets), 9))
    # The draws are those of the place: a damaged copy of the same record gives the same row.
    resumed = iterator(settings, sets)
    resumed.set_state({**iterator(settings, sets).get_state(), "next_batch": 4})
    assert_equal(got[4:], take(resumed, 5))


def test_the_problem_of_a_record_is_told():
    broken = dataclasses.replace(unpaired(3), image=b"")
    batches = iterator(sets=(dataclasses.replace(SETS[0], unpaired=[*map(unpaired, range(3)), broken]), *SETS[1:]))
    number = len(HOSPITAL) + 3
    assert batches.problem(number)["problem"]
    told = {name: batches.problem(number)[name] for name in ("data_set", "part", "record", "id")}
    assert told == {"data_set": "first", "part": "unpaired", "record": 3, "id": broken.id}
    assert batches.problem(number - 1)["problem"] == ""
    unreadable = iterator(sets=(dataclasses.replace(SETS[0], paired=Unreadable(HOSPITAL)),))
    assert unreadable.problem(2)["problem"] == "CRC mismatch"


@pytest.mark.parametrize("threads", [0, 1])
def test_too_many_damaged_records_in_a_row_are_named(threads):
    settings = config(threads=threads)
    broken = dataclasses.replace(paired(4), image=paired(4).image[:60])
    sets = (dataclasses.replace(SETS[0], paired=[broken] * 13),)
    with pytest.raises(UserError, match=r"^first \(paired.*record \d+: .*cannot be decoded"):
        take(iterator(settings, sets), 3)


def test_evaluation_rows_are_fixed_and_whole():
    examples = [paired(0), unpaired(3), paired(2)]
    rows = list(pipeline.eval_rows(examples, Words(), config(), ("clinic", "hospital")))
    again = list(pipeline.eval_rows(iter(examples), Words(), config(), ("clinic", "hospital")))
    for row, same, example in zip(rows, again, examples, strict=True):
        for name, (dtype, shape) in FIELDS.items():
            assert row[name].dtype == dtype
            assert row[name].shape == shape
            np.testing.assert_array_equal(row[name], same[name])
        np.testing.assert_array_equal(row["image"], transforms.fit_image(transforms.decode_image(example.image), SIZE))
    assert [int(row["source"]) for row in rows] == [1, 0, 1]
    words = Words().tokenize(examples[0].text, examples[0].entities, LENGTH, config().data.entity_labels)
    np.testing.assert_array_equal(rows[0]["tokens"], words.tokens)
    np.testing.assert_array_equal(rows[0]["entity"], words.entity)
    assert rows[0]["entity"].max() == len(examples[0].entities)
    assert {prompts.KINDS[k] for k in np.flatnonzero(rows[1]["stated"] == 1)} == {"edema", "mass"}


def test_evaluation_batches_are_padded():
    examples = [paired(i) for i in range(7)]
    batches = list(pipeline.eval_batches(examples, Words(), config(), 3))
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 3, [True] * 3, [True, False, False]]
    assert all(len(values) == 3 for batch in batches for values in batch.values())
    assert np.concatenate([batch["record"][batch["valid"]] for batch in batches]).tolist() == list(range(7))
    assert not batches[-1]["image"][1:].any()
    assert batches[0]["source"].tolist() == [-1, -1, -1]
    assert list(pipeline.eval_batches([], Words(), config(), 3)) == []


def test_damaged_evaluation_record_is_named():
    broken = dataclasses.replace(paired(4), image=b"")
    with pytest.raises(UserError, match=r"record 1: .*cannot be decoded"):
        list(pipeline.eval_batches([paired(1), broken], Words(), config(), 2))


def built(folder, examples):
    from mmclip_jax.data import records

    class Builder(records.RecordsBuilder):
        name = "made"

        def examples(self, split):
            return (example for example in examples if example.split == split)

    return records.build(Builder(folder))


def finished(example):
    from mmclip_jax.data import records

    fields = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
    for name in ("pixels_sha256", "original_height", "original_width"):
        del fields[name]
    return records.finish_example(**fields)


def test_records_on_disk_give_what_the_examples_gave(tmp_path):
    folder = built(tmp_path, [finished(e) for e in [*HOSPITAL, *(unpaired(i) for i in range(7))]])
    (opened,) = sources.open_train_sets([folder])
    assert opened.source_names == ("clinic", "hospital")
    assert (len(opened.paired), len(opened.unpaired)) == (13, 7)
    batches = pipeline.make_train_iterator(config(train=(str(folder),)), Words())
    # TFDS stores records in an order of its own: the same records sit elsewhere, so compare them one by one.
    by_id = {e.id: e for e in [*HOSPITAL, *(unpaired(i) for i in range(7))]}
    ids = batches.record_ids(range(20))
    assert sorted(ids) == sorted(by_id)
    in_that_order = [by_id[i] for i in ids]
    in_memory = sources.TrainSet("made", in_that_order[:13], in_that_order[13:], ("clinic", "hospital"))
    assert_equal(take(batches, 4), take(iterator(sets=(in_memory,)), 4))


def test_shuffled_labels_are_those_of_other_images(tmp_path):
    """Every image keeps its pixels, gets another's labels, and no label gets more or less frequent."""
    kinds = ("edema", "pneumonia", "fracture", "hernia", "mass", "nodule", "cardiomegaly")
    made = [finished(dataclasses.replace(unpaired(i), labels={kinds[i]: LabelState.PRESENT})) for i in range(7)]
    folder = built(tmp_path, made)
    (true,), (shuffled,) = (sources.open_train_sets([folder], shuffled_labels=on) for on in (False, True))
    assert len(shuffled.unpaired) == 7
    pairs = [(true.unpaired[i], shuffled.unpaired[i]) for i in range(7)]
    assert all((one.id, one.image) == (other.id, other.image) for one, other in pairs)
    assert all(one.labels != other.labels for one, other in pairs)
    assert sorted(next(iter(other.labels)) for _, other in pairs) == sorted(kinds)
    stated = [
        next(pipeline.make_train_iterator(config(train=(str(folder),), batch_paired=0, shuffled_labels=on), Words()))
        for on in (False, True)
    ]
    assert (stated[0]["unpaired"]["record"] == stated[1]["unpaired"]["record"]).all()
    assert (stated[0]["unpaired"]["stated"] != stated[1]["unpaired"]["stated"]).any(axis=1).all()


def test_data_set_without_a_usable_label_is_refused(tmp_path):
    labels = {"edema": LabelState.UNCERTAIN}
    folder = built(tmp_path, [finished(dataclasses.replace(unpaired(i), labels=labels)) for i in range(3)])
    with pytest.raises(UserError, match="none of the 3 unpaired images"):
        sources.open_train_sets([folder])


def test_built_data_set_trains(phantom_dir):
    from mmclip_jax.data.records import open_records
    from mmclip_jax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer()
    settings = config(train=(str(phantom_dir),))
    settings.model.text.length = 61
    batches = pipeline.make_train_iterator(settings, tokenizer)
    paired_rows = [batch["paired"] for batch in take(batches, 20)]
    assert np.concatenate([rows["entity"].max(1) > 0 for rows in paired_rows]).mean() > 0.5
    assert set(np.concatenate([rows["source"] for rows in paired_rows])) <= set(range(len(batches.source_names)))
    validation = {part: open_records(phantom_dir, "validation", part) for part in ("paired", "unpaired")}
    for source in validation.values():
        valid = sum(int(b["valid"].sum()) for b in pipeline.eval_batches(source, tokenizer, settings, 8))
        assert valid == len(source) > 0
    # The tokens that a row gives to an entity spell that entity.
    examples = validation["paired"]
    for row, example in zip(pipeline.eval_rows(examples, tokenizer, settings), examples, strict=True):
        for number in set(row["entity"].tolist()) - {0, int(row["entity"][-1])}:
            spelt = tokenizer.decode(row["tokens"][row["entity"] == number])
            assert example.entities[number - 1].text.lower() in spelt
    for seed, example in enumerate(examples):
        drawn = texts.draw_text(example, np.random.default_rng(seed), settings.data)
        assert all(drawn.text[e.start : e.end] == e.text for e in drawn.entities)
    # What goes to worker processes works there as it does here.
    maker = pipeline.RowMaker(settings, tokenizer)
    copied = pickle.loads(pickle.dumps(maker))
    rows = [m.train_row(examples[0], np.random.default_rng(3), 0) for m in (maker, copied)]
    assert all(np.array_equal(rows[0][name], rows[1][name]) for name in FIELDS)
    with pytest.raises(UserError):
        sources.open_train_sets([phantom_dir.parent / "nowhere"])


@pytest.mark.slow
def test_throughput_at_64_pixels(phantom_dir):
    from mmclip_jax.text.tokenizer import load_tokenizer

    settings = config(train=(str(phantom_dir),), batch_paired=48, batch_unpaired=16)
    settings.model.image_size, settings.model.text.length = 64, 64
    batches = pipeline.make_train_iterator(settings, load_tokenizer())
    take(batches, 2)
    start = time.process_time()
    take(batches, 20)
    rate = 20 * 64 / (time.process_time() - start)
    # A third of what one core does when idle; a slow machine still passes, a needless copy of everything does not.
    assert rate > 500, f"{rate:.0f} rows/s"


def test_the_two_parts_are_shuffled_each_in_its_own_order():
    """As many images with reports as without: one order for both would always show the same two together."""
    sets = (
        sources.TrainSet("a", HOSPITAL, [unpaired(i) for i in range(len(HOSPITAL))], ("hospital", "clinic")),
    )  # fmt: skip
    for seed in (11, 12, 13):
        batches = take(iterator(config(batch_paired=13, batch_unpaired=13), sets=sets, seed=seed), 2)
        for epoch in range(2):
            ranks = [np.argsort(np.argsort(batches[epoch][part]["record"])).tolist() for part in ("paired", "unpaired")]
            assert ranks[0] != ranks[1]
