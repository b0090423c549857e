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
from mmclip_jax.inference import classifier
from mmclip_jax.inference.stamp import RESEARCH_ONLY
from mmclip_jax.models.inputs import PIXEL_MEAN, PIXEL_STD
from mmclip_jax.text.tokenizer import Tokenizer, load_tokenizer

SENTENCEPIECE_FILE, CLASSIFIER_FILE = "tokenizer.model", "classifier.json"


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
        return cls(saved, read_params(saved, classifier.shapes_of(saved) if classifier.KEY in saved.manifest else None))

    @property
    def classifier(self) -> dict[str, Any] | None:
        """What is known of a fine-tuned classifier (`inference.classifier.KEY`); None of a model that reads text."""
        told: dict[str, Any] | None = self.saved.manifest.get(classifier.KEY)
        return told

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

    def write_reader(self, folder: pathlib.Path) -> None:
        """Writes what has to be known beside the parameters: the tokenizer, or of a classifier its findings."""
        if self.classifier is None:
            self.write_tokenizer(folder)
        else:
            write_json(folder / CLASSIFIER_FILE, self._about_classifier(self.classifier))

    def _about_classifier(self, told: dict[str, Any]) -> dict[str, Any]:
        """Findings in the order of the outputs, and probabilities from which on each is called positive, or null."""
        cuts = {
            each["finding"]: {rule: found and found["threshold"] for rule, found in each["rules"].items()}
            for each in told["thresholds"]["findings"]
        }
        said = {name: told[name] for name in ("task", "findings", "step", "mode", "fraction")}
        link = "softmax" if told["task"] == "multi-class" else "sigmoid"
        pixels = {"side": self.model.image_size, "mean": PIXEL_MEAN, "std": PIXEL_STD}
        return said | {"probabilities": link, "thresholds": cuts, "pixels": pixels, "note": RESEARCH_ONLY}

    def write_tokenizer(self, folder: pathlib.Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, and a SentencePiece model as it is."""
        write_json(folder / "tokenizer.json", vocabulary.as_json(self.tokenizer))
        write_json(folder / "tokenizer_config.json", vocabulary.settings(self.tokenizer, self.model.text.length))
        if not vocabulary.is_subwords(self.tokenizer):
            (folder / SENTENCEPIECE_FILE).write_bytes(self.tokenizer.model_bytes)


def write_json(file: pathlib.Path, content: object) -> None:
    """Writes JSON as UTF-8."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
