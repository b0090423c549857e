"""Metrics with their intervals."""

from mmclip_jax.evaluate.stats.metrics import auroc, bootstrap_ci

__all__ = ["auroc", "bootstrap_ci"]
