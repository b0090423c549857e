"""Whether a run that goes on is the run that was saved: its settings, its data and its tokenizer."""

import contextlib
import json
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mmclip_jax.checkpoints.saved import find_checkpoint, steps_of
from mmclip_jax.data.leakage import fingerprint
from mmclip_jax.errors import DamagedCheckpointError, UserError

# Settings that may differ when a run goes on: they change how it is computed or where its data lies, not what it is.
_MAY_CHANGE = {
    *("model.attention", "model.remat", "model.unroll", "optimizer.accumulate", "objective.contrastive.chunk"),
    *("data.workers", "data.threads", "data.train", "data.evaluate", "data.tokenizer", "data.max_damaged"),
    *("data.allow_leakage", "data.same_ids", "data.other_ids", "data.augment_on", "data.keep_decoded"),
}


def check_same_settings(workdir: epath.PathLike, config: ConfigDict, stretch: bool = False) -> None:
    """Refuses to continue a run with settings that would make it another experiment; `train` settings may change.

    stretch: whether the number of steps may change, too. The learning rate and the random share of masks are functions
    of the share of the steps that are done: they stretch or shrink with it, and what is done by then is not done anew.

    Raises:
      UserError: naming the settings that differ from those of the newest checkpoint.
    """
    if not steps_of(workdir):  # what was cut off before it was whole is no checkpoint
        return
    try:
        saved = find_checkpoint(workdir).config
    except DamagedCheckpointError as error:  # restoring says more, and falls back
        logging.warning("the settings of the newest checkpoint cannot be read (%s)", error)
        return
    differences = []
    for part in ("model", "init", "objective", "optimizer", "data", "finetune"):
        old, new = (_flat({part: json.loads(c[part].to_json())} if part in c else {}) for c in (saved, config))
        differences += [
            f"{name}={new.get(name)!r} (was {old.get(name)!r})"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name not in _MAY_CHANGE
        ]
    old_steps, steps = saved.train.steps, config.train.steps
    if old_steps != steps and not stretch:
        if "finetune" in config:
            differences.append(f"train.steps={steps} (was {old_steps})")
        elif not differences:
            raise UserError(
                f"{workdir} holds a run of {old_steps:,} steps, not {steps:,}: the schedule of the learning rate and "
                "the share of random masks would stretch from here on, and the result be that of no run in one go. "
                "Say --stretch if that is meant, or give another --workdir"
            )
    if old_steps != steps and stretch:
        logging.warning(
            "%s steps instead of %s: the learning rate's schedule and the share of random masks stretch from here on",
            f"{steps:,}", f"{old_steps:,}",
        )  # fmt: skip
    if differences:
        raise UserError(
            f"{workdir} holds a run with other settings: {'; '.join(differences)}. Give these settings, or another "
            "--workdir for a new run"
        )


def check_same_contents(workdir: epath.PathLike, manifest: dict[str, Any]) -> None:
    """Refuses to continue a run on other data or with another tokenizer than those of the newest checkpoint.

    Raises:
      UserError: naming what differs.
    """
    if not steps_of(workdir):
        return
    with contextlib.suppress(DamagedCheckpointError):  # restoring says more, and falls back
        fingerprint.check_same(workdir, find_checkpoint(workdir).manifest, manifest)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= _flat(value, path + ".") if isinstance(value, dict) else {path: value}
    return flat
