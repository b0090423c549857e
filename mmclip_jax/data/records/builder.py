"""What the builder of a data set gives."""

import os
import pathlib
from collections.abc import Iterator, Mapping

from mmclip_jax.data.schema import Example


class RecordsBuilder:
    """What a data set's builder gives: a name, a version and its examples, split by split.

    A subclass sets `name` (snake_case: the directory's name) and, if the meaning of its records changes, `VERSION`, and
    overrides `examples`. `recipe` may return the options that determine the result; see `build`.
    """

    name: str = ""
    VERSION: str = "1.0.0"
    description: str = ""
    citation: str = ""

    def __init__(self, data_dir: str | os.PathLike[str]):
        self.data_dir = pathlib.Path(data_dir).expanduser()

    @property
    def path(self) -> pathlib.Path:
        """The version directory that `build` writes: DATA_DIR/name/version."""
        return self.data_dir / self.name / self.VERSION

    def examples(self, split: str) -> Iterator[Example]:
        """Yields the examples of `split`, paired and unpaired in any order; the order does not matter to the result."""
        raise NotImplementedError

    def total(self) -> int | None:
        """How many examples all splits will yield, where known beforehand (only shown as progress)."""
        return None

    def recipe(self) -> Mapping[str, object] | None:
        """Everything that determines the result, as JSON; None if something outside (a user's files) does too."""
        return None

    def finish(self, directory: pathlib.Path) -> Mapping[str, object]:
        """Called once after the last example: may refuse the whole (raise), or write files into `directory`.

        What it returns is added to the facts.
        """
        return {}

    def done(self) -> None:
        """Called once the data set is complete and in its place: what was kept for a restart can go."""
