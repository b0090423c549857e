"""The paper's three claims on the phantom: runs, tables, and what each table shows.

    python benchmarks/evidence.py                   # 3 seeds, 500 steps a run: hours; goes on where it stopped
    python benchmarks/evidence.py --claims attmim
    python benchmarks/evidence.py --known docs/evidence.json   # takes over the runs that this file has
    python benchmarks/evidence.py --known docs/evidence.json --tables     # of these runs alone: makes none
    python benchmarks/evidence.py --fast            # tries the same path in minutes: one seed, a tiny model, two claims

The grids are the studies `claim_…` of `mmclip ablate` with `configs/demo.py`, scored on the test split of a phantom.
The method is the first row of a study. The claim is that another row is less good than it, by a measure. It is

    shown          if the 95 % interval of the difference over seeds (paired, Student's t) lies on the method's side,
    contradicted   if it lies on the other side of 0,
    not shown      otherwise, and with one seed always.

Which rows and measures count is written here, before any run. Beside it stands the difference of the macro AUROC of the
first seed's two runs with its interval over patients (`mmclip compare`). To the measures of `mmclip ablate` come the
macro AUROCs of linear probes (`mmclip finetune`) that learn from 1 % and from 10 % of the training patients. The page
`--out` begins with the verdicts and the rows, which docs/results.md shows, and then has every study's table; every run
with its measures goes into evidence.json beside it. Two processes with different `--seeds` may share a workdir; a last
call with all seeds then makes the tables.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

import jax
from ml_collections import ConfigDict

from mmclip_jax import ablate, files
from mmclip_jax.ablate.running import RUN_FILE, Train, slug
from mmclip_jax.ablate.studies import MEASURES, STUDIES
from mmclip_jax.ablate.table import as_markdown
from mmclip_jax.cli.build import build_phantom
from mmclip_jax.data.phantom.generate import PAIRED_SOURCE
from mmclip_jax.errors import TrainingError
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.report import comparison
from mmclip_jax.finetune import run as finetuning
from mmclip_jax.finetune.task import Settings
from mmclip_jax.settings import read_config

SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
FAST_STEPS, FAST_SCALE, FAST_CLAIMS = 20, 0.03, ("entmlm", "unpaired")  # which share a run
OVER_PATIENTS = "over_patients.json"
PROBES = {0.01: "linear probe, 1 %", 0.1: "linear probe, 10 %"}  # shares of the training patients: measures


@dataclasses.dataclass(frozen=True)
class Claim:
    """name: for tables; study: of the ablation; against: the rows that must be less good; by: by which measures."""

    name: str
    study: str
    against: tuple[str, ...]
    by: tuple[str, ...]


CLAIMS = {
    "attmim": Claim(  # masking the patches that respond most to the text, and restoring them, helps
        "AttMIM",
        "claim_attmim",
        ("none", "random"),
        ("macro_auroc", "pointing_similarity"),
    ),
    "attmim_input": Claim(  # the same with the patches masked at the input, and a stem of one linear map
        "AttMIM at the input",
        "claim_attmim_input",
        ("none",),
        ("macro_auroc", "pointing_similarity"),
    ),
    "entmlm": Claim(  # masking medical entities, and restoring them with the image, helps
        "EntMLM",
        "claim_entmlm",
        ("none", "random tokens"),
        ("macro_auroc", "entmlm_drop"),
    ),
    "unpaired": Claim(  # images with labels alone help, through prompts
        "unpaired",
        "claim_unpaired",
        ("none", "labels of other images"),
        ("macro_auroc", "pointing_similarity"),
    ),
    "total": Claim(  # the three objectives together are better than the contrastive loss alone
        "total",
        "claim_total",
        ("contrastive only", "contrastive and local"),
        ("macro_auroc", "pointing_similarity"),
    ),
}
_BETTER = {key: better for key, _, better in MEASURES}
_NAMES = {key: heading for key, heading, _ in MEASURES}
# What the table of all rows shows of the measures; every study's own table has them all.
_COLUMNS = {
    "macro_auroc": "macro AUROC",
    "report_only_auroc": "report-only",
    "pointing_similarity": "pointing",
    "iou_similarity": "IoU",
    "entmlm_drop": "EntMLM, drop",
    "image_to_text": "recall@1",
    "polarity": "polarity",
    "side": "side",
    "severity": "severity",
    "source_probe_auroc": "source probe",
    PROBES[0.01]: "probe, 1 %",
    PROBES[0.1]: "10 %",
}
_METHOD = "the method"


def verdict(difference: dict[str, Any] | None, better: bool | None) -> str:
    """What a difference (row less method, as in table.json) says of the claim that the method is better.

    better: whether more is better; None counts as yes.
    """
    if difference is None or difference["low"] is None:
        return NOT_SHOWN
    low, high = difference["low"], difference["high"]
    if better is False:
        low, high = -high, -low
    return SHOWN if high < 0 else CONTRADICTED if low > 0 else NOT_SHOWN


def measured(workdir: Path, data: Sequence[str], split: str) -> dict[str, float]:
    """The measures of `mmclip ablate`, and the macro AUROC of linear probes, on the paired source."""
    values = ablate.evaluate_run(workdir, data, split)
    settings = Settings(fractions=tuple(PROBES), seeds=(0,), discard_classifiers=True)
    probes = workdir / "probes"
    finetuning.run(workdir, data, probes, settings, split=split, resamples=0, progress=False)
    results = json.loads((probes / settings.mode / finetuning.RESULTS_FILE).read_text(encoding="utf-8"))
    for of in results["fractions"]:
        macro = of["sources"][PAIRED_SOURCE]["macro_auroc"]
        if macro is not None:
            values[PROBES[of["fraction"]]] = macro["mean"]
    return values


def over_patients(folder: Path, method: str, row: str, seed: int, data: str) -> tuple[float, Sequence[float]] | None:
    """(macro AUROC of the row less the method's, its interval over patients), of the runs of one seed.

    None where a run failed, is missing, or was taken over and has neither scores nor checkpoints.
    """
    kept = folder / slug(row) / f"seed_{seed}" / OVER_PATIENTS
    if not kept.exists():
        runs = []
        for name in (method, row):
            run = folder / slug(name) / f"seed_{seed}"
            content = json.loads((run / RUN_FILE).read_text(encoding="utf-8")) if (run / RUN_FILE).exists() else {}
            if "measures" not in content:
                return None
            run = run / content.get("same_as", "")
            place = run / "scored"
            if not (place / "results.json").exists():
                if not (run / "checkpoints").exists():
                    return None
                evaluation.run(run, None, [data], split="test", out=place, progress=False)
            runs.append(comparison.SavedEvaluation.read(place))
        macro = comparison.compare(runs)["sources"][PAIRED_SOURCE]["macro"]["auroc"]["differences"][1]
        files.write_json(kept, [macro["difference"], macro["interval"]])
    apart, interval = json.loads(kept.read_text(encoding="utf-8"))
    return apart, interval


def all_runs(workdir: Path, studies: Sequence[str]) -> list[dict[str, Any]]:
    """What is known of every finished run of the studies, as `take_over` takes it."""
    found = []
    for study in studies:
        for path in sorted((workdir / study).glob(f"*/seed_*/{RUN_FILE}")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if "measures" in content:
                found.append({"run": path.parent.relative_to(workdir).as_posix(), **content})
                beside = path.parent / OVER_PATIENTS
                if beside.exists():
                    found[-1]["over_patients"] = json.loads(beside.read_text(encoding="utf-8"))
    return found


def no_run(config: Any, workdir: str) -> None:
    """Stands for the trainer where only tables are asked for.

    Raises:
      TrainingError: always; the table then names the run.
    """
    raise TrainingError("not made yet")


def take_over(known: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    """Lays out the runs of `all_runs` that the workdir has not; those made with other settings are refused later."""
    for content in known:
        place = workdir / content["run"]
        if place.exists():
            continue
        place.mkdir(parents=True)
        files.write_json(place / RUN_FILE, {k: v for k, v in content.items() if k not in ("run", "over_patients")})
        if "over_patients" in content:
            files.write_json(place / OVER_PATIENTS, content["over_patients"])


def _bracket(mean: float, low: float | None, high: float | None) -> str:
    said = f"{mean:+.3f}" if low is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return said.replace("-", "−")


# A study's table (`mmclip ablate`'s table.json), and {row: what `over_patients` found}.
Found = tuple[Mapping[str, Any], Mapping[str, tuple[float, Sequence[float]] | None]]


def verdicts(claims: Sequence[Claim], found: Sequence[Found]) -> list[str]:
    """Lines of Markdown: for each claim, row and measure the difference, the seeds behind it, and the verdict."""
    seed = found[0][0]["seeds"][0]
    lines = [
        f"| claim | less the method | measure | difference over seeds | over patients of seed {seed} | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim, (table, over_patients_of) in zip(claims, found, strict=True):
        rows = {line["row"]: line["values"] for line in table["rows"]}
        for row in claim.against:
            patients = over_patients_of.get(row)
            for measure in claim.by:
                difference = rows[row].get(measure, {}).get("difference")
                told = over = "–"
                if difference:
                    bracket = _bracket(difference["mean"], difference["low"], difference["high"])
                    told = f"{bracket} ({difference['seeds']})"
                if measure == "macro_auroc" and patients:
                    over = _bracket(patients[0], *patients[1])
                said = verdict(difference, _BETTER[measure]) if difference else "not run"
                lines.append(f"| {claim.name} | {row} | {_NAMES[measure]} | {told} | {over} | {said} |")
    return lines


def all_rows(claims: Sequence[Claim], found: Sequence[Found]) -> list[str]:
    """Lines of Markdown: every row once, mean ± standard deviation over its seeds.

    Where no finding has labels, all are "report-only": such a row has no figure there, as others' is of some findings.
    """
    lines = [f"| row | seeds | {' | '.join(_COLUMNS.values())} |", f"|{'---|' * (len(_COLUMNS) + 2)}"]
    there = set()
    for claim, (table, _) in zip(claims, found, strict=True):
        for line in table["rows"]:
            name = f"{claim.name}: {line['row']}" if STUDIES[claim.study][line["row"]] else _METHOD
            if name in there or not line["runs"]:
                continue
            there.add(name)
            cells = []
            for measure in _COLUMNS:
                value = line["values"].get(measure)
                macro = line["values"].get("macro_auroc")
                if measure == "report_only_auroc" and value and macro and value["by_seed"] == macro["by_seed"]:
                    value = None
                sd = "" if not value or value["sd"] is None else f" ± {value['sd']:.3f}"
                cells.append("–" if value is None else f"{value['mean']:.3f}{sd}".replace("-", "−"))
            lines.append(f"| {name} | {line['runs']} | {' | '.join(cells)} |")
    return lines


def write(
    config: ConfigDict,
    claims: Sequence[Claim],
    seeds: Sequence[int],
    workdir: Path,
    data: Path,
    steps: int,
    out: Path,
    train: Train | None = None,
) -> None:
    """Runs the studies of the claims, and writes the page `out` and what is known of the runs beside it."""
    found: list[Found] = []
    for number, claim in enumerate(claims, 1):
        ablate.run(
            config,
            claim.study,
            seeds,
            workdir,
            data=[str(data)],
            split="test",
            steps=steps,
            train=train,
            evaluate=measured,
        )
        folder = workdir / claim.study
        table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        beside = {row: over_patients(folder, table["reference"], row, seeds[0], str(data)) for row in claim.against}
        found.append((table, beside))
        lines = [*verdicts(claims[:number], found), "", *all_rows(claims[:number], found), ""]
        out.write_text("\n".join([*lines, *(as_markdown(table) for table, _ in found)]), encoding="utf-8")
        files.write_json(out.with_suffix(".json"), all_runs(workdir, [claim.study for claim in CLAIMS.values()]))
    print(out.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the runs that are not there yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--claims", nargs="+", choices=tuple(CLAIMS), help="default: all; with --fast two")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workdir", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path, help="a Markdown file; default: WORKDIR/evidence.md")
    parser.add_argument("--known", type=Path, metavar="FILE", help="an evidence.json: its runs are not made again")
    parser.add_argument("--tables", action="store_true", help="of the runs that there are: makes none")
    parser.add_argument("--fast", action="store_true", help="one seed, few steps, small data: tries the path only")
    args = parser.parse_args(argv)
    seeds, steps, scale = (args.seeds[:1], FAST_STEPS, FAST_SCALE) if args.fast else (args.seeds, args.steps, 1.0)
    config = read_config("demo:runlocal" if args.fast else "demo", [f"--config.train.checkpoint_every={steps}"])
    data, out = args.workdir / "data" / "phantom", args.out or args.workdir / "evidence.md"
    config.data.train = (str(data),)
    claims = [CLAIMS[name] for name in args.claims or (FAST_CLAIMS if args.fast else CLAIMS)]
    known = json.loads(args.known.read_text(encoding="utf-8")) if args.known else []
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.fast:  # most of a tiny run is compilation, and rows share programs
        jax.config.update("jax_compilation_cache_dir", str((args.workdir / "compiled").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if args.tables:
        with tempfile.TemporaryDirectory() as elsewhere:  # what is missing must leave no trace
            others = [content for content in known if not (args.workdir / content["run"]).exists()]
            take_over([*all_runs(args.workdir, list(STUDIES)), *others], Path(elsewhere))
            write(config, claims, seeds, Path(elsewhere), data, steps, out, no_run)
        return
    if not data.exists():
        build_phantom(args.workdir / "data", config.model.image_size, 0, scale, None)
    take_over(known, args.workdir)
    write(config, claims, seeds, args.workdir, data, steps, out)


if __name__ == "__main__":
    main()
