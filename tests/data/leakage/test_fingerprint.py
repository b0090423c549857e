"""Digests of what a run learns from: the same for the same records, another for anything else."""

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.checkpoints import Checkpoints, check_same_contents, run_record
from mmclip_jax.data import records
from mmclip_jax.data.leakage import fingerprint
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import UserError
from mmclip_jax.state import TrainState
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import run as training


class Given(records.RecordsBuilder):
    """Eight patients; `pixels` and `text` change what is in the images and the reports, not how many there are."""

    name = "given"

    def __init__(self, data_dir: pathlib.Path, pixels: int = 0, text: str = "No effusion.", order: int = 1):
        super().__init__(data_dir)
        self._pixels, self._text, self._order = pixels, text, order

    def examples(self, split: str) -> Iterator[Example]:
        for number in range(8)[:: self._order] if split == "train" else ():
            pixels = np.random.default_rng(number + self._pixels).integers(0, 256, (9, 11), dtype=np.uint8)
            yield records.finish_example(
                id=f"{number}", source="given", split=split, patient=f"p{number}", study=f"s{number}", pixels=pixels,
                findings=self._text,
            )  # fmt: skip


def build(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    return records.build(Given(folder, **changes), overwrite=True)


def test_it_follows_the_records_and_not_their_place(tmp_path: pathlib.Path) -> None:
    here = fingerprint.of_data_set(build(tmp_path / "a"))
    assert here == fingerprint.of_data_set(build(tmp_path / "b", order=-1)), "whatever order they were made in"
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert here == fingerprint.of_data_set(tmp_path / "copy")
    for changes in ({"pixels": 1}, {"text": "Wide effusion"}):
        other = fingerprint.of_data_set(build(tmp_path / "b", **changes))
        assert other["fingerprint"] != here["fingerprint"], changes


def test_files_that_were_exchanged_beneath_their_facts_are_noticed(tmp_path: pathlib.Path) -> None:
    before = build(tmp_path / "a")
    digests = fingerprint.of_data_set(before)
    other = build(tmp_path / "b", text="An effusion is seen, and it is wide.")
    for file in other.glob("*array_record*"):
        shutil.copy(file, before / file.name)
    now = fingerprint.of_data_set(before)
    assert now["records"] != digests["records"]
    with pytest.raises(UserError, match="same contents in other files"):
        fingerprint.check_same("run", {"contents": [digests]}, {"contents": [now], "tokenizer": ""})


def test_data_built_anew_with_equal_counts_are_refused(tmp_path: pathlib.Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b", pixels=1)
    saved = fingerprint.of_run([first, second], b"pieces")
    fingerprint.check_same("run", saved, fingerprint.of_run([first, second], b"pieces"))
    with pytest.raises(UserError, match=r"run holds .* data set 1, given, has other contents"):
        fingerprint.check_same("run", saved, fingerprint.of_run([second, first], b"pieces"))
    with pytest.raises(UserError, match="from 2 data sets, not 1"):
        fingerprint.check_same("run", saved, fingerprint.of_run([first], b"pieces"))
    build(tmp_path / "a", text="Wide effusion")  # in the same place, while the run had stopped
    with pytest.raises(UserError, match=r"data set 1, given, has other contents.*another --workdir"):
        fingerprint.check_same("run", saved, fingerprint.of_run([first, second], b"pieces"))


def test_a_tokenizer_of_equal_size_is_refused(tmp_path: pathlib.Path) -> None:
    data = build(tmp_path / "a")
    with pytest.raises(UserError, match="its tokenizer is another"):
        fingerprint.check_same("run", fingerprint.of_run([data], b"abc"), fingerprint.of_run([data], b"abd"))


def test_a_manifest_of_an_older_version_is_compared_as_far_as_it_goes(tmp_path: pathlib.Path) -> None:
    data = build(tmp_path / "a")
    now = fingerprint.of_run([data], b"abc")
    old = {"data": {str(data): {"name": "given", "fingerprint": now["contents"][0]["fingerprint"]}}}
    fingerprint.check_same("run", old, now)
    fingerprint.check_same("run", {}, now)
    build(tmp_path / "a", pixels=2)
    with pytest.raises(UserError, match="other contents"):
        fingerprint.check_same("run", old, fingerprint.of_run([data], b"abc"))


def test_training_does_not_go_on_with_either(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`training.train` asks before it restores, and says which of the two it is."""
    data = build(tmp_path / "data")
    tokenizer = load_tokenizer(load_tokenizer(None).model_bytes)
    config = tiny.config(data__train=(str(data),), data__workers=0, data__threads=1, data__batch_unpaired=0)
    config.model.text.vocab_size = tokenizer.vocab_size
    workdir = tmp_path / "run"

    class Nothing:
        def get_state(self) -> dict[str, Any]:
            return {}

    checkpoints = Checkpoints(workdir, 1)
    params = {"a": jnp.zeros(3)}
    manifest = fingerprint.of_run([data], tokenizer.model_bytes)
    run = run_record(config, tokenizer.model_bytes, manifest)
    checkpoints.save(TrainState(jnp.int32(5), params, (), params), Nothing(), run)
    checkpoints.close()
    check_same_contents(workdir, manifest)
    build(tmp_path / "data", pixels=1)
    with pytest.raises(UserError, match="data set 1, given, has other contents"):
        training.train(config, str(workdir))
    build(tmp_path / "data")
    tokenizer.model_bytes = b"of equal size"
    monkeypatch.setattr(training, "load_tokenizer", lambda path: tokenizer)
    with pytest.raises(UserError, match="its tokenizer is another"):
        training.train(config, str(workdir))
