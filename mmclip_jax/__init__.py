"""MMCLIP in JAX: chest X-ray language-image pre-training with attention-guided masking."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmclip_jax.inference.classifier import Classifier
    from mmclip_jax.inference.model import Model, load

__all__ = ["Classifier", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # JAX loads in a second or two; `mmclip --help` should not wait for it.
    if name in ("Model", "load"):
        from mmclip_jax.inference import model

        return getattr(model, name)
    if name == "Classifier":
        from mmclip_jax.inference import classifier

        return classifier.Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
