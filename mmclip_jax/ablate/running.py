"""The runs of a study: planned, checked, trained and evaluated, one after another."""

import dataclasses
import gc
import hashlib
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import files, setting_names
from mmclip_jax.ablate.studies import ALL, STUDIES, Study
from mmclip_jax.ablate.table import summarize, write_json, write_table
from mmclip_jax.check import check_ranges
from mmclip_jax.config import flat
from mmclip_jax.errors import TrainingError, UserError
from mmclip_jax.text.flips import FLIPS

Train = Callable[[ConfigDict, str], Any]
Evaluate = Callable[[pathlib.Path, Sequence[str], str], dict[str, float]]

RUN_FILE = "ablation.json"


def run(
    config: ConfigDict,
    study: str,
    seeds: Sequence[int],
    workdir: str | os.PathLike[str],
    *,
    data: Sequence[str] | None = None,
    split: str = "validation",
    steps: int | None = None,
    train: Train | None = None,
    evaluate: Evaluate | None = None,
) -> str:
    """Trains and evaluates every row of a study with every seed; writes the table and returns it as text.

    WORKDIR/STUDY then holds table.txt, table.md, table.csv and table.json (with the measures of every single run).

    Args:
      config: the settings that the rows change.
      study: a name in STUDIES, or "all".
      seeds: of initialisation, data order and masks; rows are compared seed by seed.
      workdir: made if missing.
      data: data sets to evaluate on; default: those that the config evaluates or, failing that, trains on.
      split: the part to evaluate on.
      steps: default: config.train.steps.
      train: the trainer, (config, workdir) -> anything; default: `mmclip_jax.train.run.train`.
      evaluate: (workdir, data, split) -> {measure: value}; default: `evaluate_run`.

    Raises:
      UserError: an unknown study, no seeds or the same one twice, no data, settings that do not fit together, or a run
        that is there already was made with other settings.
    """
    if study != ALL and study not in STUDIES:
        raise UserError(f"there is no study {study!r}; there are: {', '.join((*STUDIES, ALL))}")
    check_ranges(config)
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {seeds}: give one or more, each once")
    data = tuple(data or config.data.evaluate or config.data.train)
    if not data:
        raise UserError("data.train names no data set: give directories, e.g. --config.data.train='(\"DIR\",)'")
    workdir = pathlib.Path(files.locate(workdir))
    names = list(STUDIES) if study == ALL else [study]
    plans = {name: plan(config, STUDIES[name], seeds, steps) for name in names}
    for runs in plans.values():
        for one in runs:
            _check(one)
    texts = []
    for name in names:
        results = _run_study(workdir, name, plans[name], data, split, train or _train, evaluate or evaluate_run)
        table = summarize(name, {row: len(seeds) for row in STUDIES[name]}, results)
        table |= {"data": list(data), "split": split, "seeds": seeds, "made_with": _made_with(config, steps)}
        texts.append(write_table(table, workdir / name))
    return "\n\n".join(texts)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a study."""

    row: str
    seed: int
    config: ConfigDict

    @property
    def folder(self) -> str:
        """Its directory within the study's."""
        return f"{slug(self.row)}/seed_{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings."""
        text = json.dumps(json.loads(self.config.to_json()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """A directory name: lower case, digits, underscores."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def plan(base: ConfigDict, study: Study, seeds: Sequence[int], steps: int | None = None) -> list[Run]:
    """The runs of a study, seed by seed, so that an interrupted one holds whole seeds first.

    Raises:
      UserError: a row sets a key that the config does not have, or one that weights of `init` would set again.
    """
    from_weights = _from_weights(base)
    runs = []
    for seed in seeds:
        for row, settings in study.items():
            # Patches by one linear map are what published weights have: no clash.
            if clash := [key for key, value in settings.items() if key.startswith(from_weights) and value != "patch"]:
                raise UserError(
                    f"row {row!r} sets {clash[0]}, which follows from the weights that `init` names: leave one out"
                )
            config = ConfigDict(base.to_dict())
            config.seed = seed
            config.train.update({"steps": steps or base.train.steps, "evaluate_every": 0, "keep": 1})
            for key, value in settings.items():
                apply_setting(config, key, value(base) if callable(value) else value)
            runs.append(Run(row, seed, config))
    return runs


def _from_weights(config: ConfigDict) -> tuple[str, ...]:
    """Beginnings of the names of settings that follow from weights (train/start.py)."""
    if config.init.model:
        return ("model.",)
    image = ("model.image.", "model.patch_size", "model.stem") if config.init.image else ()
    return (*image, *(("model.text.",) if config.init.text else ()))


def apply_setting(config: ConfigDict, key: str, value: Any) -> None:
    """Sets config.a.b.c for the key "a.b.c".

    Raises:
      UserError: there is no such setting, or the value is of another type.
    """
    *path, last = key.split(".")
    part = config
    for name in path:
        part = part[name] if isinstance(part, ConfigDict) and name in part else None
    if not isinstance(part, ConfigDict) or last not in part:
        raise UserError(setting_names.problem(key, flat(config)))
    try:
        part[last] = value
    except TypeError as error:
        raise UserError(f"{key}: {error}") from error


def _check(one: Run) -> None:
    """Refuses a run that the trainer would refuse, before hours of the others."""
    import jax

    from mmclip_jax.check import check_config
    from mmclip_jax.models.mmclip import build_model

    try:
        check_config(one.config, jax.device_count())
        build_model(one.config.model)
    except UserError as error:
        raise UserError(f"row {one.row!r}: {error}") from error


def _run_study(
    workdir: pathlib.Path,
    study: str,
    runs: Sequence[Run],
    data: Sequence[str],
    split: str,
    train: Train,
    evaluate: Evaluate,
) -> list[dict[str, Any]]:
    """[{"row", "seed", "measures"} or {"row", "seed", "failed"}] of all runs."""
    results = []
    for number, one in enumerate(runs, 1):
        folder = workdir / study / one.folder
        key = {"fingerprint": one.fingerprint, "data": list(data), "split": split}
        done = _finished(folder, key) or _taken_over(workdir, folder, key)
        where = f"{study} {number}/{len(runs)}: {one.row}, seed {one.seed}"
        if done is None:
            logging.info("%s", where)
            done = _run_one(one, folder, key, train, evaluate)
        else:
            logging.info("%s: done before", where)
        results.append({"row": one.row, "seed": one.seed, **done})
    return results


def _run_one(one: Run, folder: pathlib.Path, key: dict[str, Any], train: Train, evaluate: Evaluate) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    # Before the first step: a half-finished run is known by it, and is not continued with other settings.
    write_json(folder / RUN_FILE, key)
    try:
        train(one.config, str(folder))
        result: dict[str, Any] = {"measures": evaluate(folder, key["data"], key["split"])}
    except TrainingError as error:
        # A variant may diverge: that is a result, and no reason to stop the others.
        logging.error("%s, seed %d: %s", one.row, one.seed, error)
        return {"failed": str(error)}
    write_json(folder / RUN_FILE, key | result)
    return result


def _finished(folder: pathlib.Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a run that is complete, None if there is none yet.

    Raises:
      UserError: it was made with other settings.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return None
    content = files.read_json(path, "delete it, and the run is made again")
    if content.get("fingerprint") != key["fingerprint"]:
        raise UserError(f"{folder} holds a run with other settings: remove it or choose another --workdir")
    same = all(content.get(name) == value for name, value in key.items())
    # Evaluated on other data: evaluate again; training then finds its last checkpoint and has nothing to do.
    return {"measures": content["measures"]} if same and "measures" in content else None


def _taken_over(workdir: pathlib.Path, folder: pathlib.Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a complete run of any study with the same settings; noted in `folder`, which must be new."""
    if folder.exists():
        return None
    for path in sorted(workdir.glob(f"*/*/*/{RUN_FILE}")):
        content = files.read_json(path, "delete it, and the run is made again")
        if "measures" in content and all(content.get(name) == value for name, value in key.items()):
            source = os.path.relpath(path.parent, folder)
            folder.mkdir(parents=True)
            write_json(folder / RUN_FILE, {**key, "measures": content["measures"], "same_as": source})
            return {"measures": content["measures"]}
    return None


def _train(config: ConfigDict, workdir: str) -> Any:
    import jax

    from mmclip_jax.train.run import train

    # Every run compiles its own step, and a study has dozens of runs: what the last one left is freed.
    jax.clear_caches()
    gc.collect()
    return train(config, workdir)


def evaluate_run(workdir: pathlib.Path, data: Sequence[str], split: str) -> dict[str, float]:
    """The measures of a trained run's newest checkpoint: {key of MEASURES: value}; what the data lacks is left out."""
    import mmclip_jax
    from mmclip_jax.data.leakage.audit import NOTHING_STATED
    from mmclip_jax.evaluate.run import Options, audit_scored, choose_protocol, evaluate_checkpoint
    from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

    model = mmclip_jax.load(workdir)
    settings = model.config.data
    told = NOTHING_STATED.joined(settings)
    audit_scored(model.manifest, data, split, choose_protocol(None, data), settings.allow_leakage, told)
    # No intervals within a run: the table's come from the seeds. No probes of trust: the table has none of them.
    options = Options(bootstrap=Bootstrap(resamples=0), without=("trust",), progress=False)
    return measures_of(evaluate_checkpoint(model, list(data), split, options=options))


def measures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Picks MEASURES out of what `evaluate_checkpoint` returns."""
    head = results["headline"]
    names = ("macro_auroc", "report_only_auroc", "pointing_random", "source_probe_auroc")
    values = {name: head.get(name) for name in names}
    values |= {f"entmlm_{name}": head.get(f"entmlm_{name}") for name in ("own", "swapped", "drop")}
    if results.get("grounding"):
        overall = results["grounding"]["overall"]
        for response in results["grounding"]["responses"]:
            values |= {
                f"pointing_{response}": overall[response]["rate"],
                f"iou_{response}": overall[response].get("iou"),
            }
    for flip in (results.get("counterfactual") or {}).get("flips", ()):
        if flip["flip"] in FLIPS:
            values[flip["flip"]] = flip["rate"]
    parts = [part for part in (results.get("contrastive") or {}).get("parts", ()) if part["part"] == "paired"]
    for measure, name in (("contrastive_loss", "loss"), ("image_to_text", "image_to_text")):
        known = [part[name] for part in parts if part.get(name) is not None]
        values[measure] = statistics.fmean(known) if known else None
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _made_with(config: ConfigDict, steps: int | None) -> dict[str, Any]:
    """What a reader needs to judge the table by: machine, versions, length of the runs."""
    import platform

    import jax

    import mmclip_jax

    return {
        "steps": steps or config.train.steps,
        "batch": {part: config.data[f"batch_{part}"] for part in ("paired", "unpaired")},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "mmclip_jax": mmclip_jax.__version__,
    }
