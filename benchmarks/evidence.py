"""The paper's three claims on the phantom: runs, tables, and what each table shows.

    python benchmarks/evidence.py                   # 3 seeds, 500 steps a run: hours; goes on where it stopped
    python benchmarks/evidence.py --claims attmim
    python benchmarks/evidence.py --known docs/evidence.json   # takes over the runs that this file has
    python benchmarks/evidence.py --known docs/evidence.json --tables     # of these runs alone: makes none
    python benchmarks/evidence.py --fast            # tries the same path in minutes: one seed, a tiny model

The grids are the studies `claim_…` of `mmclip ablate` with `configs/demo.py`, scored on the test split of a phantom.
The method is the first row of a study. The claim is that another row is less good than it, by a measure. It is

    shown          if the 95 % interval of the difference over seeds (paired, Student's t) lies on the method's side,
    contradicted   if it lies on the other side of 0,
    not shown      otherwise, and with one seed always.

Which rows and measures count is written here, before any run. Beside it stands the difference of the macro AUROC of the
first seed's two runs with its interval over patients (`mmclip compare`). To the measures of `mmclip ablate` come the
macro AUROCs of linear probes (`mmclip finetune`) that learn from 1 % and from 10 % of the training patients. Tables and
verdicts go into `--out`, and every run with its measures into evidence.json beside it. Two processes with different
`--seeds` may share a workdir; a last call with all seeds then makes the tables.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

from ml_collections import ConfigDict

from mmclip_jax import ablate, files
from mmclip_jax.ablate.running import RUN_FILE, Train, slug
from mmclip_jax.ablate.studies import MEASURES
from mmclip_jax.cli.build import build_phantom
from mmclip_jax.data.phantom.generate import PAIRED_SOURCE
from mmclip_jax.errors import TrainingError
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.report import comparison
from mmclip_jax.finetune import run as finetuning
from mmclip_jax.finetune.task import Settings
from mmclip_jax.settings import read_config

SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
FAST_STEPS, FAST_SCALE = 20, 0.03
OVER_PATIENTS = "over_patients.json"
PROBES = {0.01: "linear probe, 1 %", 0.1: "linear probe, 10 %"}  # shares of the training patients: measures


@dataclasses.dataclass(frozen=True)
class Claim:
    """study: of the ablation; says: the claim; against: the rows that must be less good; by: by which measures."""

    study: str
    says: str
    against: tuple[str, ...]
    by: tuple[str, ...]


CLAIMS = {
    "attmim": Claim(
        "claim_attmim",
        "Masking the patches that respond most to the text, and restoring them, helps.",
        ("none", "random"),
        ("macro_auroc", "pointing_similarity"),
    ),
    "attmim_input": Claim(
        "claim_attmim_input",
        "The same with the patches masked at the input, and a stem of one linear map.",
        ("none",),
        ("macro_auroc", "pointing_similarity"),
    ),
    "entmlm": Claim(
        "claim_entmlm",
        "Masking medical entities, and restoring them with the image, helps.",
        ("none", "random tokens"),
        ("macro_auroc", "entmlm_drop"),
    ),
    "unpaired": Claim(
        "claim_unpaired",
        "Images with labels alone help, through prompts.",
        ("none", "labels of other images"),
        ("macro_auroc", "pointing_similarity"),
    ),
    "total": Claim(
        "claim_total",
        "The three objectives together are better than the contrastive loss alone.",
        ("contrastive only", "contrastive and local"),
        ("macro_auroc", "pointing_similarity"),
    ),
}
_BETTER = {key: better for key, _, better in MEASURES}
_NAMES = {key: heading for key, heading, _ in MEASURES}


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

    None where a run has neither scores nor checkpoints: it was taken over, or is missing.
    """
    kept = folder / slug(row) / f"seed_{seed}" / OVER_PATIENTS
    if not kept.exists():
        runs = []
        for name in (method, row):
            run = folder / slug(name) / f"seed_{seed}"
            if same := json.loads((run / RUN_FILE).read_text(encoding="utf-8")).get("same_as"):
                run = run / same
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
      TrainingError: always; the table then counts the run as missing.
    """
    raise TrainingError("not made yet")


def take_over(known: Sequence[dict[str, Any]], workdir: Path) -> None:
    """Lays out the runs of `all_runs` that the workdir has not; those made with other settings are refused later."""
    for content in known:
        place = workdir / content["run"]
        if place.exists():
            continue
        place.mkdir(parents=True)
        files.write_json(place / RUN_FILE, {k: v for k, v in content.items() if k not in ("run", "over_patients")})
        if "over_patients" in content:
            files.write_json(place / OVER_PATIENTS, content["over_patients"])


def verdicts(claim: Claim, table: dict[str, Any], folder: Path, data: str) -> list[str]:
    """Lines of Markdown: for each row and measure the difference and the verdict, then the interval over patients."""
    lines = [
        f"**{claim.says}**",
        "",
        "| less the method | measure | difference over seeds | verdict |",
        "|---|---|---|---|",
    ]
    rows = {line["row"]: line for line in table["rows"]}
    for row in claim.against:
        for measure in claim.by:
            difference = rows[row]["values"].get(measure, {}).get("difference")
            said = "–" if difference is None else f"{difference['mean']:+.3f}"
            if difference is not None and difference["low"] is not None:
                said += f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
            lines.append(f"| {row} | {_NAMES[measure]} | {said} | {verdict(difference, _BETTER[measure])} |")
    lines.append("")
    for row in claim.against:
        difference = over_patients(folder, table["reference"], row, table["seeds"][0], data)
        if difference is None:
            continue
        apart, (low, high) = difference
        found = f"{apart:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"- {row}, seed {table['seeds'][0]}: macro AUROC {found} over patients of the paired source.")
    return [line.replace("-0", "−0") for line in lines]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not there yet and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--claims", nargs="+", choices=tuple(CLAIMS), default=tuple(CLAIMS))
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
    known = json.loads(args.known.read_text(encoding="utf-8")) if args.known else []
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.tables:
        with tempfile.TemporaryDirectory() as elsewhere:  # what is missing must leave no trace
            take_over([*all_runs(args.workdir, list(ablate.STUDIES)), *known], Path(elsewhere))
            write(config, args.claims, seeds, Path(elsewhere), data, steps, out, no_run)
        return
    if not data.exists():
        build_phantom(args.workdir / "data", config.model.image_size, 0, scale, None)
    take_over(known, args.workdir)
    write(config, args.claims, seeds, args.workdir, data, steps, out)


def write(
    config: ConfigDict,
    claims: Sequence[str],
    seeds: Sequence[int],
    workdir: Path,
    data: Path,
    steps: int,
    out: Path,
    train: Train | None = None,
) -> None:
    """Runs the studies of the claims, and writes the page `out` and what is known of the runs beside it."""
    page = []
    for name in claims:
        claim = CLAIMS[name]
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
        page += [(folder / "table.md").read_text(encoding="utf-8"), *verdicts(claim, table, folder, str(data)), ""]
        out.write_text("\n".join(page), encoding="utf-8")
        files.write_json(out.with_suffix(".json"), all_runs(workdir, [claim.study for claim in CLAIMS.values()]))
    print("\n".join(page))


if __name__ == "__main__":
    main()
