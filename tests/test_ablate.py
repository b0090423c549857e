"""Named grids: keys, resuming, taking over, statistics against NumPy and SciPy, and the table."""

import csv
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict

from mmclip_jax import ablate, check, config
from mmclip_jax.errors import TrainingError, UserError

DATA = ("somewhere/phantom",)


def _base() -> ConfigDict:
    base = config.default_config()
    base.objective.local.weight = 0.25
    base.objective.entmlm.weight = 0.3
    base.data.bridge = 0.4
    base.data.update({"train": DATA, "batch_paired": 48, "batch_unpaired": 16})
    base.train.steps = 30
    base.lock()
    return base


def _get(settings: ConfigDict, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name]
    return settings


class Lab:
    """Stands in for trainer and evaluation; knows what was asked of it. Measures are a function of the settings."""

    def __init__(self, stop_after: int | None = None, diverges: Any = None):
        self.trained: list[tuple[str, ConfigDict]] = []
        self.evaluated: list[str] = []
        self.stop_after, self.diverges = stop_after, diverges

    def train(self, settings: ConfigDict, workdir: str) -> None:
        if self.stop_after is not None and len(self.trained) >= self.stop_after:
            raise KeyboardInterrupt
        self.trained.append((workdir, settings))
        if self.diverges is not None and self.diverges(settings):
            raise TrainingError("loss or gradient is not finite at step 7")
        (pathlib.Path(workdir) / "model").write_text(str(_value(settings)))

    def evaluate(self, workdir: pathlib.Path, data: Any, split: str) -> dict[str, float]:
        self.evaluated.append(str(workdir))
        value = float((workdir / "model").read_text())
        return {"macro_auroc": value, "contrastive_loss": 1 - value}

    def run(self, workdir: pathlib.Path, study: str = "patches", seeds: Any = (0, 1), **more: Any) -> str:
        base = more.pop("base", _base())
        return ablate.run(base, study, seeds, workdir, train=self.train, evaluate=self.evaluate, **more)


def _value(settings: ConfigDict) -> float:
    gain = {"attention": 0.3, "random": 0.1, "inverse": 0.0}[settings.objective.attmim.strategy]
    noise = np.random.default_rng(settings.seed).normal(0, 0.05) + 0.01 * gain * settings.seed
    return 0.5 + gain + noise


# ---------------------------------------------------------------------------------------------------------------------
# The grids


@pytest.mark.parametrize("study", ablate.STUDIES)
def test_every_study_sets_what_the_step_accepts(study):
    runs = ablate.plan(_base(), ablate.STUDIES[study], [0])
    assert len(runs) == len(ablate.STUDIES[study]) >= 2
    for run in runs:
        check.check_config(run.config, devices=1)
        assert type(run.config.data.batch_paired) is int
    assert len({run.fingerprint for run in runs}) == len(runs), "two rows of a study are the same run"
    assert len({run.folder for run in runs}) == len(runs)


def test_rows_change_what_they_say_and_nothing_else():
    base = _base()
    for study, rows in ablate.STUDIES.items():
        for run in ablate.plan(base, rows, [3]):
            left = ConfigDict(run.config.to_dict())
            for key in rows[run.row]:
                *path, last = key.split(".")
                _get(left, ".".join(path))[last] = _get(base, key)
            left.seed = base.seed
            left.train = base.train
            assert left.to_dict() == base.to_dict(), (study, run.row)
            assert run.config.seed == 3


def test_without_unpaired_rows_the_batch_stays_as_large():
    rows = {run.row: run.config.data for run in ablate.plan(_base(), ablate.STUDIES["unpaired"], [0])}
    sizes = {row: (data.batch_paired, data.batch_unpaired) for row, data in rows.items()}
    assert sizes == {
        "paired and unpaired": (48, 16),
        "paired only, as many rows": (64, 0),
        "paired only, as many reports": (48, 0),
    }


def test_a_grid_with_an_unknown_key_is_refused():
    for key in ("objective.attmim.strateggy", "objective.atmim.strategy", "seed.x", "objective.attmim"):
        with pytest.raises(UserError, match=key):
            ablate.plan(_base(), {"a": {key: 1}}, [0])


def test_the_base_config_is_left_alone():
    base = _base()
    before = base.to_json()
    ablate.plan(base, ablate.STUDIES["objectives"], [0, 1], steps=5)
    assert base.to_json() == before


def test_steps_replace_those_of_the_config():
    assert {run.config.train.steps for run in ablate.plan(_base(), ablate.STUDIES["loss"], [0], steps=7)} == {7}
    assert {run.config.train.steps for run in ablate.plan(_base(), ablate.STUDIES["loss"], [0])} == {30}


# ---------------------------------------------------------------------------------------------------------------------
# Running


def test_every_row_runs_with_every_seed_in_its_own_directory(tmp_path):
    lab = Lab()
    text = lab.run(tmp_path)
    expected = {
        str(tmp_path / "patches" / row / f"seed_{seed}")
        for row in ("attention", "random", "inverse")
        for seed in (0, 1)
    }
    assert {folder for folder, _ in lab.trained} == expected == set(lab.evaluated)
    assert {(c.objective.attmim.strategy, c.seed) for _, c in lab.trained} == {
        (strategy, seed) for strategy in ("attention", "random", "inverse") for seed in (0, 1)
    }
    assert "macro AUROC" in text
    assert {path.name for path in (tmp_path / "patches").glob("table.*")} == {
        "table.txt", "table.md", "table.csv", "table.json",
    }  # fmt: skip


def test_finished_runs_are_not_run_again_and_interrupted_ones_go_on(tmp_path):
    first = Lab(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path)
    # The fifth run had begun: its directory is there, without a result.
    assert len(list(tmp_path.glob("patches/*/*/ablation.json"))) == 5
    assert not list(tmp_path.glob("patches/table.*"))
    second = Lab()
    text = second.run(tmp_path)
    assert len(second.trained) == 2
    assert not {folder for folder, _ in first.trained} & {folder for folder, _ in second.trained}
    third = Lab()
    assert third.run(tmp_path) == text
    assert not third.trained
    assert not third.evaluated


def test_a_run_that_was_cut_off_while_evaluating_is_evaluated(tmp_path):
    class Cut(Lab):
        def evaluate(self, workdir: pathlib.Path, data: Any, split: str) -> dict[str, float]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cut().run(tmp_path)
    lab = Lab()
    lab.run(tmp_path)
    assert len(lab.evaluated) == 6


def test_more_seeds_later_add_runs_only(tmp_path):
    Lab().run(tmp_path, seeds=[0])
    lab = Lab()
    lab.run(tmp_path, seeds=[0, 5])
    assert {settings.seed for _, settings in lab.trained} == {5}


def test_runs_made_with_other_settings_are_refused(tmp_path):
    Lab().run(tmp_path)
    base = _base()
    base.optimizer.peak_lr = 0.123
    lab = Lab()
    with pytest.raises(UserError, match="other settings"):
        lab.run(tmp_path, base=base)
    assert not lab.trained


def test_a_half_finished_run_is_not_continued_with_other_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Lab(stop_after=0).run(tmp_path)
    lab = Lab()
    with pytest.raises(UserError, match="other settings"):
        lab.run(tmp_path, steps=31)
    assert not lab.trained


def test_another_split_is_evaluated_anew(tmp_path):
    Lab().run(tmp_path)
    lab = Lab()
    lab.run(tmp_path, split="test")
    assert len(lab.evaluated) == 6


def test_equal_runs_of_other_studies_are_taken_over(tmp_path):
    Lab().run(tmp_path, "loss", seeds=[2])
    lab = Lab()
    text = lab.run(tmp_path, "targets", seeds=[2])
    # softmax with targets by text is the default in both studies.
    assert [settings.objective.contrastive.targets for _, settings in lab.trained] == ["kinds"]
    taken = json.loads((tmp_path / "targets" / "by_text" / "seed_2" / "ablation.json").read_text())
    assert taken["same_as"] == "../../../loss/softmax/seed_2"
    assert (tmp_path / "targets" / "by_text" / "seed_2" / taken["same_as"] / "model").exists()
    assert "by text" in text


def test_all_studies(tmp_path):
    lab = Lab()
    text = lab.run(tmp_path, "all", seeds=[0])
    assert text.count("Study: ") == len(ablate.STUDIES)
    prints = [ablate.Run("", 0, settings).fingerprint for _, settings in lab.trained]
    assert len(set(prints)) == len(prints), "the same run was made twice"


def test_a_run_that_diverges_is_told_and_does_not_stop_the_others(tmp_path):
    lab = Lab(diverges=lambda settings: settings.objective.attmim.strategy == "random" and settings.seed == 1)
    text = lab.run(tmp_path)
    assert len(lab.trained) == 6
    assert "random (1 of 2 runs)" in text
    assert "Failed: random, seed 1: loss or gradient is not finite at step 7" in text
    table = json.loads((tmp_path / "patches" / "table.json").read_text())
    assert [row["runs"] for row in table["rows"]] == [2, 1, 2]
    assert table["rows"][1]["values"]["macro_auroc"]["difference"]["seeds"] == 1
    again = Lab()
    again.run(tmp_path)
    assert len(again.trained) == 1


@pytest.mark.parametrize(
    ("study", "seeds", "message"),
    [
        ("masking", [0], "there is no study 'masking'; there are: objectives"),
        ("loss", [], "seeds"),
        ("loss", [1, 1], "seeds"),
    ],
)
def test_wrong_requests(tmp_path, study, seeds, message):
    with pytest.raises(UserError, match=message):
        Lab().run(tmp_path, study, seeds)
    assert not list(tmp_path.iterdir())


def test_settings_that_do_not_fit_are_refused_before_the_first_run(tmp_path):
    base = _base()
    base.data.batch_unpaired = 20
    lab = Lab()
    with pytest.raises(UserError, match=r"row 'paired and unpaired': data\.batch_unpaired=20 is no multiple of 8"):
        lab.run(tmp_path, "unpaired", base=base)
    assert not lab.trained


@pytest.mark.parametrize(("init", "study"), [("image", "stem"), ("model", "stem"), ("model", "pool")])
def test_rows_that_weights_would_undo_are_refused(tmp_path, init, study):
    base = _base()
    base.init[init] = "weights"
    lab = Lab()
    with pytest.raises(UserError, match=rf"sets model\.{study}, which follows from the weights"):
        lab.run(tmp_path, study, base=base)
    assert not lab.trained


def test_rows_that_weights_leave_alone_are_run(tmp_path):
    base = _base()
    base.init.image = "weights"
    lab = Lab()
    lab.run(tmp_path, "pool", base=base)
    assert lab.trained


def test_data_must_be_named(tmp_path):
    base = _base()
    base.data.train = ()
    with pytest.raises(UserError, match="names no data set"):
        Lab().run(tmp_path, base=base)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_paired_differences_against_scipy(runs):
    rng = np.random.default_rng(runs)
    seeds = [11, 3, 7, 2, 5][:runs]
    values, reference = ({seed: float(rng.normal()) for seed in seeds} for _ in range(2))
    expected = scipy.stats.ttest_rel([values[s] for s in seeds], [reference[s] for s in seeds])
    interval = expected.confidence_interval(0.9)
    got = ablate.paired_difference(values, reference, level=0.9)
    assert got is not None
    assert got["low"] == pytest.approx(interval.low, rel=1e-9)
    assert got["high"] == pytest.approx(interval.high, rel=1e-9)
    assert got["mean"] == pytest.approx(np.mean([values[s] - reference[s] for s in seeds]))


def test_pairs_are_made_by_seed():
    # The noise of a seed is far larger than the gain: unpaired, nothing could be seen.
    reference = {4: 100.0, 1: 0.0, 2: -50.0}
    values = {1: 1.0, 2: -49.1, 4: 100.9, 9: 7777.0}
    got = ablate.paired_difference(values, reference)
    assert got is not None
    assert got["seeds"] == 3
    assert got["mean"] == pytest.approx(2.8 / 3)
    assert got["low"] is not None
    assert got["low"] > 0.7
    assert ablate.paired_difference({1: 1.0}, {2: 1.0}) is None
    assert ablate.paired_difference({1: 1.5}, {1: 1.0}) == {"mean": 0.5, "low": None, "high": None, "seeds": 1}


def test_mean_and_sd_are_those_of_numpy():
    values = [0.3, 0.9, 0.1, 0.5]
    assert ablate.mean_and_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert ablate.mean_and_sd([0.4]) == (0.4, None)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def test_the_table_in_all_forms(tmp_path):
    seeds = [0, 1, 4]
    text = Lab().run(tmp_path, seeds=seeds)
    folder = tmp_path / "patches"
    values: dict[str, list[float]] = {}
    for strategy in ("attention", "random", "inverse"):
        for run in ablate.plan(_base(), {"x": {"objective.attmim.strategy": strategy}}, seeds):
            values.setdefault(strategy, []).append(_value(run.config))
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert len(lines) == 6
    for line in lines:
        mine, attention = np.array(values[line["row"]]), np.array(values["attention"])
        if line["measure"] == "contrastive_loss":
            mine, attention = 1 - mine, 1 - attention
        assert float(line["mean"]) == pytest.approx(mine.mean())
        assert float(line["sd"]) == pytest.approx(mine.std(ddof=1))
        assert int(line["runs"]) == 3
        if line["row"] == "attention":
            assert line["difference"] == ""
        else:
            interval = scipy.stats.ttest_rel(mine, attention).confidence_interval(0.95)
            numbers = [float(line[name]) for name in ("difference", "low", "high")]
            assert numbers == pytest.approx([(mine - attention).mean(), interval.low, interval.high])
    cell = f"{np.mean(values['inverse']):.3f} ± {np.std(values['inverse'], ddof=1):.3f}"
    markdown = (folder / "table.md").read_text()
    assert f"| inverse | {cell} |" in markdown
    assert cell in text
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 + 2
    assert len({line.count("|") for line in rows}) == 1
    assert json.loads((folder / "table.json").read_text())["rows"][0]["values"]["macro_auroc"]["by_seed"]["4"]


def test_one_seed_has_no_spread_and_no_interval(tmp_path):
    text = Lab().run(tmp_path, seeds=[0])
    assert " ± 0" not in text
    assert "[" not in text.splitlines()[3]


def test_measures_are_found_in_an_evaluation():
    results: dict[str, Any] = {
        "headline": {
            "macro_auroc": 0.9, "report_only_auroc": 0.8, "pointing": 0.5, "pointing_random": 0.1, "entmlm_own": 0.7,
            "entmlm_swapped": 0.4, "entmlm_drop": 0.3, "source_probe_auroc": None,
        },
        "grounding": {
            "responses": ["similarity", "cross_attention"],
            "overall": {"similarity": {"rate": 0.5, "iou": 0.25}, "cross_attention": {"rate": 0.2, "iou": None}},
        },
        "counterfactual": {
            "flips": [
                {"flip": "polarity", "rate": 0.8},
                {"flip": "polarity: denied, now affirmed", "rate": 0.6},
                {"flip": "side", "rate": 0.7},
                {"flip": "severity", "rate": float("nan")},
            ]
        },
        "contrastive": {
            "parts": [
                {"source": "a", "part": "paired", "loss": 2.0, "image_to_text": 0.2},
                {"source": "b", "part": "paired", "loss": 4.0, "image_to_text": 0.4},
                {"source": "b", "part": "unpaired", "loss": 99.0, "image_to_text": 0.9},
            ]
        },
    }  # fmt: skip
    assert ablate.measures_of(results) == pytest.approx(
        {
            "macro_auroc": 0.9, "report_only_auroc": 0.8, "pointing_random": 0.1, "entmlm_own": 0.7,
            "entmlm_swapped": 0.4, "entmlm_drop": 0.3, "pointing_similarity": 0.5,
            "pointing_cross_attention": 0.2, "contrastive_loss": 3.0, "image_to_text": 0.3,
            "iou_similarity": 0.25, "polarity": 0.8, "side": 0.7,
        }
    )  # fmt: skip
    bare: dict[str, Any] = {
        "headline": dict.fromkeys(results["headline"]),
        "grounding": None,
        "contrastive": {"parts": []},
    }
    assert ablate.measures_of(bare) == {}


@pytest.mark.slow
def test_a_study_through_the_real_trainer_and_evaluation(tmp_path, phantom_dir, monkeypatch):
    """Two steps of a tiny model; the second call takes everything from disk."""
    import tiny

    monkeypatch.setitem(ablate.STUDIES, "one", {"as it is": {}})
    base = tiny.config(data__train=(str(phantom_dir),), data__batch_paired=8, data__batch_unpaired=8, train__steps=2)
    base.model.text.vocab_size = 0
    base.data.update({"workers": 0, "threads": 1})
    base.train.compiler_options = " ".join(f"{name}={str(value).lower()}" for name, value in tiny.QUICK.items())
    base.lock()
    text = ablate.run(base, "one", [0], tmp_path)
    assert "macro AUROC" in text
    assert "pointing, cross-attention" in text
    assert (tmp_path / "one" / "as_it_is" / "seed_0" / "checkpoints" / "2").is_dir()
    monkeypatch.setattr(ablate.running, "_train", lambda *_: pytest.fail("trained again"))
    assert ablate.run(base, "one", [0], tmp_path) == text
