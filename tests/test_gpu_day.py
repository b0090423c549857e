"""The benchmark for the day of a GPU: its ratios, and that what fails is said."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, load_benchmark

from mmclip_jax.models import attention


@pytest.fixture(scope="module")
def day() -> ModuleType:
    load_benchmark("step")  # which it imports as a neighbour
    return load_benchmark("gpu_day")


def _run(out: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_day.py"), "--small", "--out", str(out), *words]
    settings = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


def test_ratios_say_how_much_faster_ours_is(day: ModuleType) -> None:
    work = {"image_encoder": 60e12, "text_encoder": 20e12, "recompute": 40e12}
    found: dict[str, Any] = {
        "equality": {"passed": False, "form": "cudnn"},
        "ceiling": {"TFLOP/s": 800.0},
        "full": {"rows": [{"name": "full", "seconds": 0.2, "flops": work, "memory_bytes": 9e9}]},
        "contrastive": {"rows": [{"name": "contrastive", "seconds": 0.125, "flops": work, "memory_bytes": None}]},
        "remat": {"rows": [{"name": "full", "seconds": None, "flops": work, "memory_bytes": None}]},
        "open_clip": {"seconds": 0.25, "peak_bytes_in_use": 12e9},
        "transformers": {"failed": "transformers is not installed"},
        "pipeline": {"rows/s": 1234.5},
    }
    assert day.summary(found) == [
        ("attention by cudnn against the plain form", "DIFFERS", "within 0.04"),
        ("bfloat16 products", "800 TFLOP/s", ""),
        ("step, full", "200.0 ms", ""),
        ("  memory", "9.0 GB", ""),
        ("  of the measured ceiling", "50%", "at least 50 %"),  # what is computed again is no work
        ("step, contrastive", "125.0 ms", ""),
        ("  of the measured ceiling", "80%", ""),
        ("step, remat", "not measured: it does not fit into the device's memory", ""),
        ("contrastive step, open_clip / ours", "2.00", "at least 1.3"),
        ("input pipeline", "1,234 rows/s", ""),
        ("transformers", "not measured: transformers is not installed", ""),
    ]


def test_parts_run_in_small(tmp_path: Path) -> None:
    done = _run(tmp_path, "--parts", "equality,ceiling")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_day.json").read_text())
    assert list(found) == ["equality", "ceiling"]
    assert found["equality"]["passed"]
    assert found["ceiling"]["TFLOP/s"] > 0
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        f"attention by {found['equality']['form']} against the plain form",
        "bfloat16 products",
    ]


def test_the_default_parts_take_less_than_ten_minutes(day: ModuleType) -> None:
    assert sum(day.LIMITS[part] for part in day.DEFAULT) < 580
    assert set(day.LIMITS) == set(day.PARTS)


def test_memory_is_compared_where_both_are_known(day: ModuleType) -> None:
    row = {"name": "contrastive", "seconds": 0.1, "flops": {}, "memory_bytes": 8e9}
    found: dict[str, Any] = {
        "contrastive": {"rows": [row]},
        "transformers": {"seconds": 0.1, "peak_bytes_in_use": 12e9},
    }
    assert ("memory, transformers / ours", "1.50", "above 1") in day.summary(found)


def test_the_steps_are_what_they_are_called(day: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(config: Any, variant: str) -> dict[str, Any]:
        return {"asked": (variant, config.model.remat, config.model.unroll)}

    monkeypatch.setattr(day, "_step", asked)
    found = {part: day.PARTS[part](True)["asked"] for part in ("full", "contrastive", "remat")}
    assert found == {
        "full": ("full", False, True),
        "contrastive": ("contrastive", False, True),
        "remat": ("full", True, False),
    }


def test_a_part_that_there_is_not_is_told_first(tmp_path: Path) -> None:
    done = _run(tmp_path, "--parts", "ceiling,stepp")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gpu_day.py: error: there is no part stepp; there are: equality,")
    assert not list(tmp_path.iterdir())


def test_attention_that_reads_padding_does_not_pass(day: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attention.attend

    def attend(form: str, query: Any, key: Any, value: Any, valid: Any, want: bool) -> Any:
        return whole(form, query, key, value, valid if form == attention.PLAIN else None, want)

    monkeypatch.setattr(attention, "attend", attend)
    found = day.equality(True)
    assert not found["passed"]
    assert max(value for name, value in found.items() if name.startswith("self/")) <= day.TOLERANCE
    assert min(value for name, value in found.items() if name.startswith("padded/")) > day.TOLERANCE


def test_what_could_not_be_checked_is_no_success(tmp_path: Path) -> None:
    done = _run(tmp_path, "--parts", "equality,ceiling", JAX_PLATFORMS="nonsense")
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        f"{part:<52}not measured" for part in ("equality", "ceiling")
    ]
    assert "nonsense" in done.stdout
