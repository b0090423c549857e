"""Files and folders that are whole or not there, whatever happens while they are written."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from mmclip_jax import files


def _content(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def _write(out: pathlib.Path, last: str, content: str, fail: bool = False) -> None:
    with files.whole_folder(out, last) as folder:
        for name in (last, "b", "c"):
            (folder / name).write_text(content)
        if fail:
            raise RuntimeError


def test_a_folder_is_moved_when_its_block_ends(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "deep" / "out"
    for run in ("first", "second"):
        with files.whole_folder(out, "last.json") as folder:
            (folder / "last.json").write_text(run)
            (folder / "page.html").write_text(run)
            assert run == "first" or _content(out)["page.html"] == "first"
        (out / "mine.txt").write_text("kept")
        assert _content(out) == {"last.json": run, "page.html": run, "mine.txt": "kept"}
    with pytest.raises(RuntimeError):
        _write(out, "last.json", "third", fail=True)
    assert _content(out) == {"last.json": "second", "page.html": "second", "mine.txt": "kept"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_last_file_stands_for_all_of_one_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between any two moves: where the last file is, the others are of its run."""
    move, left = os.replace, 0

    def stopped(source: pathlib.Path, target: pathlib.Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        move(source, target)

    for moves in range(3):
        out = tmp_path / str(moves) / "out"
        _write(out, "a.json", "old")
        left = moves
        monkeypatch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            _write(out, "a.json", "new")
        monkeypatch.undo()
        assert not (out / "a.json").exists()


def test_kill_leaves_the_old_results_and_the_next_run_clears_up(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    script = (
        "import pathlib, sys, time\nfrom mmclip_jax import files\n"
        "with files.whole_folder(sys.argv[1], 'results.json') as folder:\n"
        "    (folder / 'results.json').write_text('half')\n    print('there', flush=True)\n    time.sleep(60)\n"
    )
    with files.whole_folder(out, "results.json") as folder:
        (folder / "results.json").write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _content(out) == {"results.json": "old"}
    assert len(list(tmp_path.iterdir())) == 2
    start = time.monotonic()
    with files.whole_folder(out, "results.json") as folder:
        (folder / "results.json").write_text("new")
    assert time.monotonic() - start < 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert _content(out) == {"results.json": "new"}
