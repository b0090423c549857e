"""Words without images: sections, entities, prompts, tokens."""

from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.prompts import zero_shot_prompts

__all__ = ["find_entities", "zero_shot_prompts"]
