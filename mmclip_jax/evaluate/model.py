"""What an evaluation needs of a model. Nothing here knows how one was trained: anything with these methods will do."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmclip_jax.text.schema import Entity

RESPONSES = ("similarity", "cross_attention")

Pixels = np.ndarray
"""One image as stored: uint8 [H, W], any size; the model pads it to a square and resizes it."""


class Encoder(Protocol):
    """What scoring by prompts needs of a model; embeddings of size E."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The record of its training; `manifest["exposure"]` says which labels and reports were seen.

        `manifest["foreign"]` is true of a model that this software did not train; its exposure, if it has one, is what
        somebody states.
        """

    @property
    def logit_scale(self) -> float:
        """What similarities are multiplied by to give logits."""

    def encode_image(self, images: Sequence[Pixels]) -> np.ndarray:
        """float32 [n, E], L2-normalised."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, E], L2-normalised."""


@runtime_checkable
class Foreign(Encoder, Protocol):
    """A model that this software did not train: one checkpoint, or several whose probabilities are averaged.

    An embedding is those of the members side by side, each over the root of their number.
    """

    @property
    def members(self) -> Sequence[tuple[slice, float]]:
        """(columns of the embedding, logit scale) of each checkpoint."""

    @property
    def trained_logit_scale(self) -> float:
        """What similarities were multiplied by in training; `logit_scale` is that of the published probabilities."""

    @property
    def description(self) -> str:
        """Its sizes in a line."""


@runtime_checkable
class Supervised(Protocol):
    """A classifier: it has an output for each of K findings, and reads no text. Features of size D."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The record of its training; `manifest["classifier"]` is about its labels, rows and thresholds."""

    @property
    def logit_scale(self) -> float:
        """1: its scores are logits."""

    @property
    def step(self) -> int:
        """The training step that was kept."""

    @property
    def description(self) -> str:
        """Its sizes in a line."""

    @property
    def findings(self) -> Sequence[str]:
        """The K findings."""

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, float | None]]:
        """{finding: {rule: probability, None where there is none}}."""

    def encode_image(self, images: Sequence[Pixels]) -> np.ndarray:
        """Features float32 [n, D]."""

    def logits_of(self, features: np.ndarray) -> np.ndarray:
        """float64 [n, K] of features [n, D]: the logit of each finding's probability."""


class Model(Encoder, Protocol):
    """A model of this software: S pixels a side, a grid of gh x gw patches."""

    @property
    def config(self) -> Any:
        """The settings that it was trained with (`config.model.text.length`, `config.objective.attmim.response`)."""

    @property
    def tokenizer(self) -> Any:
        """A `text.tokenizer.Tokenizer`."""

    @property
    def step(self) -> int:
        """The training step of the checkpoint."""

    def response_maps(self, images: Sequence[Pixels], texts: Sequence[str], response: str = "similarity") -> np.ndarray:
        """float32 [n, gh, gw]: how much each patch of image i responds to text i, over the padded square."""

    def attmim(self, images: Sequence[Pixels], texts: Sequence[str], seed: int = 0) -> Mapping[str, np.ndarray]:
        """AttMIM of each pair.

        response float32 [n, gh, gw]; masked bool [n, gh, gw]; reconstruction [n, S, S] in 0..255 (masked patches as
        predicted, the others as they are); image uint8 [n, S, S], the padded square itself.
        """

    def restore(
        self,
        images: Sequence[Pixels],
        texts: Sequence[str],
        masked_entities: Sequence[Sequence[int]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """EntMLM: for each pair the (true, restored) token ids at the masked places, in order of their position.

        masked_entities: of each text the numbers (from 0) of the entities to mask. entities: those of each text that
        are numbered; by default `find_entities(text)`. Given only where a text is not English.
        """
