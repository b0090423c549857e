"""Other people's checkpoints under our protocols, with their own preprocessing and prompts.

A spec says, as data, how a family of models is read and asked; families.yaml describes the fields and holds
those of published families. The protocol keeps its findings, split, uncertain labels and thresholds, so the numbers
stand beside those of our models, and `mmclip compare` tests them on the same patients.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmclip_jax import python_files
from mmclip_jax.data.leakage import audit, numbering
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.model import Foreign
from mmclip_jax.evaluate.report import terminal
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.external import encoders as encoders_lib
from mmclip_jax.external import own, preprocess
from mmclip_jax.fields import field, fits, read_json
from mmclip_jax.models.pretrained import dual as layouts
from mmclip_jax.models.pretrained.weights import find_weights, sha256
from mmclip_jax.text import prompts, yaml_tree

PACKAGED = pathlib.Path(__file__).parent / "families.yaml"
FOLDER = "folder"
CHECKPOINT = "checkpoint"
_FIELDS = ("title", "source", "layout", "activation", "heads", "preprocess", "prompts", "scale", "trained_on", "note")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One entry of a file of specs; the head of families.yaml describes the fields.

    preprocess: None for what the checkpoint's folder says. prompts: None for the protocol's. scale: None for the
    checkpoint's. stated: what the author says of the training: "text", "sources", and "labels" or None.
    """

    name: str
    title: str
    source: str
    layout: str
    activation: str
    heads: Mapping[str, int]
    preprocess: preprocess.Preprocess | None
    prompts: Mapping[str, Any] | None
    scale: float | None
    stated: Mapping[str, Any]
    note: str
    file: pathlib.Path

    @property
    def digest(self) -> str:
        """Of all that may change a number."""
        fields = {
            key: str(value) if key == "preprocess" else value
            for key, value in dataclasses.asdict(dataclasses.replace(self, preprocess=None)).items()
            if key not in ("title", "source", "note", "file", "stated")
        }
        fields["preprocess"] = str(self.preprocess or FOLDER)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def exposure(self) -> dict[str, Any] | None:
        """What the author states, in the form of a run's own record; None where no labels are stated."""
        return None if self.stated["labels"] is None else {"label_kinds": dict(self.stated["labels"])}


def load_spec(spec: str) -> Spec:
    """The spec of that name, or the one of a file: "mine.yaml", or "mine.yaml:NAME" where it holds several.

    Raises:
      UserError: no such spec or file, or a mistake in it.
    """
    found: Spec = yaml_tree.find_entry(spec, PACKAGED, _read, "spec")
    return found


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model of somebody else's, ready to be scored, and what is to be said of it (`facts`, for JSON)."""

    model: encoders_lib.ForeignModel
    facts: dict[str, Any]
    rules: preprocess.Preprocess


def open_model(
    spec: Spec,
    checkpoints: Sequence[str | os.PathLike[str]],
    vocabulary: str | os.PathLike[str] | None = None,
    *,
    all_devices: bool = False,
) -> Opened:
    """Reads one checkpoint, or several as an ensemble.

    Args:
      spec: how.
      checkpoints: files of weights, or folders.
      vocabulary: file or folder of the tokenizer; None for the folder of the first checkpoint.
      all_devices: as for `mmclip_jax.load`.

    Raises:
      UserError: one of the files is missing, damaged, or does not fit the spec or the others.
    """
    options: dict[str, Any] = {"activation": spec.activation, "heads": spec.heads, "all_devices": all_devices}
    encoders = encoders_lib.load_encoders(checkpoints, spec.layout, **options)
    rules = spec.preprocess or _folder_rules(spec, find_weights(checkpoints[0]).parent, encoders[0])
    model, words = encoders_lib.load(
        checkpoints,
        encoders,
        rules,
        vocabulary,
        logit_scale=spec.scale,
        manifest={"exposure": spec.exposure},
        all_devices=all_devices,
    )
    files = [find_weights(path) for path in checkpoints]
    facts = {
        "spec": spec.name,
        "title": spec.title,
        "source": spec.source,
        "digest": spec.digest,
        "layout": spec.layout,
        "preprocess": str(rules),
        "prompts": "its own" if spec.prompts is not None else "the protocol's",
        "scale": f"{spec.scale:g}, the spec's" if spec.scale is not None else "that of the checkpoint",
        "ensemble": f"mean of the probabilities of {len(files)} checkpoints" if len(files) > 1 else "",
        "checkpoints": [
            {
                "file": file.name,
                "bytes": file.stat().st_size,
                "sha256": encoder.sha256,
                "logit_scale": encoder.logit_scale,
                "encoders": {
                    part: {"heads": told.heads, "activation": told.activation, "origin": dict(encoder.origins[part])}
                    for part, told in (("image", encoder.image), ("text", encoder.text))
                },
            }
            for file, encoder in zip(files, encoders, strict=True)
        ],
        "vocabulary": {"file": words.name, "sha256": sha256(words)},
        "trained_on": f"{spec.stated['text']} (as stated by the spec's author)" if spec.stated["text"] else "",
        "note": spec.note,
    }
    return Opened(model, facts, rules)


def run(
    spec: str,
    checkpoints: Sequence[str | os.PathLike[str]],
    data: evaluation.Directories,
    out: str | os.PathLike[str],
    *,
    vocabulary: str | os.PathLike[str] | None = None,
    split: str | None = None,
    protocol: str | None = None,
    show_text: bool = False,
    resamples: int = 1000,
    progress: bool = True,
    labels_from_reports: bool = False,
) -> str:
    """Scores somebody else's checkpoint and writes the report; returns what a terminal should show.

    Args:
      spec: see `load_spec`; or "FILE.py:FUNCTION", which gives an object (`own.TwoEncoders`) and needs no checkpoints.
      checkpoints: one, or the members of an ensemble.
      data: one or more built data sets.
      out: where to write.
      vocabulary: see `open_model`.
      split: "test", "validation" or "train"; None for the protocol's.
      protocol: a name, or a file; None for the one of the data set's name. Its prompts count if the spec has none.
      show_text: shows record ids in the HTML of other data than the phantom, too.
      resamples: of the bootstrap intervals.
      progress: bars on stderr.
      labels_from_reports: scores rows without labels against weak ones (`Split.with_labels_from_reports`).

    Raises:
      UserError: as for `load_spec` and `open_model`; no data set, no rows in the split, or `out` is a file.
    """
    wanted = None if python_files.is_spec(spec) else load_spec(spec)
    evaluation.check_out(out)
    directories = [data] if isinstance(data, str | os.PathLike) else list(data)
    chosen = evaluation.choose_protocol(protocol, directories)
    split = split or chosen.split
    rows = Split.load(directories, split)  # before the minutes that reading weights may take
    model: Foreign
    if wanted is None:
        model, facts = own.open_own(spec)
    else:
        if wanted.prompts is not None:
            chosen = chosen.with_prompts(wanted.title, wanted.prompts)
        opened = open_model(wanted, checkpoints, vocabulary, all_devices=True)
        model, facts = opened.model, opened.facts
        facts["enlarged"] = sum(opened.rules.enlarges(shape) for shape in rows.shapes)
    options = evaluation.Options(
        protocol=chosen,
        bootstrap=Bootstrap(resamples=resamples),
        labels_from_reports=labels_from_reports,
        loaded=rows,
        audited=audited(wanted.stated["sources"] if wanted else (), rows),
        external=facts,
        run_name=facts["title"],
        show_text=show_text,
        progress=progress,
        primary=jax.process_index() == 0,
    )
    return terminal.summary(evaluation.evaluate_checkpoint(model, data, split, out, options), facts["title"], out)


def audited(sources: Sequence[str], rows: Split) -> dict[str, Any]:
    """What stands in the place of the audit, in its form: that there can be none, and which sources are stated."""
    shared = [
        source
        for source in sorted(sources)
        if any(numbering.is_same_source(source, scored) for scored in rows.source_counts)
    ]
    note = "the training data of this model are not here"
    if shared:
        note += (
            f"; the spec's author states that it was trained on {', '.join(shared)}, which is scored here: images or "
            "patients of this split may have been seen"
        )
    elif sources:
        note += f"; as the spec's author states, it was trained on {', '.join(sources)}"
    return audit.not_audited(note)


def _folder_rules(spec: Spec, folder: pathlib.Path, encoder: layouts.DualEncoder) -> preprocess.Preprocess:
    """The preprocessing that the checkpoint's folder names."""
    if spec.layout == "huggingface":
        file = folder / "preprocessor_config.json"
        return preprocess.of_huggingface(str(file), read_json(file))
    file = folder / layouts.OPEN_CLIP_CONFIG
    told = field(str(file), read_json(file), "preprocess_cfg", dict, {})
    return preprocess.of_open_clip(str(file), told, encoder.image_size)


# ---------------------------------------------------------------------------------------------------------------------
# Reading specs


def _read(file: pathlib.Path) -> dict[str, Spec]:
    return {str(name): _spec(file, str(name), entry) for name, entry in yaml_tree.read_mapping(file).items()}


def _spec(file: pathlib.Path, name: str, entry: Any) -> Spec:
    where = f"{file}: spec {name}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not followed by fields such as layout")
    if unknown := sorted(map(str, set(entry) - set(_FIELDS))):
        raise UserError(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    for needed in ("layout", "preprocess"):
        if needed not in entry:
            raise UserError(f"{where} needs {needed}")
    activation, heads = field(where, entry, "activation", str, ""), entry.get("heads", {})
    layouts.check_options(where, entry["layout"], activation, heads)
    if entry["layout"] == "openai" and entry["preprocess"] == FOLDER:
        raise UserError(f"{where}: nothing beside a checkpoint of layout openai says how to preprocess; the spec must")
    scale = entry.get("scale", CHECKPOINT)
    if scale != CHECKPOINT and not (fits(scale, float) and scale > 0):
        raise UserError(f"{where}: scale is a number above 0 or the word {CHECKPOINT}, not {scale!r}")
    rules, words = entry["preprocess"], entry.get("prompts")
    if words is not None and not isinstance(words, dict):
        raise UserError(f"{where}: prompts is not followed by templates, phrases or texts")
    return Spec(
        name=name,
        title=field(where, entry, "title", str, name),
        source=field(where, entry, "source", str, ""),
        layout=entry["layout"],
        activation=activation,
        heads=heads,
        preprocess=None if rules == FOLDER else preprocess.parse(where, rules),
        prompts=None if words is None else protocols.parse_prompts(where, words),
        scale=None if scale == CHECKPOINT else float(scale),
        stated=_stated(where, entry.get("trained_on", {})),
        note=field(where, entry, "note", str, ""),
        file=file,
    )


def _stated(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) - {"text", "sources", "labels"}:
        raise UserError(f"{where}: trained_on has text, sources and labels, and nothing else")
    sources, labels = entry.get("sources", []), entry.get("labels")
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise UserError(f"{where}: sources of trained_on is no list of data sets' names")
    if labels == "none":
        labels = {}
    if labels is not None:
        if not isinstance(labels, dict) or not all(isinstance(kinds, list) for kinds in labels.values()):
            raise UserError(f"{where}: labels of trained_on is the word none, or a list of findings for each data set")
        labels = {str(source): [_kind(where, str(label)) for label in kinds] for source, kinds in labels.items()}
    return {"text": field(f"{where}, trained_on", entry, "text", str, ""), "sources": list(sources), "labels": labels}


def _kind(where: str, label: str) -> str:
    if (kind := prompts.kind_of(label)) is None:
        raise UserError(
            f"{where}: {label!r} of trained_on is no finding of the vocabulary "
            "(mmclip_jax/text/resources/vocabulary.yaml)"
        )
    return kind
