"""Pictures of cases and the settings in a run's event files, read back; by TensorBoard's reader where it is there."""

import io
import pathlib
import types
from typing import Any

import numpy as np
import pytest
import tiny
import toy
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter  # noqa: F401 — the library that writes must be there
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from test_writers import _records

from mmclip_jax import writers
from mmclip_jax.config import flat
from mmclip_jax.evaluate.report.cases import case_strips
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.train import loop


class _Model(toy.ToyModel):
    def take(self, params: Any, step: int) -> None:
        self.step = step


def _run(folder: pathlib.Path, pictures: int) -> pathlib.Path:
    """The event files of a run that was evaluated at steps 4 and 8."""
    config = tiny.config(train__pictures=pictures)
    writer = writers.create_writer(folder)
    writer.write_hparams(config.to_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmclip_jax.inference.model.Model", lambda *_: _Model(toy.MANIFEST))
        patch.setattr(loop, "validation_examples", lambda _: tuple(toy.collection(patients=30)))
        patch.setattr(loop.sharding, "on_host", lambda tree: tree)
        evaluation = loop.Evaluation(config, None, {}, writer)  # type: ignore[arg-type]
        for step in (4, 8):
            state: Any = types.SimpleNamespace(step=step, params={}, ema=None)
            writer.write_scalars(step, evaluation(state))
    writer.close()
    return folder


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return _run(tmp_path_factory.mktemp("run"), 3)


def _summaries(folder: pathlib.Path) -> list[tuple[int, Any]]:
    """(step, value) of all event files, by the protocol buffers of the format."""
    events = [Event.FromString(record) for file in folder.glob("events.*") for record in _records(file)]
    return [(event.step, value) for event in events for value in event.summary.value]


def test_a_strip_is_image_map_mask_and_reconstruction() -> None:
    split = Split.of(tuple(toy.collection(patients=30)))
    strips = case_strips(toy.ToyModel(toy.MANIFEST), split, 3)
    assert [name.partition("_")[0] for name in strips] == ["cases/1", "cases/2", "cases/3"]
    assert {name.partition("_")[2] for name in strips} <= {*toy.KINDS, "no_finding"}
    for strip in strips.values():
        assert (strip.dtype, strip.ndim, strip.shape[2]) == (np.uint8, 3, 3)
        image, overlay, masked, restored = np.split(strip.astype(int), 4, axis=1)
        assert len(image) == image.shape[1]
        assert (image[..., 0] == image[..., 1]).all()  # grey
        assert (overlay[..., 0] > overlay[..., 2]).any()  # the orange of the map
        hidden = (masked == (86, 104, 124)).all(axis=2)
        assert hidden.mean() == 0.5  # the toy hides every second row of patches
        assert (masked[~hidden] == image[~hidden]).all()
        assert np.abs(restored - (0.8 * image + 20))[hidden].max() <= 1
        assert (restored[~hidden] == image[~hidden]).all()
    again = case_strips(toy.ToyModel(toy.MANIFEST), split, 3)
    assert all((strips[name] == again[name]).all() for name in strips)


def test_every_evaluation_writes_the_pictures_of_the_same_cases(logdir: pathlib.Path) -> None:
    expected = case_strips(toy.ToyModel(toy.MANIFEST), Split.of(tuple(toy.collection(patients=30))), 3)
    found = {(step, value.tag): value.image for step, value in _summaries(logdir) if value.HasField("image")}
    assert found.keys() == {(step, name) for step in (4, 8) for name in expected}
    for (_, name), image in found.items():
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        assert (pixels == expected[name]).all()
        assert (image.height, image.width) == pixels.shape[:2]


def test_the_settings_are_hparams_beside_the_metrics_that_runs_are_compared_by(logdir: pathlib.Path) -> None:
    plugins = [HParamsPluginData.FromString(value.metadata.plugin_data.content)
               for _, value in _summaries(logdir) if value.metadata.plugin_data.plugin_name == "hparams"]  # fmt: skip
    (said,) = [dict(each.session_start_info.hparams) for each in plugins if each.HasField("session_start_info")]
    settings = flat(tiny.config(train__pictures=3))
    assert said.keys() == settings.keys()
    assert said["optimizer.peak_lr"].number_value == settings["optimizer.peak_lr"]
    assert said["model.remat"].bool_value is False
    assert said["objective.attmim.strategy"].string_value == "attention"
    (experiment,) = [each.experiment for each in plugins if each.HasField("experiment")]
    compared = {metric.name.tag for metric in experiment.metric_infos}
    assert compared == {"loss", "evaluation/macro_auroc"}
    assert "evaluation/macro_auroc" in {value.tag for _, value in _summaries(logdir)}


def test_tensorboards_own_reader_shows_them(logdir: pathlib.Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = accumulator.EventAccumulator(str(logdir), size_guidance={"images": 0})
    seen.Reload()
    tags = seen.Tags()
    assert len([tag for tag in tags["images"] if tag.startswith("cases/")]) == 3
    assert [event.step for event in seen.Images(tags["images"][0])] == [4, 8]
    assert "evaluation/macro_auroc" in tags["scalars"]
    assert "_hparams_/session_start_info" in seen.PluginTagToContent("hparams")


def test_no_pictures_where_none_are_asked_for(tmp_path: pathlib.Path) -> None:
    found = [value for _, value in _summaries(_run(tmp_path, 0))]
    assert [value.tag for value in found if value.tag == "evaluation/macro_auroc"]
    assert not [value for value in found if value.HasField("image")]
