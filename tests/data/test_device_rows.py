"""Rows whose images are augmented on the device: the same draws on any number of devices, and after a resume."""

import io
import pickle
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from mmclip_jax import sharding
from mmclip_jax.data import batch, kept, pipeline, sources
from mmclip_jax.data.images import transforms
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import step


def example(number: int, part: str) -> Example:
    rng = np.random.default_rng(number)
    pixels = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8)).resize(
        (23 + number, 21), Image.Resampling.BICUBIC
    )
    stream = io.BytesIO()
    pixels.save(stream, "JPEG" if number % 2 else "PNG")
    report = f"Patient {number}. The heart is enlarged. No edema."
    said: dict[str, Any] = (
        {"findings": report, "entities": tuple(find_entities(report))}
        if part == "paired"
        else {"labels": {"edema": LabelState.PRESENT, "mass": LabelState.ABSENT}}
    )
    return Example(
        id=f"{part}{number}",
        image=stream.getvalue(),
        source="here",
        split="train",
        patient="",
        study=str(number),
        **said,
    )


SETS = (
    sources.TrainSet(
        "made", [example(i, "paired") for i in range(9)], [example(i, "unpaired") for i in range(7)], ("here",)
    ),
)


def batches(**changes: Any) -> tuple[Any, pipeline.TrainIterator]:
    settings = {"data__batch_paired": 16, "data__batch_unpaired": 8, "data__workers": 0, "data__threads": 1}
    config = tiny.config(**settings | changes)
    return config, pipeline.make_train_iterator(config, load_tokenizer(), train_sets=SETS)


def test_the_step_makes_of_device_rows_what_the_host_makes() -> None:
    config, on_device = batches(data__augment_on="device")
    _, on_host = batches(data__augment_on="host")
    for _ in range(3):
        got, want = next(on_device), next(on_host)
        for part, rows in got.items():
            fields = batch.shapes(config)[part]
            assert {name: (x.shape, x.dtype) for name, x in rows.items() if name != "record"} == {
                name: tuple(field) for name, field in fields.items()
            }
            images = np.asarray(step.images_of(jax.tree.map(jax.numpy.asarray, rows), 20))
            assert images.shape == want[part]["image"].shape
            assert np.abs(images.astype(int) - want[part]["image"]).max() <= 1
            for name in want[part].keys() - {"image"}:
                np.testing.assert_array_equal(rows[name], want[part][name])
    assert not set(batch.AUGMENTATION) & set(want["paired"])


def test_eight_devices_augment_as_one_does() -> None:
    rows = {name: x for name, x in next(batches(data__augment_on="device")[1])["paired"].items() if name != "record"}
    one = np.asarray(jax.jit(lambda rows: step.images_of(rows, 20))(rows))
    mesh = sharding.make_mesh(1, jax.devices()[:8])
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda rows: step.images_of(rows, 20)).lower(sharding.to_devices(rows, mesh)).compile()
        eight = compiled(sharding.to_devices(rows, mesh))
    np.testing.assert_array_equal(one, np.asarray(eight))
    assert not any(word in str(compiled.as_text()) for word in ("all-gather", "all-reduce", "all-to-all"))


@pytest.mark.parametrize("keep", [0, 1])
def test_a_resume_changes_no_bit(keep: int) -> None:
    _, whole = batches(data__augment_on="device", data__keep_decoded=keep)
    _, resumed = batches(data__augment_on="device", data__keep_decoded=1 - keep)
    for _ in range(3):
        next(whole)
    resumed.set_state(whole.get_state())
    for _ in range(3):
        one, other = next(whole), next(resumed)
        for part in one:
            for name, values in one[part].items():
                np.testing.assert_array_equal(values, other[part][name], err_msg=f"{part}/{name}")


def test_the_loss_is_that_of_the_hosts_images() -> None:
    config = tiny.config(objective__attmim__weight=0.0, objective__entmlm__weight=0.0, model__text__vocab_size=0)
    config.model.text.vocab_size = load_tokenizer().vocab_size
    model, params = tiny.model_and_params(config)
    found = []
    for where in ("device", "host"):
        rows = next(batches(data__augment_on=where)[1])
        given = {part: {n: x for n, x in fields.items() if n != "record"} for part, fields in rows.items()}
        loss, _ = tiny.jit(lambda p, b: step.compute_loss(model, config, tiny.MASK_ID, p, jax.numpy.int32(3), b))(
            params, given
        )
        found.append(float(loss))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert np.isfinite(found).all()


def test_turned_reports_beside_device_rows_in_chunks_and_on_two_devices() -> None:
    changes = {
        "data__augment_on": "device",
        "data__bridge": 0.0,
        "data__sentence_subset": 0.0,
        "model__text__length": 29,
        "objective__hard_negatives__weight": 0.5,
        "objective__hard_negatives__flips": ("polarity",),
        "objective__attmim__weight": 0.0,
        "objective__entmlm__weight": 0.0,
    }
    config, iterator = batches(**changes)
    config.model.text.vocab_size = load_tokenizer().vocab_size
    rows = next(iterator)
    given = {part: {n: x for n, x in fields.items() if n != "record"} for part, fields in rows.items()}
    assert rows["paired"]["negative"].any(axis=1).all()
    assert not rows["unpaired"]["negative"].any()
    model, params = tiny.model_and_params(config)
    found = []
    for chunks, devices in ((1, 1), (2, 2)):
        config.optimizer.accumulate = chunks
        mesh = sharding.make_mesh(1, jax.devices()[:devices])
        compute = tiny.jit(lambda p, b: step.compute_loss(model, config, tiny.MASK_ID, p, jax.numpy.int32(3), b)[1])
        with jax.set_mesh(mesh):
            metrics = compute(jax.device_put(params, sharding.replicated(mesh)), sharding.to_devices(given, mesh))
        found.append({name: float(x) for name, x in metrics.items()})
    assert found[0]["hard_negatives/share"] == 1
    assert found[0]["hard_negatives/loss"] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)


def test_decoded_images_stay_within_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    pixels = np.zeros((10, 10), np.uint8)
    monkeypatch.setattr(transforms, "decode_image", lambda data: calls.append(data) or pixels)  # type: ignore[func-returns-value]
    decoded = kept.Decoded(250)
    for _ in range(3):
        for record in range(4):
            decoded(record, str(record).encode())
    assert [calls.count(str(record).encode()) for record in range(4)] == [1, 1, 3, 3]
    copied = pickle.loads(pickle.dumps(decoded))
    for record in (3, 2, 3, 2):
        copied(record, b"again")
    assert calls.count(b"again") == 2


def test_a_text_that_recurs_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "TEXTS", 2)
    calls: list[Any] = []
    recalled = kept.Recalled(lambda text, entities: calls.append(text) or (text, tuple(entities)))  # type: ignore[func-returns-value]
    for text in "abcabc":
        assert recalled(text, []) == (text, ())
    assert calls == ["a", "b", "c", "c"]
