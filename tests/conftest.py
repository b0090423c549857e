"""Shared fixtures. Eight CPU devices stand in for a pod; implicit rank promotion is an error."""

import collections
import importlib.util
import os
import pathlib
import sys
from types import ModuleType
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Property tests take the same examples on every run, however slow the machine is. `make test-random` draws new ones.
_CHECKS = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
_UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": _CHECKS}
hypothesis.settings.register_profile("repeatable", derandomize=True, **_UNTIMED)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True, **_UNTIMED)
hypothesis.settings.load_profile("repeatable")

ROOT = pathlib.Path(__file__).resolve().parents[1]


def load_benchmark(name: str) -> ModuleType:
    """The script benchmarks/NAME.py as a module, which its other scripts find by that name, too."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests come first, so that no process is left alone with one of them at the end."""
    tests = collections.Counter(item.path for item in items)
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path] / tests[item.path])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says in one line how many tests were skipped and why, by reason: nobody should think that they had passed."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(_reason(report) for report in skipped)
    if reasons:
        told = "; ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
        terminalreporter.write_line(f"not run: {told}")


def _reason(report: Any) -> str:
    place = report.longrepr
    return str(place[2] if isinstance(place, tuple | list) else place).removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small phantom data set, built once a test process."""
    from mmclip_jax.data.builders.phantom import small_phantom
    from mmclip_jax.data.records import build

    return build(small_phantom(tmp_path_factory.mktemp("phantom")))


@pytest.fixture(scope="session")
def wheel_dir() -> pathlib.Path:
    """torchxrayvision/data out of the wheel torchxrayvision==1.5.7 (`make wheel-data` unpacks it)."""
    folder = pathlib.Path(
        os.environ.get("MMCLIP_TXRV_WHEEL_DIR", ROOT / "data" / "wheels" / "torchxrayvision" / "data")
    )
    if not (folder / "NLMCXR_reports.tgz").exists():
        pytest.skip(f"the real tables are not there ({folder}); `make wheel-data` fetches them")
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder of real images named by MMCLIP_REAL_DATA."""
    folder = pathlib.Path(os.environ.get("MMCLIP_REAL_DATA", ROOT.parent / "shared" / "data" / "real"))
    if not folder.exists():
        pytest.skip(f"no folder of real images at {folder}; MMCLIP_REAL_DATA names one")
    return folder
