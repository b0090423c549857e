"""The attacks of benchmarks/attacks.py in a short form, each kind; and that a failure is one."""

import importlib.util
import sys
from types import ModuleType

import pytest
from conftest import ROOT


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attacks", ROOT / "benchmarks" / "attacks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ATTACKS = _load()
ATTACKS.load()
SLOW = ("damaged checkpoints",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ATTACKS.KINDS]
)
def test_every_kind_is_held(name: str) -> None:
    (row,) = ATTACKS.run([name], short=True)
    assert row.attempts > 5
    assert row.failures == []


def test_a_failure_is_counted_named_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ATTACKS, "KINDS", {})
    monkeypatch.setattr(ATTACKS, "load", lambda: None)

    @ATTACKS.kind("toy", "refused")
    def toy(attacker: object) -> object:
        yield "held", ATTACKS.refused(lambda: int("7"), also=lambda found: found == 7)
        yield "taken", ATTACKS.refused(lambda: int("7"))
        yield "a traceback", ATTACKS.refused(lambda: int("x"))

    assert ATTACKS.main(["--short"]) == 1
    assert "| toy | 3 | 2 | taken: was taken; a traceback: ValueError: invalid" in capsys.readouterr().out
