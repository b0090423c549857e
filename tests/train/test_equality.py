"""Ten updates are the same on one device, on eight in three meshes, and in two processes of two devices each."""

import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import ten_steps
import tiny
from conftest import ROOT

from mmclip_jax import sharding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_device() -> tuple[dict[str, Any], list[Any]]:
    return ten_steps.run(sharding.make_mesh(1, jax.devices()[:1]))


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    # Masks first: one that differs by rounding would explain all the rest.
    for number, (mine, other) in enumerate(zip(got["masks"], expected["masks"], strict=True), 1):
        for part in other:
            np.testing.assert_allclose(mine[part].pop("response"), other[part]["response"], atol=ten_steps.MARGIN / 4)
            chosen = {name: values for name, values in other[part].items() if name != "response"}
            assert tiny.largest_difference(mine[part], chosen) == 0, (number, part)
    np.testing.assert_allclose(got["losses"], expected["losses"], atol=1e-5)
    for name in ("gradients", "params", "ema", "opt_state"):
        assert tiny.largest_difference(got[name], expected[name]) < 1e-5, name


def test_ten_updates_move_the_parameters(one_device: tuple[dict[str, Any], list[Any]]) -> None:
    """Else equality would say nothing."""
    results, _ = one_device
    moved = tiny.largest_difference(results["params"], tiny.model_and_params(ten_steps.config())[1])
    assert moved > 1e-3
    assert len(set(results["losses"])) == ten_steps.STEPS
    first, last = results["masks"][0]["paired"]["masked"], results["masks"][-1]["paired"]["masked"]
    assert (first != last).any()


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_eight_devices(one_device: tuple[dict[str, Any], list[Any]], fsdp: int) -> None:
    expected, batches = one_device
    assert_same(ten_steps.run(sharding.make_mesh(fsdp, jax.devices()[:8]), batches)[0], expected)


def test_two_processes_of_two_devices(one_device: tuple[dict[str, Any], list[Any]], tmp_path: pathlib.Path) -> None:
    expected, batches = one_device
    given = np.empty(len(batches), object)
    given[:] = batches
    np.save(tmp_path / "batches.npy", given, allow_pickle=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [
        sys.executable,
        str(ROOT / "tests/ten_steps.py"),
        str(tmp_path / "batches.npy"),
        str(tmp_path / "out.npy"),
    ]
    both = [
        subprocess.Popen([*command, address, number], env=env, cwd=ROOT, text=True, stderr=subprocess.PIPE)
        for number in "01"
    ]
    for process in both:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    leaves = np.load(tmp_path / "out.npy", allow_pickle=True).tolist()
    assert_same(jax.tree.unflatten(jax.tree.structure(expected), leaves), expected)
