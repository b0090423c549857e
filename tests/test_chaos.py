"""The chaos benchmark in a short form: kills, a truncated and a flipped checkpoint, signals to one of two processes."""

import pathlib
from types import ModuleType

import pytest
from conftest import load_benchmark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    return load_benchmark("chaos")


def test_one_process_killed_again_and_again(
    chaos: ModuleType, tmp_path: pathlib.Path, phantom_dir: pathlib.Path
) -> None:
    rows = chaos.kill_one_process(tmp_path, phantom_dir, kills=4)
    assert len(rows) == 4 + 2 + 2
    assert {row.what.split()[-1] for row in rows} >= {"truncated", "flipped", "metrics", "resume"}
    assert rows[0].what == "SIGKILL in the first checkpoint"
    assert rows[0].checkpoint == 0
    assert all(row.good for row in rows), chaos.table(rows)


def test_signals_to_one_of_two_processes(chaos: ModuleType, tmp_path: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    rows = chaos.disturb_two_processes(tmp_path, phantom_dir)
    assert [row.what.split(":")[0] for row in rows] == ["SIGTERM to one of two", "SIGKILL to one of two", "the end"]
    assert all(row.good for row in rows), chaos.table(rows)
    assert rows[1].resumed < rows[1].logged  # it fell back, and did some steps again
