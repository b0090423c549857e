"""One process at a time in a folder, whatever ended the one before; unfinished files of others stay."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from mmclip_jax import files, locks, processes
from mmclip_jax.errors import TrainingError, UserError

HOLD = (
    "import sys, time\nfrom mmclip_jax import locks\n"
    "with locks.held(sys.argv[1], 'mmclip train'):\n    print('there', flush=True)\n    time.sleep(600)\n"
)


def holder(folder: pathlib.Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    return process


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_told_who_is_there_and_kill_leaves_no_block(tmp_path: pathlib.Path) -> None:
    process = holder(tmp_path)
    try:
        for _ in range(2):  # also after it was refused once
            with pytest.raises(UserError) as refused, locks.held(tmp_path, "mmclip train"):
                pass
            words = f"in use: mmclip train, process {process.pid} on {processes.this_process().host}"
            assert words in str(refused.value)
    finally:
        kill(process)
    with locks.held(tmp_path, "mmclip train") as lock:
        assert lock is not None
        lock.check()
        assert names(tmp_path) == [locks.LOCK_FILE]
    assert names(tmp_path) == []


def test_one_process_may_take_a_folder_again_but_not_twice(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with locks.held(tmp_path / "new" / "run", "a"), pytest.raises(UserError, match="in use: a, process"):
            locks.Lock(tmp_path / "new" / "run", "b")
    with pytest.raises(RuntimeError), locks.held(tmp_path, "a"):
        raise RuntimeError
    with locks.held(tmp_path, "a"):
        pass


def write_lock(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    owner = dataclasses.asdict(processes.this_process()) | changes
    file = folder / locks.LOCK_FILE
    file.write_text(json.dumps({"owner": owner, "what": "mmclip train", "mark": "m"}))
    return file


@pytest.mark.parametrize("change", [{"pid": 2**22 + 5}, {"started": 1}])
def test_a_process_that_is_gone_holds_nothing(tmp_path: pathlib.Path, change: dict[str, int]) -> None:
    """Its number is free, or another process has it now."""
    write_lock(tmp_path, **change)
    with locks.held(tmp_path, "b"):
        pass


def test_a_holder_elsewhere_counts_while_it_touches_its_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared file system: its process cannot be seen, its touches can."""
    file = write_lock(tmp_path, host="node7", place="0123abcd", pid=os.getpid())
    seconds = 0.0

    def pass_time(pause: float) -> None:
        nonlocal seconds
        seconds += pause
        if touches and seconds > 40:  # as late as a file server may show it
            os.utime(file, (seconds, seconds))

    monkeypatch.setattr("time.monotonic", lambda: seconds)
    monkeypatch.setattr("time.sleep", pass_time)
    touches = True
    with pytest.raises(UserError, match=f"process {os.getpid()} on node7"):
        locks.Lock(tmp_path, "b")
    touches, seconds = False, 0.0
    with locks.held(tmp_path, "b"):
        assert 60 < seconds < 120  # longer than NFS may hide a touch


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": 3, "what": 1, "mark": 2}'])
def test_a_lock_that_cannot_be_read_blocks_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / locks.LOCK_FILE).write_text(content)
    monkeypatch.setattr(locks, "_STALE_SECONDS", 0.01)
    with locks.held(tmp_path, "b"):
        pass


def test_where_there_are_no_hard_links(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(os, "link", none)
    with locks.held(tmp_path, "a"), pytest.raises(UserError, match="in use: a"):
        locks.Lock(tmp_path, "b")
    assert names(tmp_path) == []


@pytest.mark.parametrize("how", ["moved", "removed", "taken over"])
def test_a_holder_notices_that_its_folder_is_gone(tmp_path: pathlib.Path, how: str) -> None:
    folder = tmp_path / "run"
    with locks.held(folder, "mmclip train") as lock:
        assert lock is not None
        if how == "moved":
            folder.rename(tmp_path / "elsewhere")
        elif how == "removed":
            (folder / locks.LOCK_FILE).unlink()
            folder.rmdir()
        else:
            write_lock(folder, pid=7)
        words = (
            "taken over by mmclip train, process 7" if how == "taken over" else "moved or removed while mmclip train"
        )
        with pytest.raises(TrainingError, match=words):
            lock.check()
    assert (folder / locks.LOCK_FILE).exists() == (how == "taken over")  # it is not ours to remove


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: pathlib.Path) -> None:
    """Also where one folder's name begins like another's: eval and eval.b."""
    alive = processes.this_process()
    dead = dataclasses.replace(alive, started=1)
    elsewhere = dataclasses.replace(dead, place="0123abcd")
    for owner in (alive, dead, elsewhere):
        for name in ("eval", "eval.b"):
            (tmp_path / f".{name}.{owner.word}.00000000.unfinished").mkdir()
    (tmp_path / ".eval.mine.unfinished").mkdir()
    before = set(names(tmp_path))
    with files.whole_folder(tmp_path / "eval", "last") as folder:
        (folder / "last").write_text("x")
    assert before - set(names(tmp_path)) == {f".eval.{dead.word}.00000000.unfinished"}
    files.remove_leftovers(tmp_path)
    assert before - set(names(tmp_path)) == {f".{name}.{dead.word}.00000000.unfinished" for name in ("eval", "eval.b")}


def test_two_writers_of_one_folder_both_finish_and_nothing_is_mixed(tmp_path: pathlib.Path) -> None:
    with files.whole_folder(tmp_path / "eval", "last") as one, files.whole_folder(tmp_path / "eval", "last") as other:
        for folder, content in ((one, "first"), (other, "second")):
            for name in ("last", "page"):
                (folder / name).write_text(content)
    assert {path.name: path.read_text() for path in (tmp_path / "eval").iterdir()} == {"last": "first", "page": "first"}
    assert names(tmp_path) == ["eval"]


@pytest.mark.parametrize("character", ["[", "]", "*", "?", "\\", "\n", "\x7f", "\udcff"])
@pytest.mark.parametrize("where", ["last", "parent", "current directory"])
def test_names_that_libraries_take_for_patterns_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, character: str, where: str
) -> None:
    path = f"a{character}b" if where == "last" else f"a{character}b/run"
    if where == "current directory":
        (tmp_path / f"a{character}b").mkdir()
        monkeypatch.chdir(tmp_path / f"a{character}b")
        path = "run"
    with pytest.raises(UserError, match="in its name"):
        files.locate(path)
    with pytest.raises(UserError, match="in its name"):
        locks.Lock(path, "a")


@pytest.mark.parametrize(
    "name", ["a b", "ünï", "日本", "a'b", "a#b", "a%41b", "a@2", "a{b}", "$HOME", "a:b", "-dash", "a~b"]
)
def test_other_names_are_not(name: str) -> None:
    assert str(files.locate(name)) == name
