"""A short form of benchmarks/fuzz.py: nothing but a UserError comes out of the readers, and what is built is whole."""

import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from conftest import load_benchmark

from mmclip_jax.data.builders import registry


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    return load_benchmark("fuzz")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("PNG", 200), ("JPEG", 200), ("TIFF", 100), ("DICOM", 100), ("CSV", 25), ("XML", 25), ("ZIP", 25)),
        *((name, 25) for name in registry.COLLECTIONS),
    ],
)
def test_damaged_inputs(fuzz: ModuleType, name: str, count: int) -> None:
    target = fuzz.TARGETS[name]
    seeds = target.seeds()
    assert {fuzz.outcome(target.function, seed) for seed in seeds} == {"accepted"}
    found = Counter(fuzz.outcome(target.function, target.damaged(seeds, name, 5, number)) for number in range(count))
    assert set(found) == {"accepted", "refused"}


TOY = """
import os, signal, sys, time, warnings, zlib
import fuzz

def function(data):
    match zlib.crc32(data) % 5 if data != b"good" * 50 else 4:
        case 0:
            raise KeyError
        case 1:
            warnings.warn("loud")
        case 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case 3:
            time.sleep(30)

fuzz.TARGETS["toy"] = fuzz.Target(lambda: [b"good" * 50], function)
fuzz.SECONDS = 0.3
sys.exit(fuzz.main(["--count", "20", "--seed", "1", "--only", "toy"]))
"""


def test_the_fuzzer_reports_what_goes_wrong(fuzz: ModuleType) -> None:
    expected: Counter[str] = Counter()
    for number in range(20):
        kind = zlib.crc32(fuzz.mutated([b"good" * 50], "toy", 1, number)) % 5
        expected[("other error", "warning", "crash", "hang", "accepted")[kind]] += 1
    assert len(expected) == 5
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])}
    done = subprocess.run([sys.executable, "-c", TOY], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:8] == ["toy", "20", *(str(expected[column]) for column in fuzz.COLUMNS)]
    assert len(lines) == 2 + 20 - expected["accepted"]
