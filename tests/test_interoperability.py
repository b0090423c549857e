"""The snippets of docs/interoperability.md: each runs as it stands, and finds what our own readers find."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tiny

from mmclip_jax import writers
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.data import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "interoperability.md").read_text(encoding="utf-8")


def run_snippet(heading: str) -> dict[str, Any]:
    """Executes the one snippet below a heading; returns its names."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, heading, "exec"), names)
    return names


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def built(run: pathlib.Path, phantom_dir: pathlib.Path) -> pathlib.Path:
    (run / "data" / "phantom").mkdir(parents=True)
    (run / "data" / "phantom" / "1.0.0").symlink_to(phantom_dir)
    return phantom_dir


def test_tensorflow_datasets_reads_a_data_set(built: pathlib.Path) -> None:
    names = run_snippet("Data sets: TensorFlow Datasets")
    ours = records.open_records(built, "train", "paired")
    assert len(names["source"]) == len(ours) > 0
    assert names["example"]["id"].decode() == ours[0].id
    assert names["example"]["findings"].decode() == ours[0].findings


def test_grain_reads_a_data_set(built: pathlib.Path) -> None:
    names = run_snippet("Data sets: Grain")
    ours = {each.id: each for each in records.open_records(built, "train", "paired")}
    assert len(names["records"]) == len(ours)
    first = names["rows"][0]
    assert len(first) == 4
    assert {row["id"].decode() for row in first} <= ours.keys()
    assert names["picture"].mode == "L"


def test_orbax_reads_a_checkpoint(run: pathlib.Path) -> None:
    tiny.save_run(run, [9, 10])
    names = run_snippet("Checkpoints: Orbax")
    saved = find_checkpoint(run)
    assert names["step"].name == str(saved.step) == "10"
    assert names["run"]["config"]["model"]["image_size"] == saved.config.model.image_size
    assert np.asarray(names["params"]["log_logit_scale"]) == pytest.approx(np.log(1 / 0.07))


def test_tensorboard_reads_the_metrics(run: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    writer = writers.create_writer(run)
    for step in (3, 7):
        writer.write_scalars(step, {"loss": 1.0 / step})
    writer.close()
    names = run_snippet("Metrics: TensorBoard")
    assert names["losses"] == [(step, pytest.approx(1.0 / step)) for step in (3, 7)]
    assert names["lines"] == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_snippet_is_run() -> None:
    headings = re.findall(r"^## ([^\n]+)$(?=(?:(?!^## ).)*?^```python)", PAGE, re.MULTILINE | re.DOTALL)
    here = pathlib.Path(__file__).read_text(encoding="utf-8")
    assert headings == re.findall(r'= run_snippet\("(.+)"\)', here)
