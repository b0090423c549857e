"""The benchmark of the step: its variants, its made-up batch, its table, and that it needs no data packages."""

import argparse
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_benchmark

from mmclip_jax import check
from mmclip_jax.data import batch as batch_lib
from mmclip_jax.errors import UserError
from mmclip_jax.text.prompts import KINDS
from mmclip_jax.train import step

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "step.py"
RUNLOCAL = ["--config", str(SCRIPT.parents[1] / "configs" / "demo.py") + ":runlocal"]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("step")


def _config(bench: ModuleType, *more: str) -> Any:
    return bench.parse([*RUNLOCAL, "--vocab-size", "301", *more])[1]


def test_variants_switch_objectives_off_and_keep_weights(bench):
    config = _config(bench, "--config.objective.attmim.weight=0.7", "--config.objective.entmlm.weight=0")
    weights = {}
    for name in bench.VARIANTS:
        objective = bench.variant_config(config, name).objective
        weights[name] = tuple(objective[part].weight for part in ("attmim", "entmlm", "local"))
    assert weights == {
        "contrastive": (0, 0, 0),
        "contrastive + AttMIM": (0.7, 0, 0),
        "contrastive + EntMLM": (0, 1, 0),
        "contrastive + local": (0, 0, 0.5),
        "full": (0.7, 0, 0.5),
    }
    assert config.objective.entmlm.weight == 0, "the config itself is left alone"


def test_the_batch_is_like_the_pipelines(bench):
    config = _config(bench, "--batch-paired", "24", "--batch-unpaired", "16")
    batch = bench.synthetic_batch(config)
    size, length = config.model.image_size, config.model.text.length
    for part, rows in (("paired", 24), ("unpaired", 16)):
        fields = batch[part]
        assert {name: (value.dtype.name, value.shape) for name, value in fields.items()} == {
            "image": ("uint8", (rows, size, size, 1)),
            "tokens": ("int32", (rows, length)),
            "entity": ("int32", (rows, length)),
            "affirmed": ("bool", (rows, length)),
            "text_id": ("int32", (rows, 2)),
            "stated": ("int8", (rows, len(KINDS))),
            "known": ("int8", (rows, len(KINDS))),
            "source": ("int32", (rows,)),
            "damaged": ("int32", (rows,)),
        }
        there = fields["tokens"] != 0
        assert (np.diff(there.astype(int), axis=1) <= 0).all(), "padding comes last"
        assert there.sum(axis=1).min() >= length // 4
        assert fields["tokens"].max() < 301
        assert 2 not in fields["tokens"], "no [MASK] before masking"
        assert not (fields["entity"].astype(bool) & ~there).any()
        assert not (fields["affirmed"] & (fields["entity"] == 0)).any()
        assert fields["affirmed"].any(axis=1).all()
    assert set(np.unique(batch["paired"]["source"])) != set(np.unique(batch["unpaired"]["source"]))


def test_the_batch_is_what_a_device_augments_where_it_does(bench):
    config = _config(bench, "--config.data.augment_on=device", "--batch-paired", "8", "--batch-unpaired", "4")
    made = bench.synthetic_batch(config)
    for part, rows in made.items():
        assert {name: (x.shape, x.dtype) for name, x in rows.items()} == {
            name: tuple(field) for name, field in batch_lib.shapes(config)[part].items()
        }
        images = np.asarray(step.images_of(rows, config.model.image_size), np.float64)
        assert (images.mean(axis=(1, 2, 3)) > 50).all()
        assert (images.std(axis=(1, 2, 3)) > 20).all()


def test_a_part_without_rows_is_left_out(bench):
    assert set(bench.synthetic_batch(_config(bench, "--batch-unpaired", "0"))) == {"paired"}


def test_settings_on_the_command_line(bench):
    config = _config(bench, "--dtype", "bfloat16", "--batch-paired", "32", "--config.model.remat=true")
    assert (config.model.dtype, config.data.batch_paired, config.model.remat) == ("bfloat16", 32, True)
    assert config.model.text.vocab_size == 301
    check.check_config(config, devices=8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "3"], "unknown argument --stepz"),
        (["--variants", "full,fool"], "no variant 'fool'"),
        (["--config.model.rema=true"], r"no setting model\.rema"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(bench, capsys, words, message):
    with pytest.raises(UserError, match=message):
        bench.parse([*RUNLOCAL, "--vocab-size", "301", *words])
    assert bench.main([*RUNLOCAL, "--vocab-size", "301", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_leaves_out_what_could_not_be_measured(bench):
    counted = {"image_encoder": 3e12, "text_encoder": 0.0, "contrastive": 0.0, "recompute": 1e12}
    measured = bench.Row("full", counted, 12.5, 3 * 2**30, 0.5, 0.4, 0.7, None, 64.0, 0.25)
    failed = bench.Row("large", counted, 9.0)
    head, _, *lines = bench.markdown([measured, failed]).splitlines()
    columns = [name.strip() for name in head.split("|")[1:-1]]
    cells = [dict(zip(columns, (c.strip() for c in line.split("|")[1:-1]), strict=True)) for line in lines]
    assert cells[0] == {
        "step": "full", "ms a step": "500.0", "fastest–slowest": "400.0–700.0", "images/s": "64.0",
        "model GFLOP": "3,000.0", "recomputed": "1,000.0", "TFLOP/s": "6", "MFU": "25.0%", "memory MiB": "3,072",
        "compile s": "12.5",
    }  # fmt: skip
    assert cells[1]["ms a step"] == cells[1]["MFU"] == cells[1]["images/s"] == "–"
    assert "processor ms" not in columns


def test_it_needs_no_data_packages():
    """A machine lent for its accelerator has JAX and little else."""
    code = f"""
        import importlib.util, sys
        for name in ("tensorflow_datasets", "pandas", "pyarrow", "grain", "orbax", "PIL", "matplotlib", "clu"):
            sys.modules[name] = None
        spec = importlib.util.spec_from_file_location("benchmark_of_the_step", {str(SCRIPT)!r})
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        assert module.parse([])[1].model.text.vocab_size > 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.slow
def test_measuring_and_profiling(bench, tmp_path, capsys):
    words = ["--vocab-size", "301", "--variants", "contrastive,full", "--rounds", "2", "--steps", "1"]
    words += ["--out", str(tmp_path / "out"), "--profile", str(tmp_path / "trace")]
    assert bench.main([*RUNLOCAL, *words]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "step.json").read_text())
    contrastive, full = content["rows"]
    for row in (contrastive, full):
        assert 0 < row["fastest_seconds"] <= row["seconds"] <= row["slowest_seconds"]
        assert row["images_per_second"] == pytest.approx(24 / row["seconds"])
        assert row["mfu"] is None
        # 175 thousand parameters with two moments and the average, and the batch, at least.
        assert row["memory_bytes"] > 4 * 4 * 150_000
    assert full["memory_bytes"] > contrastive["memory_bytes"]
    assert sum(full["flops"].values()) > sum(contrastive["flops"].values())
    assert content["machine"]["jax"]
    assert (tmp_path / "out" / "step.md").read_text().strip() in printed
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_a_table_of_peers_has_medians_and_says_what_is_missing():
    peers = load_benchmark("peers")
    found = {
        peers.OURS: {"seconds": [0.2, 0.1, 0.4], "processor": [0.3, 0.3, 0.3]},
        "another": {"seconds": [0.5, 0.3, 0.3], "processor": [0.6, 0.5, 0.4]},
        "none": {"missing": "it is not installed"},
    }
    assert peers.table(found).splitlines()[2:] == [
        f"| {peers.OURS} | 200.0 | 100.0–400.0 | 300 | 1.00 |",
        "| another | 300.0 | 300.0–500.0 | 500 | 1.50 |",
        "| none | not run: it is not installed | | | |",
    ]


@pytest.mark.torch
def test_peers_take_turns_on_the_same_sizes(tmp_path, monkeypatch):
    pytest.importorskip("timm_beside_cpu", reason="PyTorch is part of make test-interop")
    (tmp_path / "sitecustomize.py").write_text("import timm_beside_cpu")  # the programs' processes need it, too
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent}")
    peers = load_benchmark("peers")
    words = ["--config", "demo:runlocal", "--rounds", "2", "--steps", "1", "--out", str(tmp_path)]
    programs = [peers.OURS, "PyTorch, same model"]
    assert peers.main([*words, "--programs", *programs]) == 0
    found = json.loads((tmp_path / "peers.json").read_text())["found"]
    assert {name: len(row["seconds"]) for name, row in found.items()} == dict.fromkeys(programs, 2)
    config = peers.read(argparse.Namespace(config="demo:runlocal", batch=0), [])
    ours = sum(p.numel() for p in peers.same_model(config.model)[0].parameters())
    assert ours == _parameters_of_the_encoders(config)


def _parameters_of_the_encoders(config: Any) -> int:
    """Of ours, without what only masked modelling needs: what the same model in PyTorch must have."""
    import jax

    from mmclip_jax.models.mmclip import build_model, init_params

    params = jax.eval_shape(lambda: init_params(build_model(config.model), config.model, 0))
    parts = ("image_encoder", "text_encoder", "image_projection", "text_projection", "log_logit_scale", "logit_bias")
    return sum(leaf.size for leaf in jax.tree.leaves({name: params[name] for name in parts}))
