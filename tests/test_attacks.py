"""The attacks of benchmarks/attacks.py in a short form, each kind; and that a failure is one."""

import pathlib
from types import ModuleType

import pytest
from conftest import load_benchmark


def _load() -> ModuleType:
    return load_benchmark("attacks")


ATTACKS = _load()
ATTACKS.load()
SLOW = ("damaged checkpoints", "leftovers of a first checkpoint, folders that go", "other locales", "interrupts")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ATTACKS.KINDS]
)
def test_every_kind_is_held(name: str) -> None:
    (row,) = ATTACKS.run([name], short=True)
    assert row.attempts > (2 if name in SLOW else 5)
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
        raise RuntimeError("of the attack")

    assert ATTACKS.main(["--short"]) == 1
    assert "| toy | 4 | 3 | taken: was taken; a traceback: ValueError: invalid" in capsys.readouterr().out


def test_the_table_takes_the_place_of_the_old_one(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(ATTACKS, "PAGE", page)
    page.write_text("before\n<!-- attacks -->\n<!-- end -->\nafter\n")
    for text in ("one\ntwo", "three"):
        ATTACKS.write(text)
        assert page.read_text() == f"before\n<!-- attacks -->\n{text}\n<!-- end -->\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place"):
        ATTACKS.write("x")
