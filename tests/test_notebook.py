"""The notebook as it lies in the repository; `make test-notebook` executes it."""

import ast
import json
import pathlib
import re
from typing import Any

FILE = pathlib.Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_it_is_small_and_its_code_is_python() -> None:
    assert FILE.stat().st_size < 500_000
    for cell in CELLS:
        if cell["cell_type"] == "code":
            ast.parse(re.sub(r"^( *)!.*$", r"\1pass", source(cell), flags=re.MULTILINE))


def test_no_cell_ended_with_an_error() -> None:
    outputs = [output for cell in CELLS for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_it_names_no_place_of_a_machine() -> None:
    assert not re.search(r'[" ](/home|/root|/tmp|/work)/', FILE.read_text(encoding="utf-8"))


def test_its_links_lead_somewhere() -> None:
    links = [
        link for cell in CELLS if cell["cell_type"] == "markdown" for link in re.findall(r"\]\(([^)#]+)", source(cell))
    ]
    assert len(links) == 4
    assert all((FILE.parent / link).exists() for link in links)
