"""Metrics with their intervals."""

from mmclip_jax.evaluate.stats.bootstrap import bootstrap_ci
from mmclip_jax.evaluate.stats.metrics import auroc

__all__ = ["auroc", "bootstrap_ci"]
