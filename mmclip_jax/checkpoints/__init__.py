"""Checkpoints: one Orbax step holds parameters, their average, optimizer, data iterator, config and tokenizer.

A workdir is {config.json, manifest.json, metrics.jsonl, checkpoints/<step>/}; a step directory alone is enough to
evaluate or to load the model.
"""

from mmclip_jax.checkpoints.alone import save_alone
from mmclip_jax.checkpoints.digests import bit_sums, check_digests, with_digests
from mmclip_jax.checkpoints.manager import Checkpoints
from mmclip_jax.checkpoints.same import check_same_contents, check_same_settings
from mmclip_jax.checkpoints.saved import (
    FOLDER,
    SCHEMA,
    Saved,
    absolute_path,
    abstract_like,
    damage_is_named,
    find_checkpoint,
    is_checkpoint,
    run_folder,
    run_record,
    steps_of,
    with_defaults,
)
from mmclip_jax.checkpoints.storage import storage_errors_are_named

__all__ = [
    "FOLDER",
    "SCHEMA",
    "Checkpoints",
    "Saved",
    "absolute_path",
    "abstract_like",
    "bit_sums",
    "check_digests",
    "check_same_contents",
    "check_same_settings",
    "damage_is_named",
    "find_checkpoint",
    "is_checkpoint",
    "run_folder",
    "run_record",
    "save_alone",
    "steps_of",
    "storage_errors_are_named",
    "with_defaults",
    "with_digests",
]
