"""`mmclip evaluate` with a model whose answers are kept: `python answers.py FILE evaluate ...`.

Where there is no FILE, what the model answers is written there, in order. Where there is one, the answers come from it
and the model is not asked; that each question is the one that was answered is checked.
"""

import hashlib
import pathlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import mmclip_jax
from mmclip_jax import cli

METHODS = ("encode_image", "encode_text", "response_maps", "attmim", "restore")


def digest(name: str, question: Any) -> str:
    """Of the arguments of a call: arrays by shape and bytes, all else as printed."""
    found = hashlib.sha256(name.encode())

    def add(item: Any) -> None:
        if isinstance(item, list | tuple):
            found.update(f"{len(item)} items".encode())
            for part in item:
                add(part)
        elif isinstance(item, np.ndarray):
            found.update(f"{item.dtype}{item.shape}".encode() + item.tobytes())
        else:
            found.update(repr(item).encode())

    add(question)
    return found.hexdigest()


class Kept:
    """A model, but for its answers; `given` holds (digest, answer) of each call so far, or of all to come."""

    def __init__(self, model: Any, given: list[tuple[str, Any]], ask: bool):
        self._model, self._given, self._ask, self._calls = model, given, ask, 0

    def __getattr__(self, name: str) -> Any:
        return self._method(name) if name in METHODS else getattr(self._model, name)

    def _method(self, name: str) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            question = digest(name, (positional, sorted(named.items())))
            if self._ask:
                self._given.append((question, getattr(self._model, name)(*positional, **named)))
            answered, answer = self._given[self._calls]
            self._calls += 1
            assert question == answered, f"call {self._calls}, {name}: another question"
            return answer

        return call


def main() -> None:
    file = pathlib.Path(sys.argv[1])
    ask = not file.exists()
    given = [] if ask else pickle.loads(file.read_bytes())
    load = mmclip_jax.load
    mmclip_jax.load = lambda *place, **options: Kept(load(*place, **options), given, ask)  # type: ignore[assignment,return-value]
    cli.main(sys.argv[2:])
    if ask:
        file.write_bytes(pickle.dumps(given))


if __name__ == "__main__":
    main()
