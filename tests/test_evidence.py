"""The benchmark of the claims: its rows and measures are there, and its verdicts are those that it says."""

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


def test_tables_say_which_runs_are_missing_and_make_none(
    bench: ModuleType, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, made = read_config("demo:runlocal", []), tmp_path / "made"
    ablate.run(
        config, "claim_entmlm", [0, 1], made, data=["nowhere"], split="test", steps=3,
        train=lambda config, folder: None, evaluate=lambda folder, data, split: {"macro_auroc": 0.75},
    )  # fmt: skip
    known = bench.all_runs(made, ["claim_entmlm"])
    missing = next(run for run in known if run["run"] == "claim_entmlm/none/seed_1")
    known.remove(missing)
    bench.take_over(known, tmp_path / "again")
    bench.write(
        config, ["entmlm"], [0, 1], tmp_path / "again", pathlib.Path("nowhere"), 3, tmp_path / "page.md", bench.no_run
    )
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| none (1 of 2 runs) | 0.750 |" in page
    assert "| entities | 0.750 ± 0.000 |" in page
    assert "| random tokens | macro AUROC | +0.000 [+0.000, +0.000] | not shown |" in page
    assert "over patients" not in page, "there are no scores to resample"
    assert capsys.readouterr().out == page + "\n"
