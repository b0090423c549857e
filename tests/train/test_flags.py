"""The compiler's flags: which a run gets, and what becomes of those that a compiler refuses."""

from typing import Any

import jax
import pytest
from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.train import flags

pytestmark = pytest.mark.compiles
KNOWN, UNKNOWN = "xla_cpu_enable_fast_math", "xla_no_such_flag"


def settings(**changes: Any) -> ConfigDict:
    return ConfigDict({"platform_flags": True, "compiler_options": ""} | changes)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table for this machine's platform."""
    chosen = (
        flags.Flag("cpu", KNOWN, False, "to see"),
        flags.Flag("cpu", UNKNOWN, True, "to see"),
        flags.Flag("cpu", "xla_backend_optimization_level", "1", "to see", deviceless=True),
    )
    monkeypatch.setattr(flags, "FLAGS", chosen)


def test_the_table_says_why_and_names_each_option_once() -> None:
    assert all(flag.reason for flag in flags.FLAGS)
    assert len({(flag.platform, flag.name) for flag in flags.FLAGS}) == len(flags.FLAGS)
    assert {flag.platform for flag in flags.FLAGS} == {"tpu", "gpu"}
    assert flags.deviceless("gpu") == {"xla_gpu_enable_triton_gemm": False}
    assert flags.deviceless("tpu") == {}


@pytest.mark.usefixtures("table")
def test_what_the_compiler_refuses_is_left_out_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging, "log_first_n", lambda level, text, n, *args: said.append(text % args))
    mesh = sharding.make_mesh(1, jax.devices()[:2])
    assert flags.step_options(settings(), mesh) == {KNOWN: False}
    assert said == [f"this compiler does not know {UNKNOWN}: compiled without"]


@pytest.mark.usefixtures("table")
def test_settings_override_the_table() -> None:
    mesh = sharding.make_mesh(1, jax.devices()[:2])
    given = f"{KNOWN}=true {UNKNOWN}=1"
    assert flags.step_options(settings(compiler_options=given), mesh) == {KNOWN: True, UNKNOWN: "1"}
    assert flags.step_options(settings(platform_flags=False), mesh) == {}


@pytest.mark.usefixtures("table")
def test_a_single_device_has_none() -> None:
    assert flags.step_options(settings(), sharding.make_mesh(1, jax.devices()[:1])) == {}


def test_a_cpu_has_none() -> None:
    assert flags.step_options(settings(), sharding.make_mesh(1, jax.devices()[:2])) == {}
