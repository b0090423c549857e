"""Ablations: named grids of runs through the ordinary trainer, and one table with what every variant changes.

A study is a dict {row: {dotted config key: value}}. Every row is trained with every seed in WORKDIR/STUDY/ROW/seed_N,
by `mmclip_jax.train.run.train` and nothing else, and evaluated; the first row is the one that the others are compared
with. What is finished is not run again, what was cut off goes on from its checkpoint, and a run that another study in
the same WORKDIR has made already with equal settings is taken over.

All runs share this process, one after another: a process each would pay for imports and data caches again and gain
nothing, since a run leaves no state behind but compiled programs, which are dropped before the next one.
"""

from mmclip_jax.ablate.running import Run, apply_setting, evaluate_run, measures_of, plan, run, slug
from mmclip_jax.ablate.studies import ALL, MEASURES, STUDIES
from mmclip_jax.ablate.table import (
    as_csv,
    as_markdown,
    as_text,
    mean_and_sd,
    paired_difference,
    summarize,
    write_table,
)

__all__ = [
    "ALL",
    "MEASURES",
    "STUDIES",
    "Run",
    "apply_setting",
    "as_csv",
    "as_markdown",
    "as_text",
    "evaluate_run",
    "mean_and_sd",
    "measures_of",
    "paired_difference",
    "plan",
    "run",
    "slug",
    "summarize",
    "write_table",
]
