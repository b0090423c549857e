"""The benchmark of the claims: its rows and measures are there, and its verdicts are those that it says."""

import json
import pathlib
from types import ModuleType
from typing import Any

import pytest
from conftest import load_benchmark

from mmclip_jax import ablate
from mmclip_jax.ablate.running import slug
from mmclip_jax.ablate.studies import MEASURES
from mmclip_jax.ablate.table import summarize
from mmclip_jax.errors import TrainingError, UserError
from mmclip_jax.settings import read_config


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("evidence")


def test_claims_name_rows_and_measures_that_there_are(bench: ModuleType) -> None:
    for claim in bench.CLAIMS.values():
        rows = list(ablate.STUDIES[claim.study])
        assert set(claim.against) <= set(rows[1:]), "the first row is the method"
        assert set(claim.by) <= {key for key, *_ in MEASURES}


@pytest.mark.parametrize(
    ("low", "high", "better", "said"),
    [
        (-0.03, -0.01, True, "shown"),  # the row is worse than the method
        (-0.03, 0.01, True, "not shown"),
        (0.01, 0.03, True, "contradicted"),
        (0.01, 0.03, False, "shown"),  # a loss: less is better
        (-0.03, -0.01, False, "contradicted"),
        (None, None, True, "not shown"),  # one seed
    ],
)
def test_a_verdict_needs_the_whole_interval(
    bench: ModuleType, low: float | None, high: float | None, better: bool, said: str
) -> None:
    assert bench.verdict({"mean": 0.0, "low": low, "high": high, "seeds": 3}, better) == said


def test_without_a_difference_nothing_is_shown(bench: ModuleType) -> None:
    assert bench.verdict(None, True) == "not shown"


def test_runs_that_are_known_are_not_made_again(bench: ModuleType, tmp_path: pathlib.Path) -> None:
    config = read_config("demo:runlocal", [])
    trained: list[int] = []

    def table(name: str, known: list[dict[str, object]]) -> str:
        workdir = tmp_path / name
        bench.take_over(known, workdir)
        ablate.run(
            config, "claim_entmlm", [0, 1], workdir, data=["nowhere"], split="test",
            train=lambda config, folder: trained.append(config.seed),
            evaluate=lambda folder, data, split: {"macro_auroc": 0.5 + len(trained) / 100},
        )  # fmt: skip
        return (workdir / "claim_entmlm" / "table.md").read_text(encoding="utf-8")

    first = table("first", [])
    rows = len(ablate.STUDIES["claim_entmlm"])
    assert len(trained) == 2 * rows
    known = bench.all_runs(tmp_path / "first", ["claim_entmlm"])
    assert table("second", known[1:]) != first  # the one that is left out is made
    assert len(trained) == 2 * rows + 1
    assert table("third", known) == first
    assert len(trained) == 2 * rows + 1

    config.optimizer.peak_lr *= 2
    with pytest.raises(UserError, match="other settings"):
        table("fourth", known)


STUDY = ablate.STUDIES["claim_entmlm"]


def _tables(bench: ModuleType, tmp_path: pathlib.Path, values: dict[tuple[str, int], float]) -> list[str]:
    """The page of claim_entmlm with three seeds, of runs that have these macro AUROCs; the others fail.

    The interval over patients of "none" is of seed 0.
    """
    known: list[dict[str, Any]] = []

    def evaluate(folder: pathlib.Path, data: object, split: str) -> dict[str, float]:
        row, seed = next((row, s) for row in STUDY for s in range(3) if folder.match(f"{slug(row)}/seed_{s}"))
        value = values[row, seed]
        return {"macro_auroc": value, "report_only_auroc": value if row == "none" else value / 2}

    def train(config: Any, folder: str) -> None:
        if not any(pathlib.Path(folder).match(f"{slug(row)}/seed_{seed}") for row, seed in values):
            raise TrainingError("the loss is not finite")

    config, made = read_config("demo:runlocal", []), tmp_path / "made"
    ablate.run(
        config, "claim_entmlm", [0, 1, 2], made, data=["nowhere"], split="test", steps=3, train=train, evaluate=evaluate
    )
    known = bench.all_runs(made, ["claim_entmlm"])
    assert {content["run"].removeprefix("claim_entmlm/") for content in known} == {
        f"{slug(row)}/seed_{seed}" for row, seed in values
    }
    next(one for one in known if one["run"].endswith("none/seed_0"))["over_patients"] = [-0.05, [-0.08, -0.02]]
    bench.take_over(known, tmp_path / "again")
    out = tmp_path / "page.md"
    claims = [bench.CLAIMS["entmlm"]]
    bench.write(config, claims, [0, 1, 2], tmp_path / "again", pathlib.Path("nowhere"), 3, out, bench.no_run)
    assert json.loads(out.with_suffix(".json").read_text(encoding="utf-8")) == sorted(known, key=lambda one: one["run"])
    return out.read_text(encoding="utf-8").split("\n")


def test_tables_are_of_the_runs_that_there_are(bench: ModuleType, tmp_path: pathlib.Path) -> None:
    aurocs = {("entities", 0): 0.75, ("entities", 1): 0.81, ("entities", 2): 0.78}
    aurocs |= {("none", 0): 0.70, ("none", 1): 0.77, ("none", 2): 0.735, ("random tokens", 1): 0.9}
    lines = _tables(bench, tmp_path, aurocs)
    # Student's t of the differences -0.05, -0.04 and -0.045: 0.005 * 4.303 / sqrt(3) = 0.0124 to each side.
    told = "−0.045 [−0.057, −0.033] (3) | −0.050 [−0.080, −0.020]"
    assert f"| EntMLM | none | macro AUROC | {told} | shown |" in lines
    assert "| EntMLM | random tokens | macro AUROC | +0.090 (1) | – | not shown |" in lines
    assert "| EntMLM | none | EntMLM, drop | – | – | not run |" in lines
    rows = {line.split(" | ")[0]: line.split(" | ")[1:4] for line in lines if line.startswith(("| the", "| EntMLM: "))}
    assert rows == {
        "| the method": ["3", "0.780 ± 0.030", "0.390 ± 0.015"],
        "| EntMLM: random tokens": ["1", "0.900", "0.450"],
        "| EntMLM: none": ["3", "0.735 ± 0.035", "–"],  # all findings are report-only there
    }
    assert "| random tokens (1 of 3 runs) | 0.900 | 0.450 |" in lines
    assert "Failed: random tokens, seed 0: not made yet" in lines


def test_a_run_that_failed_is_compared_with_nothing(bench: ModuleType, tmp_path: pathlib.Path) -> None:
    for row in ("entities", "none"):
        place = tmp_path / slug(row) / "seed_0"
        (place / "checkpoints").mkdir(parents=True)  # a run that diverges has saved its last step
        (place / "ablation.json").write_text(json.dumps({"measures": {}} if row == "none" else {}))
    assert bench.over_patients(tmp_path, "entities", "none", 0, "nowhere") is None


def test_tables_of_runs_made_otherwise_are_refused(bench: ModuleType, tmp_path: pathlib.Path) -> None:
    place = tmp_path / "run" / "claim_entmlm" / "none" / "seed_0"
    place.mkdir(parents=True)
    made = {"fingerprint": "another", "data": [str(tmp_path)], "split": "test", "measures": {"macro_auroc": 0.5}}
    (place / "ablation.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match="other settings"):
        bench.main(["--tables", "--claims", "entmlm", "--workdir", str(tmp_path / "run")])


def test_the_results_show_the_tables_of_the_known_runs(bench: ModuleType) -> None:
    docs = pathlib.Path(__file__).resolve().parents[1] / "docs"
    runs = {run["run"]: run for run in json.loads((docs / "evidence.json").read_text(encoding="utf-8"))}
    shown = (docs / "results.md").read_text(encoding="utf-8")
    found = []
    for claim in bench.CLAIMS.values():
        study = ablate.STUDIES[claim.study]
        name = {(row, seed): f"{claim.study}/{slug(row)}/seed_{seed}" for row in study for seed in range(3)}
        there = [{"row": row, "seed": seed, **runs[run]} for (row, seed), run in name.items() if run in runs]
        table = {**summarize(claim.study, dict.fromkeys(study, 3), there), "seeds": [0, 1, 2]}
        found.append((table, {row: runs.get(name[row, 0], {}).get("over_patients") for row in claim.against}))
    for lines in (bench.verdicts, bench.all_rows):
        assert "\n".join(lines(list(bench.CLAIMS.values()), found)) in shown
