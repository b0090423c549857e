"""Worker processes and shared memory end with their trainer; a worker that dies is named."""

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

from mmclip_jax import processes
from mmclip_jax.data import workers
from mmclip_jax.errors import LostWorkerError, TrainingError

# A pipeline of two workers whose batches lie in shared memory; says who they are and waits, or asks for a batch.
PIPELINE = """
import json, multiprocessing, pathlib, sys, time

def make_row(element, rng):
    import numpy as np
    return {"x": np.zeros(100_000, np.uint8)}

if __name__ == "__main__":
    from mmclip_jax.data import pipeline

    class Rows:
        def __len__(self):
            return 64
        def __getitem__(self, number):
            return number

    iterator = pipeline.make_row_iterator(
        Rows(), make_row, [""] * 64, batch=8, seed=0, process_index=0, process_count=1, threads=1, workers=2
    )
    next(iterator)
    print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
    sys.stdin.readline()
    while True:
        next(iterator)
"""


def blocks(pid: int) -> list[str]:
    return [name for name in os.listdir(workers.FOLDER) if f"-{pid}-" in name]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["trainer", "trainer, workers and tracker", "worker"])
def test_kill_leaves_no_worker_and_no_shared_memory(tmp_path: pathlib.Path, how: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(PIPELINE)
    process = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    children = json.loads(process.stdout.readline())
    assert len(children) == 2
    owners = [processes.of(pid) for pid in children]
    assert blocks(process.pid)
    if how == "worker":
        os.kill(children[0], signal.SIGKILL)
        _, err = process.communicate("go\n", timeout=60)
        assert "LostWorkerError: a worker process that prepares batches was ended by SIGKILL" in err
    elif how == "trainer":
        process.kill()
        process.communicate(timeout=60)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert workers.remove_blocks() > 0  # what the next start does
    # Their output is closed when they are gone, and `communicate` waits for that: nothing is left to wait for.
    assert all(owner.is_gone for owner in owners)
    assert blocks(process.pid) == []


def test_blocks_of_the_living_and_of_others_stay(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FOLDER", tmp_path)
    alive = processes.this_process()
    dead = dataclasses.replace(alive, started=1)
    elsewhere = dataclasses.replace(dead, place="0123abcd")
    for owner in (alive, dead, elsewhere):
        (tmp_path / f"mmclip-{owner.word}-00000000").touch()
    for name in ("psm_12345678", f"other-{dead.word}-00000000", "mmclip-", "mmclip-a-b-c"):
        (tmp_path / name).touch()
    assert workers.remove_blocks() == 1
    assert not (tmp_path / f"mmclip-{dead.word}-00000000").exists()
    assert len(list(tmp_path.iterdir())) == 6
    assert workers.remove_blocks(alive) == 1
    assert len(list(tmp_path.iterdir())) == 5


def died(code: int) -> RuntimeError:
    return RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. Search the logs above")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (died(-9), LostWorkerError, "ended by SIGKILL; the machine may have run out of memory"),
        (died(-11), LostWorkerError, "ended by SIGSEGV"),
        (died(3), LostWorkerError, "ended with status 3"),
        # Writing into a block that the file system has no room for is a bus error.
        (died(-7), TrainingError, "/dev/shm is full .*--shm-size"),
        (OSError(errno.ENOSPC, "No space left on device", "/psm_1"), TrainingError, "/dev/shm is full"),
    ],
)
def test_what_ends_a_worker_is_named(error: Exception, kind: type[Exception], words: str) -> None:
    found = workers.named(error)
    assert type(found) is kind
    with pytest.raises(kind, match=words):
        raise found


def test_other_errors_stay_as_they_are() -> None:
    for error in (RuntimeError("other"), OSError(errno.ENOENT, "no")):
        assert workers.named(error) is error
