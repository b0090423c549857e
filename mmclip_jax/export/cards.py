"""The model card that travels with an export."""

import os

from mmclip_jax import checkpoints, files
from mmclip_jax.checkpoints import Saved
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.report.card import CARD_FILE, unscored
from mmclip_jax.inference.classifier import KEY
from mmclip_jax.inference.stamp import name_of_classifier


def of(saved: Saved, checkpoint: str | os.PathLike[str], evaluation: str | os.PathLike[str] | None = None) -> str:
    """The card of an evaluation of this step, or one without numbers, which says so.

    evaluation: its folder; None for WORKDIR/evaluation/STEP, or an exported directory's own card.

    Raises:
      UserError: a folder was given that holds no card.
    """
    place, tuned = checkpoints.absolute_path(checkpoint), saved.manifest.get(KEY)
    if evaluation is not None:
        given = files.locate(evaluation) / CARD_FILE
        if not given.exists():
            raise UserError(f"{given} is not there: name the folder that mmclip evaluate wrote")
        return str(given.read_text(encoding="utf-8"))
    for folder in (place, *(home / "evaluation" / str(saved.step) for home in (place, saved.run_folder))):
        if (folder / CARD_FILE).exists():
            return str((folder / CARD_FILE).read_text(encoding="utf-8"))
    name = name_of_classifier(tuned) if tuned else saved.run_folder.name
    return unscored(name, saved.step, saved.config.model, saved.manifest)
