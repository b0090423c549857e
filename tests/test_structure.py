"""The script that measures the package's structure, on a package whose figures are counted by hand."""

import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, load_benchmark


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    return load_benchmark("structure")


def test_a_small_package_is_counted(structure: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "mmclip_jax"
    for room in ("models", "train"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
    (package / "train" / "run.py").write_text("from mmclip_jax.models import net\n" + "\n" * 500)
    (package / "models" / "net.py").write_text(
        textwrap.dedent(
            '''
            from typing import Any
            def apply(x: Any, *more: dict[str, Any], last: "Any" = 0) -> int:
                """Said."""
                from mmclip_jax.train import run
            def _hidden(x: Any) -> Any: ...
            class Net:
                def __init__(self, x: Any): ...
                def bare(self): ...
            class _Own:
                def f(self, x: Any): ...
            def long():
            '''
        )
        + "    pass\n" * 60
    )
    assert structure.measure(tmp_path) == {
        "modules": "4",
        "lines": "573",
        "modules of more than 500 lines": "1",
        "lines of the longest module": "501",
        "functions": "6",
        "functions of more than 60 lines": "1",
        "`Any` in signatures of public functions": "4",
        "public functions with a docstring": "33%",
        "imports that run back up": "1",
    }
    assert structure.arrows_up(structure.modules(tmp_path)) == [("models.net", "train.run")]


def test_every_module_of_the_package_stands_in_a_room(structure: ModuleType) -> None:
    found = structure.modules(ROOT)
    assert [module for module in found if module != "__init__" and structure.level(module) is None] == []
