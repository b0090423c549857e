"""Any Python object with encode_image and encode_text as a model that can be evaluated."""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmclip_jax import python_files
from mmclip_jax.errors import UserError


class TwoEncoders(Protocol):
    """What a user's object needs; `logit_scale` (a number, by default 1) makes similarities probabilities."""

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images as they are stored, uint8 [H,W] each, of any size, 0 black -> embeddings [n,E] of any length."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> embeddings [n,E] of any length."""


class OwnModel:
    """A user's object as `mmclip_jax.evaluate.model.Foreign`: its embeddings are checked and L2-normalised.

    Args:
      encoders: the object.
      name: for messages.

    Raises:
      UserError: it has no encode_image or encode_text, or what they give is no embeddings.
    """

    def __init__(self, encoders: TwoEncoders, name: str):
        for method in ("encode_image", "encode_text"):
            if not callable(getattr(encoders, method, None)):
                raise UserError(f"{name} gives a {type(encoders).__name__} without {method} (docs/evaluation.md)")
        self._encoders, self._name = encoders, name
        self.manifest: Mapping[str, Any] = {"foreign": True}
        try:
            self.logit_scale = self.trained_logit_scale = float(getattr(encoders, "logit_scale", 1.0))
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: its logit_scale is no number ({error})") from error
        self.embed_dim = self.encode_text(["no finding"]).shape[1]
        self.members = [(slice(0, self.embed_dim), self.logit_scale)]
        self.description = f"{type(encoders).__name__}, embedding {self.embed_dim}"

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n,E], L2-normalised."""
        return self._checked("encode_image", self._encoders.encode_image(list(images)), len(images))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n,E], L2-normalised."""
        return self._checked("encode_text", self._encoders.encode_text(list(texts)), len(texts))

    def _checked(self, method: str, made: Any, count: int) -> np.ndarray:
        array = np.asarray(made)
        size = getattr(self, "embed_dim", array.shape[-1] if array.ndim else 0)
        if not np.issubdtype(array.dtype, np.number) or array.shape != (count, size):
            raise UserError(
                f"{self._name}: {method} of {count} gave an array of {array.dtype} {list(array.shape)}, not numbers "
                f"[{count}, {size or 'E'}]"
            )
        rows = array.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(rows).all() or not (lengths > 0).all():
            raise UserError(f"{self._name}: {method} gave embeddings that are not finite, or of length 0")
        return np.asarray(rows / lengths, np.float32)


def open_own(spec: str) -> tuple[OwnModel, dict[str, Any]]:
    """(the model that FUNCTION of FILE.py gives, what is to be said of it) of "FILE.py:FUNCTION".

    Raises:
      UserError: no such file or function, or it does not give such an object.
    """
    model = OwnModel(python_files.load_function(spec, "the model")(), spec)
    file, _, function = spec.partition(":")
    place = pathlib.Path(file).expanduser()
    facts: dict[str, Any] = {
        "spec": spec,
        "title": f"{place.name}:{function}",
        "source": str(place),
        "digest": hashlib.sha256(place.read_bytes()).hexdigest()[:16],
        "layout": "encode_image and encode_text of its object",
        "preprocess": "its own",
        "prompts": "the protocol's",
        "scale": f"{model.logit_scale:g}, the object's",
        "ensemble": "",
        "checkpoints": [],
        "vocabulary": None,
        "trained_on": "",
        "note": "",
    }
    return model, facts
