"""A model as the page asks it: findings of one image, and the response map of any words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.inference import pictures, scoring
from mmclip_jax.inference.classifier import Classifier
from mmclip_jax.inference.inputs import as_pixels
from mmclip_jax.inference.model import Model
from mmclip_jax.inference.prediction import Asked
from mmclip_jax.inference.stamp import OWN_WORDS, RESEARCH_ONLY
from mmclip_jax.text import prompts

MOST_CHARACTERS = 500  # of the words that a map is asked for


class Response(NamedTuple):
    """What a model answers to words: the map [rows, columns], and the cosine similarity of the whole image."""

    map: np.ndarray
    similarity: float


class Served:
    """A model or a fine-tuned classifier; its prompts are encoded once, at the start. Not for several threads at once.

    Attributes: name (what to call it), model, asked (its findings).
    """

    def __init__(self, name: str, model: Model | Classifier, asked: Sequence[Asked]):
        self.name, self.model, self.asked = name, model, list(asked)
        self.domain = model.stamp.domain
        self._prompts: tuple[np.ndarray, np.ndarray] | None = None
        if isinstance(model, Model) and asked:
            texts = {each.name: each.texts for each in asked}
            self._prompts = scoring.prompt_embeddings(model, list(texts), texts.__getitem__)

    @property
    def reads_words(self) -> bool:
        """Whether it has a text encoder, and so maps."""
        return isinstance(self.model, Model)

    def facts(self) -> dict[str, Any]:
        """What is known of it before any image: {"name", "step", "domain", "reads_words", "note"}."""
        return {
            "name": self.name,
            "step": self.model.step,
            "domain": self.domain,
            "reads_words": self.reads_words,
            "note": RESEARCH_ONLY,
        }

    def score(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """The findings of an image uint8 [H, W], most probable first: {"finding"} with what `Asked.facts` says.

        Raises:
          UserError: at the model's size the image is of one value; or the model gives numbers that are not finite.
        """
        fitted = as_pixels(self._fitted(pixels))
        if isinstance(self.model, Classifier):
            found = self.model.predict([fitted])
            values = [float(found[self.model.finding_of(each.name)][0]) for each in self.asked]
        elif self._prompts is None:
            values = []
        else:
            embedded = self.model.encode_image([fitted])
            values = scoring.chances_of(self.model, embedded, *self._prompts)[0].tolist()
        if not np.isfinite(values).all():
            raise UserError("some probabilities are not finite: the checkpoint is broken, serve an earlier step")
        rows = [
            {"finding": _display(asked.name), **asked.facts(p)} for asked, p in zip(self.asked, values, strict=True)
        ]
        return [rows[k] for k in np.argsort([-value for value in values], kind="stable")]

    def respond(self, pixels: np.ndarray, words: str) -> Response:
        """The response to some words of an image uint8 [H, W].

        Raises:
          UserError: it is a classifier; the words are none, or more than the model reads.
        """
        if not isinstance(self.model, Model):
            raise UserError(f"{self.name} is a fine-tuned classifier: it reads no words and has no maps")
        check_words(self.model, words)
        fitted = self._fitted(pixels)
        response = self.model.response_map(fitted, words)
        return Response(response, float(self.model.similarity([fitted], [words])[0, 0]))

    def draw(self, pixels: np.ndarray, words: str, response: Response) -> tuple[np.ndarray, Any]:
        """(the map over the image, uint8 [P, P, 3]; a figure to keep, with the stamps in it, a PIL image)."""
        image = shown(pixels)
        lines = [
            f"Response to “{words}”: cosine similarity {response.similarity:.3f} ({OWN_WORDS})",
            f"{self.name}, step {self.model.step:,}, {self.model.stamp.caption}",
        ]
        return pictures.overlay(image, response.map), pictures.explained(image, response.map, lines)

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        return transforms.fit_image(pixels, self.model.config.model.image_size)[..., 0]


def _display(name: str) -> str:
    kind = prompts.kind_of(name)
    return prompts.display_name(kind) if kind is not None else name


def shown(pixels: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W] as the page shows it: uint8 [S, S] with S = `pictures.SHOWN_SIDE`."""
    return transforms.fit_image(pixels, pictures.SHOWN_SIDE)[..., 0]


def check_words(model: Model, words: str) -> None:
    """Refuses words that the model would not read, or not to their end.

    Raises:
      UserError: there are none, or too many.
    """
    if not words.strip():
        raise UserError("there are no words: type what to look for")
    if len(words) > MOST_CHARACTERS:
        raise UserError(f"{len(words)} characters are too many: at most {MOST_CHARACTERS} are taken")
    tokenizer = model.tokenizer
    room = model.config.model.text.length - len(tokenizer.begin) - len(tokenizer.end)
    count = len(tokenizer.encode(words)[0])
    if count > room:
        raise UserError(f"the words are {count} tokens, and the model reads {room}: shorten them")
