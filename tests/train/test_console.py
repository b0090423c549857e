"""What a terminal shows of training: one line of a logging step and one of an evaluation."""

import pathlib
import re
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import logging

from mmclip_jax import sharding, writers
from mmclip_jax.train import loop

MEANS = {
    "attmim/loss": 0.5,
    "contrastive/loss": 3.25,
    "entmlm/loss": 7.125,
    "entmlm/accuracy": 0.5,  # for the files
    "images_per_second": 1234.4,
    "loss": 4.0625,
    "step_seconds/max": 2.0,
}


def test_a_logging_step_is_its_loss_its_terms_the_rate_and_the_time_left() -> None:
    assert loop.progress_line(50, 1000, MEANS, "12 min left") == (
        "step   50/1000  loss 4.062  contrastive 3.250  attmim 0.500  entmlm 7.125  1234 images/s  12 min left"
    )
    alone = {"loss": 0.6931, "images_per_second": 8.0}  # fine-tuning has no terms
    assert loop.progress_line(3, 3, alone, "0 s left") == "step 3/3  loss 0.693  8 images/s  0 s left"


def test_an_evaluation_is_what_holds_for_all_sources() -> None:
    values = {
        "evaluation/macro_auroc": 0.9126,
        "evaluation/macro_auroc/phantom": 0.9,
        "evaluation/image_to_text/phantom/paired": 0.25,
        "evaluation/source_probe_auroc": 0.5,
    }
    said = "step 250  validation  macro auroc 0.913  source probe auroc 0.500"
    assert loop.evaluation_line(250, values) == said
    del values["evaluation/macro_auroc"], values["evaluation/source_probe_auroc"]
    assert loop.evaluation_line(250, values) == "step 250  validation  2 numbers, in the run's files"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (720, "12 min"), (5369, "89 min"), (5400, "1 h 30 min"),
     (12_000, "3 h 20 min"), (172_700, "47 h 58 min"), (190_800, "2 d 5 h")],
)  # fmt: skip
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert loop.duration(seconds) == said


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(level, text) of what the package logs."""
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(logging, "info", lambda text, *args: found.append((logging.INFO, text % args)))
    monkeypatch.setattr(logging, "debug", lambda text, *args: found.append((logging.DEBUG, text % args)))
    return found


@pytest.mark.parametrize("full", [False, True])
def test_a_run_shows_one_line_a_logging_step_and_writes_everything(
    full: bool, records: list[tuple[int, str]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real loop and writers around a step that only counts."""
    monkeypatch.setattr(logging, "level_debug", lambda: full)
    config = tiny.config(train__steps=6, train__log_every=2, train__evaluate_every=4, train__checkpoint_every=6)

    def step(state: Any, rows: Any) -> Any:
        values = {"loss": 2.0, "contrastive/loss": 1.5, "attmim/loss": 0.25, "entmlm/loss": 4.0, "entmlm/accuracy": 0.1}
        return state, {name: jnp.float32(value) for name, value in (values | {"finite": 1, "skipped": 0}).items()}

    iterator: Any = mock.MagicMock()
    iterator.__next__ = lambda _: {"paired": {"record": np.zeros(16), "tokens": np.zeros((16, 3), np.int32)}}
    state: Any = mock.MagicMock(step=0)
    _, last = loop.fit(
        step, state, iterator, sharding.make_mesh(1), config, str(tmp_path), {}, mock.MagicMock(),
        writers.create_writer(tmp_path), lambda state: (state, {"evaluation/macro_auroc": 0.5}, False),
    )  # fmt: skip
    lines = [text for level, text in records if level == logging.INFO]
    losses = r"loss 2\.000  contrastive 1\.500  attmim 0\.250  entmlm 4\.000"
    one = r"step {}/6  " + losses + r"  \d+ images/s  (with compilation|\d+ .* left)"
    expected = [one.format(2), one.format(4), r"step 4  validation  macro auroc 0\.500", one.format(6),
                r"step 6  validation  macro auroc 0\.500"]  # fmt: skip
    assert len(lines) == len(expected), lines
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines, strict=True)), lines
    assert len([level for level, _ in records if level == logging.DEBUG]) == (5 if full else 0)
    rows = writers.read_rows(tmp_path / writers.METRICS_FILE)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1] == {"step": 6, "evaluation/macro_auroc": 0.5} | last
    assert {"entmlm/accuracy", "step_seconds/p95", "data_wait_share"} <= rows[0].keys()
