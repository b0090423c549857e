"""The model card that travels with an export."""

import os

from mmclip_jax import checkpoints, files
from mmclip_jax.checkpoints import Saved
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.report.card import CARD_FILE, unscored


def of(saved: Saved, checkpoint: str | os.PathLike[str], evaluation: str | os.PathLike[str] | None = None) -> str:
    """The card of an evaluation of this step, or one without numbers, which says so.

    evaluation: its folder; None for WORKDIR/evaluation/STEP, or an exported directory's own card.

    Raises:
      UserError: a folder was given that holds no card.
    """
    place = checkpoints.absolute_path(checkpoint)
    if evaluation is not None:
        given = files.locate(evaluation) / CARD_FILE
        if not given.exists():
            raise UserError(f"{given} is not there: name the folder that mmclip evaluate wrote")
        return str(given.read_text())
    for found in (place / CARD_FILE, place / "evaluation" / str(saved.step) / CARD_FILE):
        if found.exists():
            return str(found.read_text())
    return unscored(place.name, saved.step, saved.config.model, saved.manifest)
