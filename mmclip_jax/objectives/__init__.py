"""The losses of MMCLIP, one file each; docs/method.md gives every equation."""

from mmclip_jax.objectives.base import Objective
from mmclip_jax.objectives.contrastive import contrastive_loss
from mmclip_jax.objectives.registry import OBJECTIVES, active, register

__all__ = ["OBJECTIVES", "Objective", "active", "contrastive_loss", "register"]
