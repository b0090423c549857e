"""A short form of benchmarks/fuzz.py: nothing but a UserError comes out of the readers, and what is built is whole."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "count"), [("PNG", 200), ("JPEG", 200), ("DICOM", 100), ("CSV", 25), ("XML", 25)])
def test_mutated_inputs(
    fuzz: ModuleType, name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = list(fuzz.outcomes(name, count, seed=1))
    assert len(outcomes) == count
    assert outcomes.count("refused") > count // 4, "the mutations do something"


def test_inputs_are_valid_before_they_are_mutated(fuzz: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(fuzz.picture("PNG"))
    for make, run in fuzz.TARGETS.values():
        for data in make():
            run(data, tmp_path)
