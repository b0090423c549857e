"""What every format of an export is made of, and the files that all of them have."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmclip_jax.checkpoints import Saved
from mmclip_jax.checkpoints.arrays import nested, read_params
from mmclip_jax.export import vocabulary
from mmclip_jax.text.tokenizer import Tokenizer, load_tokenizer

"""What to do where a library is missing that writes files of other programs."""
SENTENCEPIECE_FILE = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Content:
    """A checkpoint that is to be exported: what it says of its run, and all its parameters {path: array}."""

    saved: Saved
    params: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, saved: Saved) -> "Content":
        """Reads the parameters.

        Raises:
          UserError, DamagedCheckpointError: they cannot be read.
        """
        return cls(saved, read_params(saved))

    @property
    def model(self) -> ConfigDict:
        """The settings of the model."""
        return self.saved.config.model

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.saved.tokenizer_model)

    def tree(self, part: str) -> Any:
        """The parameters below "image_encoder", "text_encoder", …, as a tree."""
        start = f"{part}/"
        return nested({path.removeprefix(start): x for path, x in self.params.items() if path.startswith(start)})

    def has(self, part: str) -> bool:
        """Whether there are parameters below this name."""
        return any(path.startswith(f"{part}/") for path in self.params)

    def write_tokenizer(self, folder: pathlib.Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, and a SentencePiece model as it is."""
        write_json(folder / "tokenizer.json", vocabulary.as_json(self.tokenizer))
        write_json(folder / "tokenizer_config.json", vocabulary.settings(self.tokenizer, self.model.text.length))
        if not vocabulary.is_subwords(self.tokenizer):
            (folder / SENTENCEPIECE_FILE).write_bytes(self.tokenizer.model_bytes)


def write_json(file: pathlib.Path, content: object) -> None:
    """Writes JSON as UTF-8."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
