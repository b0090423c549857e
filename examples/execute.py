"""Executes examples/quickstart.ipynb, and writes it with what it showed.

    python examples/execute.py [--out FILE.ipynb] [--folder DIR]

The notebook runs in DIR (default: an empty folder that is deleted afterwards): a run of the demo that lies there, in
runs/demo, is taken; otherwise the notebook makes a short one. Needs requirements-notebook.txt.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def execute(folder: Path, out: Path) -> None:
    """Runs all cells in the folder; an error in one of them is raised."""
    import nbformat
    from nbclient import NotebookClient

    # The commands of the notebook are those of this interpreter's environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ each time
    nbformat.write(notebook, out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=NOTEBOOK, help="default: the notebook itself")
    parser.add_argument("--folder", type=Path, help="where it runs")
    options = parser.parse_args()
    if options.folder:
        execute(options.folder, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        execute(Path(folder), options.out)


if __name__ == "__main__":
    main()
