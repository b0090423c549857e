"""The benchmark of the claims: its rows and measures are there, and its verdicts are those that it says."""

import json
import pathlib
from types import ModuleType

import pytest
from conftest import load_benchmark

from mmclip_jax import ablate
from mmclip_jax.ablate.studies import MEASURES
from mmclip_jax.errors import UserError
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


def _made(workdir: pathlib.Path, values: dict[tuple[str, int], float]) -> None:
    """Runs of claim_entmlm at made-up macro AUROCs: {(row's folder, seed): value}."""
    for (row, seed), value in values.items():
        place = workdir / "claim_entmlm" / row / f"seed_{seed}"
        place.mkdir(parents=True)
        report_only = value if row == "none" else value / 2
        measures = {"macro_auroc": value, "report_only_auroc": report_only}
        (place / "ablation.json").write_text(json.dumps({"fingerprint": "f", "measures": measures}))


def test_tables_are_of_the_runs_that_there_are(
    bench: ModuleType, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aurocs = {("entities", 0): 0.75, ("entities", 1): 0.81, ("entities", 2): 0.78}
    aurocs |= {("none", 0): 0.70, ("none", 1): 0.77, ("none", 2): 0.735, ("random_tokens", 1): 0.9}
    _made(tmp_path / "run", aurocs)
    one = tmp_path / "run" / "claim_entmlm" / "none" / "seed_0" / bench.OVER_PATIENTS
    one.write_text("[-0.05, [-0.08, -0.02]]")
    command = ["--tables", "--claims", "entmlm", "attmim"]
    bench.main([*command, "--workdir", str(tmp_path / "run")])
    page = (tmp_path / "run" / "evidence.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == page + "\n"
    lines = page.split("\n")
    # Student's t of the differences -0.05, -0.04 and -0.045: 0.005 * 4.303 / sqrt(3) = 0.0124 to each side.
    told = "−0.045 [−0.057, −0.033] (3) | −0.050 [−0.080, −0.020]"
    assert f"| EntMLM | none | macro AUROC | {told} | shown |" in lines
    assert "| EntMLM | random tokens | macro AUROC | +0.090 (1) | – | not shown |" in lines
    assert "| EntMLM | none | EntMLM, drop | – | – | not run |" in lines
    assert "| AttMIM | none | macro AUROC | – | – | not run |" in lines
    rows = {line.split(" | ")[0]: line.split(" | ")[1:4] for line in lines if line.startswith(("| the", "| EntMLM: "))}
    assert rows == {
        "| the method": ["3", "0.780 ± 0.030", "0.390 ± 0.015"],
        "| EntMLM: random tokens": ["1", "0.900", "0.450"],
        "| EntMLM: none": ["3", "0.735 ± 0.035", "–"],  # all findings are report-only there
    }
    assert "| random tokens (1 of 3 runs) | 0.900 |" in page

    bench.main([*command, "--workdir", str(tmp_path / "new"), "--known", str(tmp_path / "run" / "evidence.json")])
    assert (tmp_path / "new" / "evidence.md").read_text(encoding="utf-8") == page


def test_the_results_show_the_tables_of_the_known_runs(bench: ModuleType) -> None:
    docs = pathlib.Path(__file__).resolve().parents[1] / "docs"
    runs = json.loads((docs / "evidence.json").read_text(encoding="utf-8"))
    shown = (docs / "results.md").read_text(encoding="utf-8")
    for table in (bench.verdicts, bench.all_rows):
        assert "\n".join(table(list(bench.CLAIMS.values()), runs, (0, 1, 2))) in shown
