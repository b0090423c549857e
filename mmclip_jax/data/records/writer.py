"""Building a data set: `build` runs a builder, and puts what it wrote in its place in one move."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmclip_jax import files
from mmclip_jax.data import unfinished as unfinished_lib
from mmclip_jax.data.records.builder import RecordsBuilder
from mmclip_jax.data.records.facts import FACTS_FILE, Census, facts_text
from mmclip_jax.data.records.parallel import progress_bar
from mmclip_jax.data.records.tfds import write_splits
from mmclip_jax.data.schema import SPLITS, Example, to_features
from mmclip_jax.errors import UserError

_LOCK_FILE = "lock"


def build(
    builder: RecordsBuilder, *, overwrite: bool = False, progress: bool = False, make: "Make | None" = None
) -> pathlib.Path:
    """Writes a data set and returns its version directory. The result depends on the builder's examples alone.

    If the directory exists already: with `overwrite` it is replaced once the new one is complete; else, if the builder
    has a `recipe` and the existing directory was made by the same one, it is returned as it is.

    Args:
      builder: what to build.
      overwrite: see above.
      progress: whether to show bars.
      make: how the examples become files; default: in this process. `builders.beam` has another way.

    Raises:
      UserError: the directory exists (and none of the above holds), there are no examples, two examples share an id, or
        a patient is in two splits; the name of a folder cannot be read back later (`files.check_name`).
    """
    path = builder.path
    files.check_name(path)
    recipe = builder.recipe()
    recipe_json = None if recipe is None else json.loads(json.dumps(recipe, sort_keys=True))
    if path.exists() and not overwrite:
        if recipe_json is not None and _recipe_of(path) == recipe_json:
            return path
        raise UserError(f"{path} exists already: choose another name or directory, or replace it with --overwrite")
    builder.data_dir.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(builder) as scratch:
        extra = scratch / "extra"
        extra.mkdir()
        written, facts = (make or _make)(builder, scratch, extra, progress)
        facts |= {"name": builder.name, "version": builder.VERSION, "recipe": recipe_json}
        for file in extra.iterdir():
            shutil.move(file, written / file.name)
        (written / FACTS_FILE).write_text(facts_text(facts), encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, scratch / "replaced")
        os.replace(written, path)
    builder.done()
    return path


@contextlib.contextmanager
def _scratch_folder(builder: RecordsBuilder) -> Iterator[pathlib.Path]:
    """A folder for this build alone, which only its owner may read; those that killed builds left are removed.

    A living build holds a lock in its folder, which ends with its process.
    """
    prefix = f".building-{builder.name}-"
    for left in builder.data_dir.iterdir():
        if left.name.startswith(prefix) and not left.is_symlink():
            with contextlib.suppress(OSError), open(left / _LOCK_FILE, "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=builder.data_dir) as name:
        folder = pathlib.Path(name)
        with open(folder / _LOCK_FILE, "ab") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can tell, nothing is removed
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder


def _recipe_of(directory: pathlib.Path) -> Any:
    file = directory / FACTS_FILE
    return files.read_json(file, "replace the data set with --overwrite").get("recipe") if file.exists() else None


Make = Callable[[RecordsBuilder, pathlib.Path, pathlib.Path, bool], tuple[pathlib.Path, dict[str, Any]]]
"""Takes a builder, a scratch folder, one for the builder's own files, and whether to show bars; gives the version
directory that it wrote in the scratch folder, and the facts."""


def _make(
    builder: RecordsBuilder, scratch: pathlib.Path, extra: pathlib.Path, progress: bool
) -> tuple[pathlib.Path, dict[str, Any]]:
    files, census = _spool(builder, scratch / "spool", progress)
    facts = {**census.facts(), **builder.finish(extra)}
    if not files:
        raise UserError(f"{builder.name}: the builder gave no examples, nothing was written")
    with progress_bar(f"writing {builder.name}", lambda: facts["examples"], progress) as advance:
        return _write_with_tfds(builder, files, scratch / "out", advance), facts


def _spool(
    builder: RecordsBuilder, directory: pathlib.Path, progress: bool
) -> tuple[dict[str, pathlib.Path], "Census"]:
    """Runs the builder once; examples go to one temporary file per TFDS split.

    TFDS wants to know its splits, and that none is empty, before the first example is made.
    """
    directory.mkdir()
    census = Census(builder.name)
    files: dict[str, pathlib.Path] = {}
    with contextlib.ExitStack() as stack:
        streams: dict[str, Any] = {}
        advance = stack.enter_context(progress_bar(f"reading {builder.name}", builder.total, progress))
        for split in SPLITS:
            for example in builder.examples(split):
                census.add(example)
                if example.split != split:
                    raise ValueError(f"{example.id}: examples({split!r}) gave an example of split {example.split!r}")
                name = f"{split}_{example.part}"
                if name not in streams:
                    files[name] = directory / f"{name}.spool"
                    streams[name] = stack.enter_context(open(files[name], "wb"))
                unfinished_lib.write(streams[name], *unfinished_lib.example_parts(example))
                advance()
    return files, census


def _read_spool(file: pathlib.Path) -> Iterator[Example]:
    with open(file, "rb") as stream:
        for values, pictures in unfinished_lib.read(stream):
            yield unfinished_lib.example_of(values, pictures)


def _write_with_tfds(
    builder: RecordsBuilder, files: Mapping[str, pathlib.Path], data_dir: pathlib.Path, advance: Callable[[], object]
) -> pathlib.Path:
    """Has TFDS write the spooled examples under `data_dir`; returns the version directory. Calls `advance` for each."""

    def generate(file: pathlib.Path) -> Iterator[tuple[str, Any]]:
        for example in _read_spool(file):
            yield example.id, to_features(example)
            advance()

    return write_splits(builder, {name: generate(file) for name, file in sorted(files.items())}, data_dir)
