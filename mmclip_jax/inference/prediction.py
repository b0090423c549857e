"""Probabilities of findings for a user's images, each beside what it has to be read with."""

import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax import checkpoints, files, spreadsheet
from mmclip_jax.checkpoints.saved import EXPORT_RECORD
from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.inference import pictures, places, scoring
from mmclip_jax.inference.classifier import Classifier
from mmclip_jax.inference.inputs import as_pixels
from mmclip_jax.inference.model import Model
from mmclip_jax.inference.stamp import OWN_WORDS, RESEARCH_ONLY
from mmclip_jax.text import prompts


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A probability from which on a finding is called positive; source: what it was chosen on."""

    probability: float
    source: str


@dataclasses.dataclass(frozen=True)
class Asked:
    """A finding: its texts, how the training knew of it, and its threshold, if there is one."""

    name: str
    texts: scoring.Texts
    exposure: str
    threshold: Threshold | None = None

    def facts(self, probability: float) -> dict[str, Any]:
        """What is said of it in one image.

        {"probability", "exposure" and, where there is a threshold, "threshold", "positive", "threshold_from"}.
        """
        said: dict[str, Any] = {"probability": round(probability, 4), "exposure": self.exposure}
        if self.threshold is not None:
            said |= {
                "threshold": round(self.threshold.probability, 4),
                "positive": probability >= self.threshold.probability,
                "threshold_from": self.threshold.source,
            }
        return said


@dataclasses.dataclass
class Predictions:
    """The probabilities of some findings in some images.

    model: what to call it; rows: of each image the probability of each of `asked`, float32 [K]; unreadable: the images
    that have none; figures: by image and finding, the name of the figure that was written.
    """

    model: str
    step: int
    domain: str
    asked: list[Asked]
    rows: dict[pathlib.Path, np.ndarray] = dataclasses.field(default_factory=dict)
    unreadable: list[places.Unreadable] = dataclasses.field(default_factory=list)
    figures: dict[tuple[pathlib.Path, str], str] = dataclasses.field(default_factory=dict)

    def _facts(self, path: pathlib.Path, number: int) -> dict[str, Any]:
        """What is said of one finding in one image."""
        asked = self.asked[number]
        said = asked.facts(float(self.rows[path][number]))
        if (path, asked.name) in self.figures:
            said["figure"] = self.figures[path, asked.name]
        return said

    def as_json(self) -> dict[str, Any]:
        """For a JSON file.

        {"model", "step", "domain", "note", "images": [{"image", "findings": {name: {"probability", "exposure" and,
        where there are such, "threshold", "positive", "threshold_from", "figure"}}}],
        "unreadable": [{"image", "reason"}]}
        """
        return {
            "model": self.model,
            "step": self.step,
            "domain": self.domain,
            "note": RESEARCH_ONLY,
            "images": [
                {
                    "image": str(path),
                    "findings": {asked.name: self._facts(path, k) for k, asked in enumerate(self.asked)},
                }
                for path in self.rows
            ],
            "unreadable": [{"image": str(each.path), "reason": each.reason} for each in self.unreadable],
        }

    def as_csv(self) -> str:
        """A line an image and finding, with all that has to be read with its number; then the unreadable images."""
        stream = io.StringIO()
        writer = spreadsheet.Writer(stream)
        columns = ("probability", "threshold", "positive", "threshold_from", "exposure", "figure")
        writer.writerow(["image", "finding", *columns, "domain", "model", "step", "problem"])
        for path in self.rows:
            for k, asked in enumerate(self.asked):
                said = self._facts(path, k)
                cells = [said.get(column, "") for column in columns]
                writer.writerow([str(path), asked.name, *cells, self.domain, self.model, self.step, ""])
        for each in self.unreadable:
            nothing = [""] * (len(columns) + 1)
            writer.writerow([str(each.path), *nothing, self.domain, self.model, self.step, each.reason])
        return stream.getvalue()

    def as_text(self) -> str:
        """For a terminal: of each image the findings, most probable first."""
        lines = []
        width = max((len(asked.name) for asked in self.asked), default=0)
        for path, values in self.rows.items():
            lines.append(str(path))
            for k in np.argsort(-values, kind="stable"):
                asked = self.asked[k]
                beside = ""
                if asked.threshold is not None:
                    above = values[k] >= asked.threshold.probability
                    beside = f"  {'≥' if above else '<'} {asked.threshold.probability:.3f}"
                lines.append(f"  {values[k]:6.3f}{beside}  {asked.name:{width}}  {asked.exposure}")
        sources = {asked.threshold.source for asked in self.asked if asked.threshold is not None}
        lines += [f"Thresholds: {source}" for source in sorted(sources)]
        return "\n".join([*lines, f"Learnt from: {self.domain}", RESEARCH_ONLY])


def ask(model: Model, findings: scoring.Findings, thresholds: Mapping[str, Threshold] | None = None) -> list[Asked]:
    """The findings to score, with their exposure.

    thresholds: by kind; own words have none.

    Raises:
      UserError: as for `scoring.texts_of`.
    """
    own = {name for name, texts in findings.items() if texts} if isinstance(findings, Mapping) else set()
    asked = []
    for name, texts in scoring.texts_of(findings).items():
        exposure = OWN_WORDS if name in own else model.stamp.of(name)
        threshold = None if name in own else (thresholds or {}).get(prompts.kind_of(name) or "")
        asked.append(Asked(name, texts, exposure, threshold))
    return asked


def ask_classifier(classifier: Classifier, findings: Sequence[str]) -> list[Asked]:
    """The findings of a classifier to score, each with Youden's threshold where it has one; [] stands for all of them.

    Raises:
      UserError: it has no output for one of them.
    """
    asked = []
    for name in findings or classifier.findings:
        kind = classifier.finding_of(name)
        cut = classifier.thresholds[kind]["youden"]
        threshold = None if cut is None else Threshold(cut, "Youden's, on the validation images of the fine-tuning")
        asked.append(Asked(name, ([], []), classifier.stamp.findings[kind], threshold))
    return asked


def _probabilities(
    model: Model | Classifier, images: Sequence[np.ndarray], asked: Sequence[Asked]
) -> dict[str, np.ndarray]:
    """{name: [n]} of what is asked."""
    if isinstance(model, Classifier):
        found = model.predict(images)
        return {each.name: found[model.finding_of(each.name)] for each in asked}
    return scoring.probabilities(model, model.encode_image(images), {each.name: each.texts for each in asked})


def predict(
    model: Model | Classifier,
    paths: Sequence[pathlib.Path],
    asked: Sequence[Asked],
    name: str,
    heatmaps: pathlib.Path | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Predictions:
    """Scores images; those that cannot be read are listed, and lose nothing of the others.

    Args:
      model: the model, or a fine-tuned classifier.
      paths: files.
      asked: of `ask`, or of `ask_classifier`.
      name: what to call the model.
      heatmaps: a folder for a figure of each image and finding; None for none. A classifier has none.
      advance: is told how many images are done.
    """
    found = Predictions(name, model.step, model.stamp.domain, list(asked))
    digits = len(str(len(paths)))
    numbers = {path: f"{number:0{digits}d}" for number, path in enumerate(paths, 1)}
    for there, images, lost in places.read_images(paths, model.config.model.image_size):
        found.unreadable += lost
        if there:
            scores = _probabilities(model, images, asked)
            if not all(np.isfinite(values).all() for values in scores.values()):
                raise UserError("some probabilities are not finite: the checkpoint is broken, choose an earlier step")
            for row, path in enumerate(there):
                found.rows[path] = np.array([scores[each.name][row] for each in asked], np.float32)
                if heatmaps is not None and not isinstance(model, Classifier):
                    _draw(model, path, numbers[path], found, heatmaps)
        advance(len(there) + len(lost))
    return found


def _draw(model: Model, path: pathlib.Path, number: str, found: Predictions, folder: pathlib.Path) -> None:
    """Writes a figure for every finding of an image: the response map of its first affirming text."""
    shown = as_pixels(path)
    image = transforms.fit_image(shown, pictures.SHOWN_SIDE)[..., 0]
    texts = [each.texts[0][0] for each in found.asked]
    answers = model.response_maps([shown] * len(texts), texts)
    for k, asked in enumerate(found.asked):
        lines = [
            f"{asked.name}: probability {found.rows[path][k]:.3f} ({asked.exposure})",
            f"Response to “{texts[k]}”",
            f"{found.model}, step {found.step:,}, {model.stamp.caption}",
        ]
        stream = io.BytesIO()
        pictures.explained(image, answers[k], lines).save(stream, "PNG")
        name = f"{number}-{_plain(path.stem)}-{_plain(asked.name)}.png"
        files.write_whole(folder / name, stream.getvalue())
        found.figures[path, asked.name] = name


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60]


def read_thresholds(workdir: str | os.PathLike[str], step: int, logit_scale: float) -> dict[str, Threshold]:
    """The thresholds that an evaluation of a step has chosen on validation rows, by kind; {} where there is none.

    workdir: of the run, one of its checkpoints, or what `mmclip export` wrote of it. Of several evaluations the one of
    the split that is scored by default counts, else the first by name. Those with other prompts than the default ones,
    or with another score than "softmax", say nothing of a probability here.

    Raises:
      UserError: a results.json is damaged, or the record of an exported directory.
    """
    exported = files.locate(workdir) / EXPORT_RECORD
    if exported.exists():
        kept = files.read_json(exported, "export the run again").get("thresholds", {})
        try:
            return {kind: Threshold(**each) for kind, each in kept.items()}
        except (TypeError, AttributeError) as error:
            raise UserError(f"{exported} is damaged ({type(error).__name__}): export the run again") from error
    folder = checkpoints.run_folder(workdir) / "evaluation"
    if not folder.is_dir():
        return {}
    names = sorted(each.name for each in folder.iterdir() if each.name.partition("-")[0] == str(step))
    for name in names:
        place = folder / name / "results.json"
        if not place.exists():
            continue
        results = files.read_json(place, "evaluate the run again", ("zero_shot",))
        try:
            found = _thresholds_of(results["zero_shot"], logit_scale, name)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place} is damaged ({type(error).__name__}): evaluate the run again") from error
        if found:
            return found
    return {}


def _thresholds_of(scored: Mapping[str, Any], logit_scale: float, name: str) -> dict[str, Threshold]:
    """Of the source that is the evaluation's headline."""
    protocol, source = scored["protocol"], scored["primary"]
    usual = protocol["ensemble"] == "embeddings" and protocol.get("default_prompts", False)
    if protocol["score"] != "softmax" or source is None or not usual:
        return {}
    said = f"highest {protocol['threshold']} on {protocol['validation']} rows of {source}, evaluation {name}"
    found = {}
    for row in scored["sources"][source]["findings"]:
        difference = row["decision"]["threshold"]
        if difference is not None and math.isfinite(difference):
            found[row["finding"]] = Threshold(1 / (1 + math.exp(-logit_scale * difference)), said)
    return found
