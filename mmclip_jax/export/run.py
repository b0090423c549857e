"""`mmclip export`: a checkpoint as files that other programs read."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from mmclip_jax import checkpoints, files
from mmclip_jax.checkpoints.exported import record
from mmclip_jax.checkpoints.saved import EXPORT_RECORD
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.report.card import CARD_FILE
from mmclip_jax.export import cards, huggingface, numpy_files, onnx_files, open_clip, stablehlo
from mmclip_jax.export.content import Content
from mmclip_jax.inference import classifier, prediction
from mmclip_jax.inference.model import open_checkpoint

Writer = Callable[[Content, pathlib.Path], str]
"""(what is exported, an empty folder) -> what is to be said in a line."""

OF_CLASSIFIERS = ("huggingface", "stablehlo", "numpy")
"""The formats that hold a fine-tuned classifier."""

WRITERS: dict[str, Writer] = {
    "huggingface": huggingface.write,
    "open_clip": open_clip.write,
    "stablehlo": stablehlo.write,
    "onnx": onnx_files.write,
    "numpy": numpy_files.write,
}


def run(
    checkpoint: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    evaluation: str | os.PathLike[str] | None = None,
) -> str:
    """Writes a checkpoint in another program's format; returns what a terminal should show.

    Args:
      checkpoint: a workdir, one of its checkpoints, a classifier's folder, or an exported directory that can be read
        back.
      to: one of `WRITERS`.
      out: a new or empty folder.
      step: of the checkpoint; None for the newest.
      evaluation: the folder of an evaluation whose model card goes along; None for WORKDIR/evaluation/STEP, if it is
        there.

    Raises:
      UserError: no checkpoint, a format that cannot hold this architecture (the message names the settings that it can
        hold), `out` holds something, or the run's evaluation is damaged.
    """
    if to not in WRITERS:
        raise UserError(f"--to {to} is not one of {', '.join(WRITERS)}")
    place = files.locate(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} holds something already: name a new folder")
    saved, _ = open_checkpoint(classifier.place_of(checkpoint), step)
    if tuned := saved.manifest.get(classifier.KEY):
        if to not in OF_CLASSIFIERS:
            raise UserError(
                f"{checkpoint} is a fine-tuned classifier, and --to {to} is of models that read text: it is exported "
                f"to {', '.join(OF_CLASSIFIERS)}"
            )
        saved = dataclasses.replace(saved, step=int(tuned["step"]))  # its folder's name says none
    content = Content.of(saved)
    about = record(saved, to, content.params)
    if not tuned:
        scale = float(np.exp(content.params["log_logit_scale"]))
        kept = prediction.read_thresholds(checkpoint, saved.step, scale)
        about["thresholds"] = {kind: dataclasses.asdict(each) for kind, each in kept.items()}
    card = cards.of(saved, checkpoint, evaluation)
    with files.whole_folder(out, EXPORT_RECORD) as folder:
        said = WRITERS[to](content, folder)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        files.write_json(folder / EXPORT_RECORD, about)
    return f"{checkpoints.absolute_path(checkpoint)}, step {saved.step:,}, as {to}: {said}\n{place}"
