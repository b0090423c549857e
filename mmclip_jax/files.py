"""Files that are there whole or not at all, however a process ends."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file beside its place and moves it there; its folder is made if missing."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, path)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str], last: str) -> Iterator[pathlib.Path]:
    """A new, empty folder to write into; what was written is moved into `path` when the block ends without an error.

    Args:
      path: the folder; files of other names that lie there stay.
      last: the file that says that all others are there: its old version goes first, its new one comes last. A reader
        that finds it finds files of one and the same run.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.unfinished"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        yield unfinished
        path.mkdir(exist_ok=True)
        (path / last).unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == last):
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
