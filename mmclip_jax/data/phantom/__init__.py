"""A procedural chest phantom: images, boxes, labels and reports of patients who never were, made from a seed."""

from mmclip_jax.data.phantom.generate import PhantomConfig, generate, scaled_patients

__all__ = ["PhantomConfig", "generate", "scaled_patients"]
