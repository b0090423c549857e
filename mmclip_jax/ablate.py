"""Ablations: named grids of runs through the ordinary trainer, and one table with what every variant changes.

A study is a dict {row: {dotted config key: value}}. Every row is trained with every seed in WORKDIR/STUDY/ROW/seed_N,
by `mmclip_jax.train.run.train` and nothing else, and evaluated; the first row is the one that the others are compared
with. What is finished is not run again, what was cut off goes on from its checkpoint, and a run that another study in
the same WORKDIR has made already with equal settings is taken over.

All runs share this process, one after another: a process each would pay for imports and data caches again and gain
nothing, since a run leaves no state behind but compiled programs, which are dropped before the next one.
"""

import dataclasses
import gc
import hashlib
import io
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import scipy.stats
from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import files, spreadsheet
from mmclip_jax.check import check_ranges
from mmclip_jax.errors import TrainingError, UserError

Setting = Any  # a value, or a function of the base config that gives one
Study = Mapping[str, Mapping[str, Setting]]
Train = Callable[[ConfigDict, str], Any]
Evaluate = Callable[[pathlib.Path, Sequence[str], str], dict[str, float]]

RUN_FILE = "ablation.json"
LEVEL = 0.95

_STRATEGY, _HINT = "objective.attmim.strategy", "objective.attmim.hint"
_ATTMIM, _ENTMLM = "objective.attmim.weight", "objective.entmlm.weight"
_LOCAL = "objective.local.weight"
_PAIRED, _UNPAIRED = "data.batch_paired", "data.batch_unpaired"

# The first row of a study is what the others are compared with.
STUDIES: dict[str, dict[str, dict[str, Setting]]] = {
    # Does masked modelling help, and which half of it? At the weights of the config.
    "objectives": {
        "contrastive only": {_ATTMIM: 0.0, _ENTMLM: 0.0, _LOCAL: 0.0},
        "+ AttMIM": {_ENTMLM: 0.0, _LOCAL: 0.0},
        "+ EntMLM": {_ATTMIM: 0.0, _LOCAL: 0.0},
        "+ both": {_LOCAL: 0.0},
        "+ both, local": {},
    },
    # Is it the attention that matters in masking, or masking?
    "patches": {
        "attention": {_STRATEGY: "attention", _HINT: 0.0},
        "random": {_STRATEGY: "random", _HINT: 0.0},
        "inverse": {_STRATEGY: "inverse", _HINT: 0.0},
    },
    "hint": {
        "no hint": {_HINT: 0.0},
        "hint 0.1": {_HINT: 0.1},
        "hint 0.3": {_HINT: 0.3},
    },
    "tokens": {
        "entities": {"objective.entmlm.strategy": "entity"},
        "random tokens": {"objective.entmlm.strategy": "random"},
    },
    # Do unpaired images help? Once at the same number of rows a step, once at the same number of reports a step.
    "unpaired": {
        "paired and unpaired": {},
        "paired only, as many rows": {_PAIRED: lambda c: c.data.batch_paired + c.data.batch_unpaired, _UNPAIRED: 0},
        "paired only, as many reports": {_UNPAIRED: 0},
    },
    "response": {
        "similarity": {"objective.attmim.response": "similarity"},
        "cross-attention": {"objective.attmim.response": "cross_attention"},
    },
    "local": {
        "no local loss": {_LOCAL: 0.0},
        "local 0.5": {_LOCAL: 0.5},
        "local 1": {_LOCAL: 1.0},
    },
    "pool": {
        "means": {"model.pool": "mean", "model.text_pool": "mean"},
        "maximum of patches": {"model.pool": "max", "model.text_pool": "mean"},
        "maxima of both": {"model.pool": "max", "model.text_pool": "max"},
    },
    "bridges": {
        "no bridges": {"data.bridge": 0.0},
        "bridges 0.25": {"data.bridge": 0.25},
        "bridges 0.5": {"data.bridge": 0.5},
    },
    "targets": {
        "by text": {"objective.contrastive.targets": "text"},
        "by kinds": {"objective.contrastive.targets": "kinds"},
    },
    "loss": {
        "softmax": {"objective.contrastive.loss": "softmax"},
        "sigmoid": {"objective.contrastive.loss": "sigmoid"},
    },
    # Both with the linear stem: convolutions would let an encoder of visible patches see hidden neighbours.
    "mask_at": {
        "features": {"objective.attmim.mask_at": "features", "model.stem": "patch"},
        "input": {"objective.attmim.mask_at": "input", "model.stem": "patch"},
    },
    "stem": {
        "linear patches": {"model.stem": "patch"},
        "convolutions": {"model.stem": "conv"},
    },
    "sources": {
        "across sources": {"objective.contrastive.across_sources": True},
        "within sources": {"objective.contrastive.across_sources": False},
    },
}
ALL = "all"

# What is measured: key, heading, whether more is better (None: neither).
MEASURES: tuple[tuple[str, str, bool | None], ...] = (
    ("macro_auroc", "macro AUROC", True),
    ("pointing_similarity", "pointing, similarity", True),
    ("pointing_cross_attention", "pointing, cross-attention", True),
    ("pointing_random", "pointing, chance", None),
    ("entmlm_own", "EntMLM, own image", True),
    ("entmlm_swapped", "EntMLM, other image", None),
    ("entmlm_drop", "EntMLM, drop", True),
    ("contrastive_loss", "contrastive loss, paired", False),
    ("image_to_text", "recall@1, paired", True),
    ("source_probe_auroc", "source probe AUROC", False),
)


# ---------------------------------------------------------------------------------------------------------------------
# Running


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
      UserError: a row sets a key that the config does not have.
    """
    runs = []
    for seed in seeds:
        for row, settings in study.items():
            config = ConfigDict(base.to_dict())
            config.seed = seed
            config.train.update({"steps": steps or base.train.steps, "evaluate_every": 0, "keep": 1})
            for key, value in settings.items():
                apply_setting(config, key, value(base) if callable(value) else value)
            runs.append(Run(row, seed, config))
    return runs


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
        raise UserError(f"the config has no setting {key}")
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
    _write_json(folder / RUN_FILE, key)
    try:
        train(one.config, str(folder))
        result: dict[str, Any] = {"measures": evaluate(folder, key["data"], key["split"])}
    except TrainingError as error:
        # A variant may diverge: that is a result, and no reason to stop the others.
        logging.error("%s, seed %d: %s", one.row, one.seed, error)
        return {"failed": str(error)}
    _write_json(folder / RUN_FILE, key | result)
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
            _write_json(folder / RUN_FILE, {**key, "measures": content["measures"], "same_as": source})
            return {"measures": content["measures"]}
    return None


def _write_json(path: pathlib.Path, content: Any) -> None:
    files.write_whole(path, json.dumps(content, indent=1) + "\n")


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
    from mmclip_jax.data.leakage.audit import NOTHING_TOLD
    from mmclip_jax.evaluate.run import Options, audit_scored, choose_protocol, evaluate_checkpoint
    from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

    model = mmclip_jax.load(workdir)
    settings = model.config.data
    told = NOTHING_TOLD.joined(settings)
    audit_scored(model.manifest, data, split, choose_protocol(None, data), settings.allow_leakage, told)
    # No intervals within a run: the table's come from the seeds. No probes of trust: the table has none of them.
    options = Options(bootstrap=Bootstrap(resamples=0), without=("trust", "counterfactual"), progress=False)
    return measures_of(evaluate_checkpoint(model, list(data), split, options=options))


def measures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Picks MEASURES out of what `evaluate_checkpoint` returns."""
    head = results["headline"]
    values = {name: head.get(name) for name in ("macro_auroc", "pointing_random", "source_probe_auroc")}
    values |= {f"entmlm_{name}": head.get(f"entmlm_{name}") for name in ("own", "swapped", "drop")}
    if results.get("grounding"):
        overall = results["grounding"]["overall"]
        values |= {f"pointing_{response}": overall[response]["rate"] for response in results["grounding"]["responses"]}
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


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n-1 (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = LEVEL
) -> dict[str, float | int | None] | None:
    """Mean of values - reference over the seeds that both have, with Student's t interval of the paired differences.

    The interval covers what the seed decides (initialisation, data order, masks), not the choice of test images.

    Returns:
      {"mean", "low", "high", "seeds"}; low and high are None with one seed; None if no seed is shared.
    """
    shared = sorted(values.keys() & reference.keys())
    if not shared:
        return None
    mean, sd = mean_and_sd([values[seed] - reference[seed] for seed in shared])
    if sd is None:
        return {"mean": mean, "low": None, "high": None, "seeds": 1}
    half = scipy.stats.t.ppf(0.5 + level / 2, len(shared) - 1) * sd / math.sqrt(len(shared))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": len(shared)}


# ---------------------------------------------------------------------------------------------------------------------
# The table


def summarize(study: str, rows: Mapping[str, int], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table's content, as in table.json.

    Args:
      study: its name.
      rows: {row: runs planned}, the first being the reference.
      results: what every run gave (`_run_study`).

    Returns:
      {"study", "reference", "level", "measures": [key...], "rows": [{"row", "runs", "planned", "failed": [message...],
      "values": {measure: {"mean", "sd", "by_seed": {seed: value}, "difference": see `paired_difference`}}}]}.
    """
    by_row: dict[str, dict[str, dict[int, float]]] = {row: {} for row in rows}
    for result in results:
        for measure, value in result.get("measures", {}).items():
            by_row[result["row"]].setdefault(measure, {})[result["seed"]] = value
    reference = next(iter(rows))
    lines = []
    for row, planned in rows.items():
        values: dict[str, Any] = {}
        for measure, by_seed in by_row[row].items():
            mean, sd = mean_and_sd(list(by_seed.values()))
            values[measure] = {"mean": mean, "sd": sd, "by_seed": by_seed}
            if row != reference:
                values[measure]["difference"] = paired_difference(by_seed, by_row[reference].get(measure, {}))
        mine = [result for result in results if result["row"] == row]
        failed = [f"seed {result['seed']}: {result['failed']}" for result in mine if "failed" in result]
        runs = sum("measures" in result for result in mine)
        lines.append({"row": row, "runs": runs, "planned": planned, "failed": failed, "values": values})
    known = [key for key, *_ in MEASURES]
    found = {measure for values in by_row.values() for measure in values}
    measures = [key for key in known if key in found] + sorted(found.difference(known))
    return {"study": study, "reference": reference, "level": LEVEL, "measures": measures, "rows": lines}


def _heading(measure: str) -> str:
    for key, heading, better in MEASURES:
        if key == measure:
            return heading + ("" if better is None else " ↑" if better else " ↓")
    return measure


def _plain(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else format(value, "+.3f" if sign else ".3f").replace("-", "−")


def _cells(table: Mapping[str, Any]) -> list[list[str]]:
    """The two halves of the table: a heading, then a line a row; differences below, after an empty line."""
    head = ["", *(_heading(measure) for measure in table["measures"])]
    absolute, relative = [head], []
    for line in table["rows"]:
        name = line["row"] + ("" if line["runs"] == line["planned"] else f" ({line['runs']} of {line['planned']} runs)")
        cells, changes = [name], [f"{line['row']} − {table['reference']}"]
        for measure in table["measures"]:
            value = line["values"].get(measure)
            if value is None:
                cells.append("–")
                changes.append("–")
                continue
            cells.append(_plain(value["mean"]) + ("" if value["sd"] is None else f" ± {_plain(value['sd'])}"))
            change = value.get("difference")
            if change is None:
                changes.append("–")
            else:
                bounds = ", ".join(_plain(change[name], True) for name in ("low", "high"))
                changes.append(_plain(change["mean"], True) + ("" if change["low"] is None else f" [{bounds}]"))
        absolute.append(cells)
        if line["row"] != table["reference"]:
            relative.append(changes)
    return [*absolute, [], *relative]


def _caption(table: Mapping[str, Any]) -> str:
    made = table.get("made_with", {})
    facts = [f"{name} {value}" for name, value in made.items() if name != "batch"]
    if "batch" in made:
        facts.insert(0, "rows a step " + " + ".join(f"{count} {part}" for part, count in made["batch"].items()))
    lines = [
        f"Mean ± sd over seeds {', '.join(map(str, table.get('seeds', ())))} on the {table.get('split', '')} split; "
        f"below, differences paired by seed with {table['level']:.0%} intervals of Student's t. They cover what the "
        "seed decides, not the choice of images.",
        "; ".join(facts),
    ]
    lines += [f"Failed: {line['row']}, {message}" for line in table["rows"] for message in line["failed"]]
    return "\n".join(line for line in lines if line)


def as_text(table: Mapping[str, Any]) -> str:
    """The table for a terminal, columns aligned; wide ones are turned: a line a measure."""
    cells = [row for row in _cells(table) if row]
    turned = [list(column) for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*turned, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in turned]
    return "\n".join([f"Study: {table['study']}", *lines, _caption(table)])


def as_markdown(table: Mapping[str, Any]) -> str:
    """The table for a page."""
    head, *rows = [row for row in _cells(table) if row]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    caption = "\n\n".join(_caption(table).split("\n"))
    return f"### {table['study']}\n\n{body}\n\n{caption}\n"


def as_csv(table: Mapping[str, Any]) -> str:
    """One line a row and measure: means, sds, differences; numbers in full."""
    out = io.StringIO()
    writer = spreadsheet.Writer(out)
    writer.writerow(["study", "row", "measure", "runs", "mean", "sd", "difference", "low", "high"])
    for line in table["rows"]:
        for measure in table["measures"]:
            value = line["values"].get(measure)
            if value is not None:
                change = value.get("difference") or {}
                numbers = [value["mean"], value["sd"], *(change.get(name) for name in ("mean", "low", "high"))]
                writer.writerow([table["study"], line["row"], measure, len(value["by_seed"]), *numbers])
    return out.getvalue()


def write_table(table: Mapping[str, Any], folder: pathlib.Path) -> str:
    """Writes table.txt, .md, .csv and .json; returns the text with the place where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    text = as_text(table)
    for name, content in (("txt", text + "\n"), ("md", as_markdown(table)), ("csv", as_csv(table))):
        (folder / f"table.{name}").write_text(content, encoding="utf-8")
    _write_json(folder / "table.json", table)
    return f"{text}\nTable: {folder / 'table.md'}"
