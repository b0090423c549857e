"""A start from weights that are there: published encoders, another program's dual encoder, or a run of our own.

It happens once, before step 0. The settings of the model come from the weights; a run that goes on takes them, and the
tokenizer, from its own checkpoint, and reads no weights.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import checkpoints, files
from mmclip_jax.checkpoints.arrays import flat_tree, read_params
from mmclip_jax.config import flat
from mmclip_jax.errors import DamagedCheckpointError, UserError
from mmclip_jax.inference.classifier import KEY
from mmclip_jax.models.pretrained import dual, fit, single
from mmclip_jax.models.pretrained.weights import find_weights, sha256
from mmclip_jax.state import TrainState
from mmclip_jax.text import prompts, subwords
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.text.tokens import Tokenizer

REPORT_FILE = "start.json"
_PARTS = {"image": "image_encoder", "text": "text_encoder"}
# Of an own run's model all settings count but those of how it is computed.
_COMPUTING = ("model.dtype", "model.attention", "model.remat", "model.unroll")


@dataclasses.dataclass
class Start:
    """What a run begins with.

    record: for the manifest, see `Start.manifest`. tokenizer: that of the weights, None where the run's own counts.
    params: {path: array} of the parameters that are not drawn anew, None in a run that goes on. resized: of some of
    them what was changed; left_out: names of weights that have no place here. whole: beginnings of paths of which
    every parameter must come from the weights.
    """

    record: dict[str, Any]
    tokenizer: Tokenizer | None = None
    params: dict[str, np.ndarray] | None = None
    resized: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    whole: tuple[str, ...] = ()

    def manifest(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The run's manifest with what the weights bring along.

        "init": the files with their SHA-256, their family, and what is stated of their training. Data and exposure of
        an own run count as the run's own. "start": {"exposure": as stated, or None} where weights of others are at the
        beginning, be it of an earlier run.
        """
        exposure = {name: dict(entry) for name, entry in manifest["exposure"].items()}
        data: dict[str, Any] = {}
        for before in self.record["runs"]:
            data |= before.get("data", {})
            for source, counts in before.get("exposure", {}).get("sources", {}).items():
                mine = exposure["sources"].get(source, {})
                exposure["sources"][source] = {
                    part: counts.get(part, 0) + mine.get(part, 0) for part in ("paired", "unpaired")
                }
            for name in ("label_kinds", "report_kinds"):
                for source, kinds in before.get("exposure", {}).get(name, {}).items():
                    exposure[name][source] = sorted({*exposure[name].get(source, ()), *kinds})
        made = manifest | {"exposure": exposure, "data": data | manifest["data"]}
        made["init"] = {name: value for name, value in self.record.items() if name not in ("runs", "start")}
        return made | ({"start": self.record["start"]} if self.record["start"] else {})

    def check(self, model: Any) -> None:
        """Checks that every array has its place in the model (a tree of shapes), and that no place is left empty.

        Raises:
          UserError: naming the first parameter that does not fit.
        """
        if self.params is None:
            return
        places = flat_tree(model)
        for path, array in self.params.items():
            there = places.get(path)
            if there is None or tuple(there.shape) != array.shape:
                wanted = "no such parameter" if there is None else f"{list(there.shape)}"
                raise UserError(f"{self._where}: {path} is {list(array.shape)}, and the model has {wanted}")
        if empty := [path for path in places if path.startswith(self.whole) and path not in self.params]:
            raise UserError(
                f"{self._where}: the weights have no {empty[0]}, which the model's settings ask for "
                f"({len(empty)} parameters in all); leave out the settings that ask for it, such as model.pool=cls"
            )

    @property
    def _where(self) -> str:
        return ", ".join(str(entry["file"]) for entry in self.record["files"])

    def apply(self, state: TrainState, abstract: TrainState) -> TrainState:
        """The state before step 0 with these parameters, placed as `abstract` says."""
        if self.params is None:
            return state

        def put(path: Any, old: jax.Array, there: Any) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if self.params is None or name not in self.params:
                return old
            array = self.params[name].astype(old.dtype)
            return jax.make_array_from_callback(array.shape, there.sharding, lambda index: array[index])

        params = jax.tree_util.tree_map_with_path(put, state.params, abstract.params)
        ema = state.ema if state.ema is None else jax.tree_util.tree_map_with_path(put, state.ema, abstract.ema)
        return dataclasses.replace(state, params=params, ema=ema)

    def report(self, model: Any, workdir: str, primary: bool) -> None:
        """Writes what became of every weight and every parameter to WORKDIR/start.json, and says it in a line."""
        if self.params is None:
            return
        places = flat_tree(model)
        new = sorted(path for path in places if path not in self.params)
        logging.info(
            "starts from %s: %d parameters taken, %d of them resized or folded; %d weights left out; %d parameters are "
            "new (%s)", "; ".join(f"{entry['file']} ({entry['family']})" for entry in self.record["files"]),
            len(self.params), len(self.resized), len(self.left_out), len(new),
            ", ".join(sorted({path.partition("/")[0] for path in new})) or "none",
        )  # fmt: skip
        if primary:
            content = {
                "files": self.record["files"],
                "taken": {path: list(array.shape) for path, array in sorted(self.params.items())},
                "changed": self.resized,
                "left_out": sorted(self.left_out),
                "new": new,
            }
            files.write_json(files.locate(workdir) / REPORT_FILE, content)


def prepare(config: ConfigDict, workdir: str = "", given: Collection[str] = ()) -> Start | None:
    """Reads what `config.init` names, and sets the settings of `config.model` that follow; None where it names nothing.

    workdir: of the run, which may have begun; "": of no run yet. given: names of settings that the user set on the
    command line; they are not changed.

    Raises:
      UserError: no such weights, damaged ones, an architecture that is not supported, or a setting in `given` that
        contradicts them. Nothing is written.
    """
    init = config.init
    saved = _newest(workdir) if workdir else None
    if saved is not None:  # before settings of the model are compared, which follow from it
        before, now = (flat(each.init, "init.") for each in (saved.config, config))
        if other := [name for name in now if list(now[name]) != list(before[name])]:
            raise UserError(
                f"{workdir} holds a run with {other[0]}={before[other[0]]!r}, not {now[other[0]]!r}: give that, or "
                "another --workdir for a new run"
            )
    if not (init.image or init.text or init.model):
        return None
    if saved is not None:
        return _resumed(config, saved, given)
    if init.model:
        return _own_run(config, given) if _is_run(init.model) else _dual(config, given)
    return _singles(config, given)


def _newest(workdir: str) -> checkpoints.Saved | None:
    """The newest checkpoint of a run whose settings can be read; None where it has not begun."""
    for step in reversed(checkpoints.steps_of(workdir)):
        try:
            return checkpoints.find_checkpoint(workdir, step)
        except DamagedCheckpointError as error:  # restoring says more, and falls back
            logging.warning("checkpoint %d cannot be read (%s)", step, error)
    return None


def _resumed(config: ConfigDict, saved: checkpoints.Saved, given: Collection[str]) -> Start:
    """A run that goes on: its settings and its tokenizer are those of its checkpoint."""
    kept = {
        name: value for name, value in flat(saved.config.model, "model.").items() if name not in (*given, *_COMPUTING)
    }
    config.update_from_flattened_dict(kept)
    record = dict(saved.manifest.get("init", {})) | {"start": saved.manifest.get("start"), "runs": [_learnt(saved)]}
    has_words = bool(config.init.text or config.init.model)
    return Start(record, load_tokenizer(saved.tokenizer_model) if has_words else None)


def _learnt(saved: checkpoints.Saved) -> dict[str, Any]:
    """What a run has learnt from, by its manifest."""
    return {name: saved.manifest[name] for name in ("data", "exposure") if name in saved.manifest}


def _is_run(path: str) -> bool:
    place = files.locate(path)
    return checkpoints.is_checkpoint(place) or (place / checkpoints.FOLDER).exists()


def _take(config: ConfigDict, settings: Mapping[str, Any], given: Collection[str], where: str) -> None:
    """Sets settings {dotted name: value} that the weights ask for, and says which of them changed.

    Raises:
      UserError: one of them was given otherwise.
    """
    before = flat(config)
    changed = {name: value for name, value in settings.items() if before[name] != value}
    for name, value in changed.items():
        if name in given:
            raise UserError(f"{name}={before[name]!r} was given, but {where} has {value!r}: leave it out")
    config.update_from_flattened_dict(changed)
    if changed:
        said = ", ".join(f"{name.removeprefix('model.')}={value}" for name, value in changed.items())
        logging.info("settings of the model from %s: %s", where, said)


def _record(config: ConfigDict, entries: Sequence[tuple[str, pathlib.Path, str, Sequence[str], str]]) -> dict[str, Any]:
    """What the manifest keeps of weights of others; entries: (part, file, family, assumed settings, SHA-256)."""
    stated = _stated(config.init.trained_on)
    return {
        "files": [
            {"part": part, "file": str(file), "family": family, "sha256": digest, "assumed": list(assumed)}
            for part, file, family, assumed, digest in entries
        ],
        "trained_on": list(config.init.trained_on),
        "stated_by": "the user (init.trained_on)" if config.init.trained_on else "nobody",
        "start": {"exposure": stated},
        "runs": [],
    }


def _stated(trained_on: Sequence[str]) -> dict[str, Any] | None:
    """The exposure that `init.trained_on` states; None where it says nothing.

    Raises:
      UserError: a finding that the vocabulary does not have.
    """
    if not trained_on:
        return None
    labels: dict[str, list[str]] = {}
    for entry in trained_on:
        source, colon, words = entry.partition(":")
        if not source.strip():
            raise UserError(f"init.trained_on: {entry!r} names no data set; write SOURCE or SOURCE:FINDING,FINDING")
        if colon:
            found = {word: prompts.kind_of(word.strip()) for word in words.split(",")}
            if unknown := [word for word, kind in found.items() if kind is None]:
                raise UserError(f"init.trained_on: {unknown[0]!r} of {entry!r} is no finding of the vocabulary")
            labels[source.strip()] = sorted(str(kind) for kind in found.values())
    sources = {entry.partition(":")[0].strip(): {"paired": 0, "unpaired": 0} for entry in trained_on}
    return {"sources": sources, "label_kinds": labels}


# ---------------------------------------------------------------------------------------------------------------------
# Encoders of others


def _singles(config: ConfigDict, given: Collection[str]) -> Start:
    parts = [part for part in ("image", "text") if config.init[part]]
    runs = [part for part in parts if _is_run(config.init[part])]
    encoders = {part: _encoder(config, part, given) for part in parts if part not in runs}
    entries = [(part, each.file, each.title, each.assumed, sha256(each.file)) for part, each in encoders.items()]
    records = [_record(config, entries)] if entries else []
    start = Start({})
    for part in runs:
        records.append(_own_encoder(config, part, given, start))
    start.record = _joined(records)
    for part, encoder in encoders.items():
        if part == "image":
            own, notes = _fit_image(config, encoder, given)
        else:
            start.tokenizer = _vocabulary(config, encoder.file, encoder.settings["vocab_size"])
            own, notes = _fit_text(config, encoder, start.tokenizer, given)
        _add(start, _PARTS[part], own, notes)
        start.left_out += encoder.left_out
    return start


def _encoder(config: ConfigDict, part: str, given: Collection[str]) -> single.Encoder:
    heads = config.model[part].heads if f"model.{part}.heads" in given else 0
    encoder = single.load(config.init[part], part, heads)
    if encoder.assumed:
        logging.warning(
            "%s does not say its %s: %s is assumed", encoder.file, " and ".join(encoder.assumed),
            ", ".join(f"{name} {encoder.settings.get(name, encoder.normal)}" for name in encoder.assumed),
        )  # fmt: skip
    return encoder


def _fit_image(config: ConfigDict, encoder: single.Encoder, given: Collection[str]) -> tuple[Any, fit.Resized]:
    wanted = {f"model.image.{name}": value for name, value in encoder.settings.items()}
    wanted |= {"model.patch_size": encoder.patch_size, "model.stem": "patch"}
    _take(config, _but_assumed(wanted, encoder, given), given, str(encoder.file))
    init = config.init
    return fit.fit_image(encoder, config.model.image_size, (init.mean, init.std) if init.mean else None)


def _fit_text(
    config: ConfigDict, encoder: single.Encoder, tokenizer: Tokenizer, given: Collection[str]
) -> tuple[Any, fit.Resized]:
    wanted = {f"model.text.{name}": value for name, value in encoder.settings.items() if name != "vocab_size"}
    places = wanted.pop("model.text.length")
    if config.model.text.length > places and "model.text.length" not in given:
        wanted["model.text.length"] = places
    _take(config, _but_assumed(wanted, encoder, given), given, str(encoder.file))
    return fit.fit_text(encoder, config.model.text.length, tokenizer.rows)


def _but_assumed(wanted: Mapping[str, Any], encoder: single.Encoder, given: Collection[str]) -> dict[str, Any]:
    """Without the settings that the weights do not say and the user does."""
    said = {f"model.{encoder.part}.{name}" for name in encoder.assumed} & set(given)
    return {name: value for name, value in wanted.items() if name not in said}


def _vocabulary(config: ConfigDict, file: pathlib.Path, rows: int) -> Tokenizer:
    """The tokenizer of the weights: `data.tokenizer`, or what lies beside them."""
    place = config.data.tokenizer or file.parent
    tokenizer = load_tokenizer(place)
    subwords.check_rows(tokenizer, rows, str(place))
    return tokenizer


def _add(start: Start, place: str, params: Any, notes: Mapping[str, str]) -> None:
    start.params = (start.params or {}) | {f"{place}/{path}": array for path, array in flat_tree(params).items()}
    start.resized |= {f"{place}/{path}": note for path, note in notes.items()}
    start.whole = (*start.whole, f"{place}/")


# ---------------------------------------------------------------------------------------------------------------------
# Whole models


def _dual(config: ConfigDict, given: Collection[str]) -> Start:
    """Another program's dual encoder: both encoders, their projections and the logit scale."""
    file = find_weights(config.init.model)
    heads = {part: config.model[part].heads for part in ("image", "text") if f"model.{part}.heads" in given}
    read = dual.load(file, dual.layout_of(file), heads=heads)
    wanted = dict(flat(ConfigDict(read.settings), "model."))
    size, length = wanted.pop("model.image_size"), wanted.pop("model.text.length")
    vocab_size = wanted.pop("model.text.vocab_size")
    if config.model.text.length > length and "model.text.length" not in given:
        wanted["model.text.length"] = length
    _take(config, wanted | {"model.stem": "patch"}, given, str(file))
    assumed = [f"{part} {name}" for part in read.origins for name, by in read.origins[part].items() if by == "assumed"]
    start = Start(_record(config, [("model", file, read.title, assumed, sha256(file))]))
    start.tokenizer = _vocabulary(config, file, vocab_size)
    pair = {
        part: single.Encoder(
            *(read.title, part, file, read.params[_PARTS[part]], read.settings[part], (), ()),
            patch_size=read.settings["patch_size"],
            image_size=size,
            normal=read.normal,
        )
        for part in _PARTS
    }
    init = config.init
    image = fit.fit_image(pair["image"], config.model.image_size, (init.mean, init.std) if init.mean else None)
    _add(start, _PARTS["image"], *image)
    _add(start, _PARTS["text"], *fit.fit_text(pair["text"], config.model.text.length, start.tokenizer.rows))
    assert start.params is not None
    for name in read.params.keys() - {*_PARTS.values(), "logit_bias"}:
        for path, array in flat_tree({name: read.params[name]}).items():
            start.params[path] = np.asarray(array)
        start.whole = (*start.whole, name)
    return start


def _pretrained(place: str) -> checkpoints.Saved:
    """A checkpoint of `mmclip train`.

    Raises:
      UserError: it is a fine-tuned classifier, whose labels the record of a start would not tell.
    """
    saved = checkpoints.find_checkpoint(place)
    if KEY in saved.manifest:
        raise UserError(f"{place} is a fine-tuned classifier: start from the run that it began with")
    return saved


def _own_run(config: ConfigDict, given: Collection[str]) -> Start:
    """A run of `mmclip train`: the whole model, decoders too, with what it had learnt from."""
    saved = _pretrained(config.init.model)
    tokenizer = _own_vocabulary(config, saved)
    sizes = ("model.image_size", "model.text.length")
    theirs = {name: value for name, value in flat(saved.config.model, "model.").items() if name not in _COMPUTING}
    wanted = {name: value for name, value in theirs.items() if not (name in sizes and name in given)}
    _take(config, wanted, given, str(saved.directory))
    start = Start(_run_record("model", saved), tokenizer, read_params(saved), whole=("",))
    _resize(start, config, saved)
    return start


def _own_encoder(config: ConfigDict, part: str, given: Collection[str], start: Start) -> dict[str, Any]:
    """Adds one encoder of a run of `mmclip train` to a start; what the manifest is to say of it."""
    saved = _pretrained(config.init[part])
    theirs = flat(saved.config.model[part], f"model.{part}.")
    if part == "image":
        theirs |= {f"model.{name}": saved.config.model[name] for name in ("patch_size", "stem")}
    else:
        start.tokenizer = _own_vocabulary(config, saved)
        if "model.text.length" in given:
            del theirs["model.text.length"]
    _take(config, theirs, given, str(saved.directory))
    place = f"{_PARTS[part]}/"
    own = {path: array for path, array in read_params(saved).items() if path.startswith(place)}
    start.params = (start.params or {}) | own
    start.whole = (*start.whole, place)
    _resize(start, config, saved)
    return _run_record(part, saved)


def _own_vocabulary(config: ConfigDict, saved: checkpoints.Saved) -> Tokenizer:
    tokenizer = load_tokenizer(saved.tokenizer_model)
    if config.data.tokenizer and load_tokenizer(config.data.tokenizer).model_bytes != tokenizer.model_bytes:
        raise UserError(f"data.tokenizer={config.data.tokenizer} is not that of {saved.directory}: leave it out")
    return tokenizer


def _run_record(part: str, saved: checkpoints.Saved) -> dict[str, Any]:
    """What the manifest keeps of a run of `mmclip train`."""
    before = _learnt(saved)
    entry = {"part": part, "file": str(saved.directory), "family": "a run of mmclip train", "sums": saved.sums}
    return {
        "files": [entry | {"assumed": []}],
        "trained_on": sorted(before.get("exposure", {}).get("sources", {})),
        "stated_by": "the run's own record",
        "start": saved.manifest.get("start"),
        "runs": [before],
    }


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of encoders that come from several places; where one's training is unknown, so is that of all."""
    exposures = [record["start"]["exposure"] for record in records if record["start"]]
    stated: dict[str, Any] | None = {"sources": {}, "label_kinds": {}}
    for each in exposures:
        if stated is not None:
            stated = each and {name: stated[name] | each[name] for name in stated}
    return {
        "files": [entry for record in records for entry in record["files"]],
        "trained_on": sorted({name for record in records for name in record["trained_on"]}),
        "stated_by": "; ".join(dict.fromkeys(record["stated_by"] for record in records)),
        "start": {"exposure": stated} if exposures else None,
        "runs": [run for record in records for run in record["runs"]],
    }


def _resize(start: Start, config: ConfigDict, saved: checkpoints.Saved) -> None:
    """Positions of a run's parameters, as many as the new run's sizes ask for."""
    assert start.params is not None
    side = config.model.image_size // config.model.patch_size
    for path, array in list(start.params.items()):
        if path.endswith("position") and path.startswith(("image_encoder", "decode_patches")) and len(array) != side**2:
            start.params[path] = fit.resize_positions(array, side)
            start.resized[path] = f"{len(array)} places resized to {side * side}, bicubic"
        elif path.endswith("position") and path.startswith(("text_encoder", "decode_tokens")):
            length = config.model.text.length
            if length > len(array):
                raise UserError(
                    f"model.text.length={length}, but {saved.directory} has {len(array)} positions: leave it out"
                )
            if length < len(array):
                start.params[path], start.resized[path] = array[:length], f"the first {length} of {len(array)}"
