"""Transfer: loss and optimizer by formula, devices, whole runs on the phantom, early stopping, interruption."""

import functools
import json
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from ml_collections import ConfigDict
from scipy import special
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression

from mmclip_jax import locks, sharding
from mmclip_jax.checkpoints import Checkpoints, find_checkpoint, with_digests
from mmclip_jax.data import records
from mmclip_jax.data.builders import fractions
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import LeakageError, UserError
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.finetune import head as head_lib
from mmclip_jax.finetune import run as finetuning
from mmclip_jax.finetune import scores as scores_lib
from mmclip_jax.finetune import task as task_lib
from mmclip_jax.finetune import transfer
from mmclip_jax.inference import model as model_lib
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.state import TrainState
from mmclip_jax.train import step

pytestmark = pytest.mark.compiles

P, A, U, N = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN, LabelState.UNKNOWN


# ---------------------------------------------------------------------------------------------------------------------
# Loss, optimizer, devices


def _classifier(findings: int = 3, **changes: Any) -> tuple[ConfigDict, Any, Any]:
    config = tiny.config(**changes)
    model, params = tiny.model_and_params(config)
    rng = np.random.default_rng(3)
    head = {"kernel": jnp.asarray(rng.normal(size=(12, findings)), jnp.float32), "bias": jnp.ones(findings) / 7}
    encoder = {name: part for name, part in params.items() if name == "image_encoder" or "pool" in name}
    return config, model, encoder | {"head": head}


def _rows(count: int, findings: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "image": rng.integers(0, 256, (count, 20, 20, 1)).astype(np.uint8),
        "target": rng.integers(-1, 2, (count, findings)).astype(np.int8),
    }


def _loss_of(task: str, params: Any, features: np.ndarray, target: np.ndarray) -> jax.Array:
    rows: Any = {"features": features, "target": target}
    model: Any = None  # features need none
    return head_lib.loss_of(task, model, params, jnp.int32(0), {"rows": rows})[0]


def test_multi_label_loss_is_the_mean_over_what_is_known() -> None:
    rng = np.random.default_rng(0)
    features, kernel = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    target = np.array([[1, 0, -1], [-1, -1, -1], [0, 0, 1], [1, 1, 1], [-1, 0, 0], [1, -1, 0], [0, 1, -1]], np.int8)
    params = {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.full(3, 0.3)}}
    loss = _loss_of("multi-label", params, features, target)
    z = features.astype(np.float64) @ kernel + 0.3
    chance = 1 / (1 + np.exp(-z))
    terms = -np.where(target == 1, np.log(chance), np.log(1 - chance))
    assert float(loss) == pytest.approx(terms[target >= 0].mean(), abs=1e-6)


def test_multi_class_loss_is_the_mean_over_rows_with_a_class() -> None:
    rng = np.random.default_rng(1)
    features, kernel = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    target = np.array([2, 0, -1, 1, 1], np.int32)
    params = {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(3)}}
    loss = _loss_of("multi-class", params, features, target)
    z = features.astype(np.float64) @ kernel
    log_softmax = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    assert float(loss) == pytest.approx(-np.mean([log_softmax[i, target[i]] for i in (0, 1, 3, 4)]), abs=1e-6)


@pytest.mark.parametrize("pool", ["mean", "cls", "map"])
def test_layers_learn_at_their_own_rates(pool: str) -> None:
    config, _, params = _classifier(model__pool=pool)
    config.finetune = ConfigDict({"layer_decay": 0.5, "head_rate": 1.0})
    config.optimizer.update({"peak_lr": 0.1, "warmup_share": 0.0, "weight_decay": 0.2, "clip": 1e9})
    gradients = jax.tree.map(jnp.ones_like, params)

    def update(decay: float, head: float) -> Any:
        config.finetune.update({"layer_decay": decay, "head_rate": head})
        optimizer = head_lib.make_optimizer(config, params)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    plain, scaled = update(1.0, 1.0), update(0.5, 7.0)
    ratio = jax.tree.map(lambda a, b: np.asarray(a) / np.asarray(b), scaled, plain)
    encoder = ratio["image_encoder"]
    # Two layers: the upper at 1/2, the lower at 1/4, what comes before at 1/8; last norm, pooling and head at 1.
    for leaf in jax.tree.leaves(encoder["transformer"]["layers"]):
        np.testing.assert_allclose(leaf[0], 0.25, rtol=1e-5)
        np.testing.assert_allclose(leaf[1], 0.5, rtol=1e-5)
    below = {name: part for name, part in encoder.items() if name != "transformer"}
    assert {"patch", "position"} <= below.keys()
    for leaf in jax.tree.leaves(below):
        np.testing.assert_allclose(leaf, 0.125, rtol=1e-5)
    for leaf in jax.tree.leaves(ratio["head"]):
        np.testing.assert_allclose(leaf, 7.0, rtol=1e-5)
    whole = {name: part for name, part in ratio.items() if name not in ("image_encoder", "head")} | {
        "n": encoder["transformer"]["norm"]
    }
    assert ("pool_attention" in whole) == (pool == "map")
    for leaf in jax.tree.leaves(whole):
        np.testing.assert_allclose(leaf, 1.0, rtol=1e-5)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_give_the_loss_and_gradients_of_one(fsdp: int) -> None:
    _, model, params = _classifier()
    rows = _rows(16)
    loss = functools.partial(head_lib.loss_of, "multi-label", model)
    found = []
    for mesh in (sharding.make_mesh(1, jax.devices()[:1]), sharding.make_mesh(fsdp)):
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.tree_shardings(params, mesh))
            function = tiny.jit(jax.value_and_grad(lambda p, b: loss(p, jnp.int32(0), b)[0]))
            found.append(function(placed, {"rows": sharding.to_devices(rows, mesh)}))
    assert float(found[1][0]) == pytest.approx(float(found[0][0]), abs=1e-6)
    assert tiny.largest_difference(found[0][1], found[1][1]) < 1e-5
    assert tiny.largest_difference(found[0][1], jax.tree.map(jnp.zeros_like, params)) > 1e-3


@pytest.mark.parametrize("count", [1, 11, 29])
def test_rows_are_mapped_in_order_whatever_the_devices(count: int) -> None:
    _, model, params = _classifier()
    rows = _rows(count)
    asked: list[int] = []

    def make(numbers: np.ndarray) -> dict[str, np.ndarray]:
        asked.extend(numbers.tolist())
        return {"image": rows["image"][numbers]}

    scores = []
    for mesh in (sharding.make_mesh(1, jax.devices()[:1]), sharding.make_mesh()):
        forward = tiny.jit(functools.partial(head_lib.logits, model))
        scores.append(sharding.map_rows(lambda b: forward(params, b), make, count, mesh, 12))  # noqa: B023
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    direct = np.asarray(head_lib.logits(model, params, {"image": jnp.asarray(rows["image"])}))
    np.testing.assert_allclose(scores[1], direct, atol=1e-5)
    assert sorted(set(asked)) == list(range(count))


def test_the_head_reaches_the_optimum_of_logistic_regression() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(64, 5)).astype(np.float32)
    target = (features @ rng.normal(size=5) + 3 * rng.normal(size=64) > 0).astype(np.int8)
    params = {"head": {"kernel": jnp.zeros((5, 1)), "bias": jnp.zeros(1)}}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    loss = functools.partial(head_lib.loss_of, "multi-label", None)  # type: ignore[arg-type]
    update = tiny.jit(step.make_update(loss, optimizer, lambda n: 0.1))
    state = TrainState(jnp.int32(0), params, optimizer.init(params), params)
    for _ in range(600):
        state, _ = update(state, {"rows": {"features": features, "target": target[:, None]}})
    best = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(features, target)
    np.testing.assert_allclose(state.params["head"]["kernel"][:, 0], best.coef_[0], atol=2e-3)
    np.testing.assert_allclose(state.params["head"]["bias"][0], best.intercept_[0], atol=2e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Targets


def _example(**labels: LabelState) -> Example:
    return Example("i", b"", "s", "train", "p", "t", labels=labels)


def test_targets_and_classes() -> None:
    rows = [
        _example(pneumonia=P, covid_19=A, no_finding=A),
        _example(pneumonia=A, covid_19=A, no_finding=P),
        _example(covid_19=P, no_finding=A),
        _example(covid_19=P, pneumonia=P),  # two classes
        _example(covid_19=U),  # none that is known
        _example(pneumonia=N),
    ]
    kinds = ("no_finding", "pneumonia", "covid_19")
    assert task_lib.targets_of(rows, kinds, "multi-class").tolist() == [1, 0, 2, -1, -1, -1]
    assert task_lib.targets_of(rows, kinds, "multi-label").tolist() == [
        [0, 1, 0], [1, 0, 0], [0, -1, 1], [-1, 1, 1], [-1, -1, -1], [-1, -1, -1],
    ]  # fmt: skip
    columns = scores_lib.one_hot(np.array([1, -1, 0]), 3)
    np.testing.assert_array_equal(columns, [[0, 1, 0], [np.nan] * 3, [1, 0, 0]])


def test_fractions_come_from_the_builders_file_or_its_rule(tmp_path: pathlib.Path) -> None:
    rows = [fractions.Row(f"i{n}", f"p{n // 2}", frozenset(["nodule"] if n % 5 else [])) for n in range(200)]
    small, medium = (fractions.of(tmp_path, rows, share) for share in (0.1, 0.35))
    assert not small[1]
    assert small[0] < medium[0]
    fractions.write(rows, tmp_path)
    assert fractions.of(tmp_path, rows, 0.1) == (small[0], True)
    (tmp_path / "fractions" / "train_10.txt").write_text("i7\n")
    assert fractions.of(tmp_path, rows, 0.1) == (frozenset({"i7"}), True)
    assert len(fractions.of(tmp_path, rows, 1.0)[0]) == 200
    with pytest.raises(UserError, match="not in"):
        fractions.of(tmp_path, rows, 1.5)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def test_summary_equals_scikit_learn_and_the_interval_a_direct_bootstrap() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, (60, 2)).astype(float)
    labels[rng.random((60, 2)) < 0.2] = np.nan
    scores = rng.normal(size=(3, 60, 2)) + np.nan_to_num(labels)
    patients = [f"p{n // 3}" for n in range(60)]
    found = scores_lib.summarize(labels, scores, ["s"] * 60, ("edema", "nodule"), {}, Bootstrap(patients, 200, seed=9))[
        "s"
    ]
    for k, row in enumerate(found["findings"]):
        known = ~np.isnan(labels[:, k])
        for name, function in (("auroc", oracle.roc_auc_score), ("auprc", oracle.average_precision_score)):
            want = [function(labels[known, k], scores[s, known, k]) for s in range(3)]
            assert row[name]["seeds"] == pytest.approx(want, abs=1e-12)
            assert row[name]["mean"] == pytest.approx(np.mean(want), abs=1e-12)
            assert row[name]["sd"] == pytest.approx(np.std(want, ddof=1), abs=1e-12)
        assert (row["positives"], row["negatives"]) == ((labels[:, k] == 1).sum(), (labels[:, k] == 0).sum())
    draws, replicates = np.random.default_rng(9), []
    for _ in range(200):
        rows = np.concatenate([np.arange(3 * p, 3 * p + 3) for p in draws.integers(0, 20, 20)])
        areas = []
        for s in range(3):
            for k in range(2):
                kept = rows[~np.isnan(labels[rows, k])]
                areas.append(oracle.roc_auc_score(labels[kept, k], scores[s, kept, k]))
        replicates.append(np.mean(areas))
    center = special.logit(found["macro_auroc"]["mean"])
    slope = 1 / (found["macro_auroc"]["mean"] * (1 - found["macro_auroc"]["mean"]))
    reach = 1.959963984540054 * np.std(replicates, ddof=1) * slope
    np.testing.assert_allclose(
        found["macro_auroc"]["interval"], special.expit([center - reach, center + reach]), atol=1e-12
    )


def test_a_finding_with_one_class_is_named_and_left_out_of_the_macro() -> None:
    labels = np.array([[1, 1.0], [0, 1], [1, np.nan]])
    scores = np.array([[[0.9, 0.1], [0.2, 0.3], [0.6, 0.5]]])
    found = scores_lib.summarize(labels, scores, ["s"] * 3, ("edema", "nodule"), {}, Bootstrap(list("abc"), 20))["s"]
    assert found["undefined"] == ["nodule"]
    assert found["findings"][1]["auroc"] is None
    assert found["macro_auroc"]["mean"] == 1.0
    assert found["findings"][1]["unknown"] == 1
    run = {"fraction": 1.0, "images": 3, "sources": {"s": found}}
    told = {"sources": ["s"], "mode": "probe", "fractions": [run], "findings": ["edema", "nodule"], "notes": []}
    assert "| undefined (no negative label) |" in scores_lib.as_markdown(told)


def test_accuracies_equal_scikit_learn() -> None:
    rng = np.random.default_rng(6)
    truth = rng.integers(-1, 3, 50)
    scores = rng.random((2, 50, 3))
    scores /= scores.sum(axis=2, keepdims=True)
    found = scores_lib.summarize(
        scores_lib.one_hot(truth, 3),
        scores,
        ["s"] * 50,
        ("no_finding", "pneumonia", "covid_19"),
        {},
        Bootstrap([str(n) for n in range(50)], 50),
        task="multi-class",
    )["s"]
    known = truth >= 0
    for name, function in (("accuracy", oracle.accuracy_score), ("balanced_accuracy", oracle.balanced_accuracy_score)):
        want = [function(truth[known], scores[s, known].argmax(axis=1)) for s in range(2)]
        assert found[name]["seeds"] == pytest.approx(want, abs=1e-12)
        low, high = found[name]["interval"]
        assert low < np.mean(want) < high
    areas = [
        oracle.roc_auc_score(truth[known], scores[s, known], multi_class="ovr", average="macro") for s in range(2)
    ]  # fmt: skip
    assert found["macro_auroc"]["seeds"] == pytest.approx(areas, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, phantom_dir: pathlib.Path) -> pathlib.Path:
    """A model that has learnt nothing, as a run would save it."""
    return tiny.saved_run(tmp_path_factory.mktemp("pretrained") / "run", phantom_dir)


QUICK = task_lib.Settings(fractions=(0.25, 1.0), seeds=(0, 1), steps=20, batch=16, evaluations=4)


def _run(checkpoint: pathlib.Path, data: pathlib.Path, out: pathlib.Path, settings: Any, **options: Any) -> Any:
    table = finetuning.run(checkpoint, [data], out, settings, resamples=50, progress=False, **options)
    folder = out / settings.mode
    assert (folder / "results.md").read_text() == table
    return json.loads((folder / "results.json").read_text())


def test_a_probe_from_end_to_end(tmp_path: pathlib.Path, checkpoint: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    results = _run(checkpoint, phantom_dir, tmp_path, QUICK)
    quarter, whole = results["fractions"]
    assert (quarter["fraction"], whole["fraction"]) == (0.25, 1.0)
    assert quarter["images"] < whole["images"] / 2
    for entry in results["fractions"]:
        for seed in (0, 1):
            folder = tmp_path / "probe" / f"fraction_{entry['fraction']:g}" / f"seed_{seed}"
            saved = np.load(folder / "scores.npz")
            labels, scores = saved["labels"], saved["scores"]
            rows = saved["sources"] == "phantom-a"
            areas = [
                oracle.roc_auc_score(labels[rows, k], scores[rows, k])
                for k in range(len(results["findings"]))
                if len(np.unique(labels[rows, k])) == 2
            ]
            found = entry["sources"]["phantom-a"]["macro_auroc"]["seeds"][seed]
            assert found == pytest.approx(np.mean(areas), abs=1e-9)
            assert not (folder / "checkpoints").exists()
    stamps = {row["finding"]: row["exposure"] for row in whole["sources"]["phantom-a"]["findings"]}
    assert stamps["hernia"] == "report-only"
    assert stamps["edema"] == "kind seen through another source's labels"
    assert results["audit"]["status"] == "clean"
    # What is finished is taken over, and only by the same settings.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    again = _run(checkpoint, phantom_dir, tmp_path, QUICK)
    assert again == results
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    # So is what a version finished that did not know all of today's settings.
    for path in before:
        result = json.loads(path.read_text())
        del result["config"]["model"]["image"]["encoder"], result["config"]["model"]["image_head"]
        path.write_text(json.dumps(result))
    assert _run(checkpoint, phantom_dir, tmp_path, QUICK) == results
    with pytest.raises(UserError, match="other settings"):
        _run(checkpoint, phantom_dir, tmp_path, task_lib.Settings(steps=21, batch=16, seeds=(0,), fractions=(1.0,)))
    # What was cut off is named with the remedy, and so is a second process at work.
    folder = tmp_path / "probe" / "fraction_1" / "seed_0"
    for name in ("scores.npz", "result.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
        with pytest.raises(UserError, match=rf"{name} is damaged .*delete"):
            _run(checkpoint, phantom_dir, tmp_path, QUICK)
    with locks.held(tmp_path / "probe", "mmclip finetune"), pytest.raises(UserError, match="in use: mmclip finetune"):
        _run(checkpoint, phantom_dir, tmp_path, QUICK)


class _Drawn(records.RecordsBuilder):
    """Twelve patients a split, an image of noise each, with a label that noise cannot tell."""

    def __init__(self, name: str, data_dir: pathlib.Path, noise: dict[str, int]):
        super().__init__(data_dir)
        self.name, self._noise = name, noise

    def examples(self, split: str) -> Iterator[Example]:
        for number in range(12):
            rng = np.random.default_rng((self._noise[split], number))
            yield records.finish_example(
                id=f"{self.name}-{split}-{number}-x", source=self.name, split=split,
                patient=f"{self.name}-{split}-{number}", study=f"{self.name}-{split}-s{number}",
                pixels=rng.integers(0, 256, (24, 24), dtype=np.uint8), labels={"edema": P if number % 2 else A},
            )  # fmt: skip


def test_rows_that_are_learnt_here_and_scored_are_refused(tmp_path: pathlib.Path, checkpoint: pathlib.Path) -> None:
    """Test images of one set are training rows of another, and the pre-training knows neither."""
    one = records.build(_Drawn("one", tmp_path, {"train": 1, "validation": 2, "test": 3}))
    other = records.build(_Drawn("other", tmp_path, {"train": 3, "validation": 5, "test": 6}))
    settings = task_lib.Settings(steps=2, batch=8, seeds=(0,), fractions=(1.0,))

    def run(data: list[pathlib.Path], **options: Any) -> Any:
        return finetuning.run(checkpoint, data, tmp_path / "out", settings, resamples=20, progress=False, **options)

    with pytest.raises(LeakageError, match=r"pixels: 12 of 12 images of one:test in other:train, 100 % of training"):
        run([one, other])
    assert not (tmp_path / "out").exists()
    told = run([one, other], allow_leakage="a drill")
    assert "images are known from training; accepted because: a drill" in told
    results = json.loads((tmp_path / "out" / "probe" / "results.json").read_text())
    assert results["audit"]["parts"] == {
        "pre-training": "clean", "100 % of training": "leaks", "validation": "clean",
    }  # fmt: skip
    assert [entry["audit"] for entry in results["fractions"]] == ["leaks"]
    stops = records.build(_Drawn("stops", tmp_path, {"train": 7, "validation": 3, "test": 8}))
    with pytest.raises(LeakageError, match="pixels: 12 of 12 images of one:test in stops:validation"):
        run([one, stops])


@pytest.mark.slow
def test_full_fine_tuning_of_classes(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path, phantom_dir: pathlib.Path
) -> None:
    settings = task_lib.Settings(
        mode="full", task="multi-class", findings=("no_finding", "cardiomegaly", "edema"), fractions=(1.0,), seeds=(3,),
        steps=4, batch=8, evaluations=2, keep_checkpoints=True,
    )  # fmt: skip
    results = _run(checkpoint, phantom_dir, tmp_path, settings)
    found = results["fractions"][0]["sources"]["phantom-a"]
    assert found["accuracy"]["sd"] is None
    assert 0 < results["left_out"]["train"]["without_label"] < results["left_out"]["train"]["rows"]
    folder = tmp_path / "full" / "fraction_1" / "seed_3"
    scores = np.load(folder / "scores.npz")["scores"]
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-6)
    # All of the encoder has moved, the text tower is not there.
    saved = find_checkpoint(folder)
    config = saved.config
    model = build_model(config.model)
    shapes = jax.eval_shape(lambda: init_params(model, config.model, 0))
    with pytest.raises(UserError, match="does not hold the model of its settings"):
        saved.restore_params(shapes)


def test_the_best_parameters_are_scored_and_training_stops_early(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path, phantom_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, seen = iter([0.0, 0.5, 0.7, 0.6, 0.7, 0.65, 0.9]), []

    def planned(labels: np.ndarray, scores: np.ndarray, sources: Any) -> float:
        seen.append(scores)
        return next(values)

    monkeypatch.setattr(scores_lib, "macro_auroc", planned)
    settings = task_lib.Settings(fractions=(1.0,), seeds=(0,), steps=50, evaluations=10, patience=3, batch=16)
    results = _run(checkpoint, phantom_dir, tmp_path, settings, split="validation")
    (summary,) = results["fractions"][0]["runs"]
    # The first call asks whether validation can be scored at all; then every 5 steps; 0.7 again is no better.
    assert summary == {
        "seed": 0, "steps": 25, "planned_steps": 50, "best_step": 10, "validation_macro_auroc": 0.7,
    }  # fmt: skip
    scores = np.load(tmp_path / "probe" / "fraction_1" / "seed_0" / "scores.npz")["scores"]
    np.testing.assert_array_equal(scores, seen[2])
    assert np.abs(scores - seen[5]).max() > 1e-3


def test_what_decides_when_to_stop_is_validation_and_not_what_is_scored(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path, phantom_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[np.ndarray, np.ndarray]] = []
    macro_auroc = scores_lib.macro_auroc

    def spy(labels: np.ndarray, scores: np.ndarray, sources: Any) -> float:
        asked.append((labels, scores))
        return macro_auroc(labels, scores, sources)

    monkeypatch.setattr(scores_lib, "macro_auroc", spy)
    settings = task_lib.Settings(fractions=(1.0,), seeds=(0,), steps=8, evaluations=2, patience=9, batch=16)
    results = _run(checkpoint, phantom_dir, tmp_path, settings)
    saved = np.load(tmp_path / "probe" / "fraction_1" / "seed_0" / "scores.npz")
    validation = [e for part in ("paired", "unpaired") for e in open_records(phantom_dir, "validation", part)]
    want = task_lib.targets_of(validation, results["findings"], "multi-label")
    assert len(asked) == 3  # whether validation can be scored at all, then twice
    for labels, scores in asked:
        np.testing.assert_array_equal(labels, np.where(want < 0, np.nan, want))
        both = min(len(scores), len(saved["scores"]))  # of other images, so other scores, at the best step too
        assert np.abs(scores[:both] - saved["scores"][:both]).max() > 1e-3


def test_features_are_standardised_by_the_rows_that_are_trained_on() -> None:
    """With few labels nothing of the other training rows may be known: neither their mean nor their deviation."""
    rng = np.random.default_rng(0)
    features = {name: rng.normal(3, 2, (19, 5)).astype(np.float32) for name in ("train", "validation", "scored")}
    features["train"][10:] += 100
    made = transfer_of(features)
    rows = np.array([1, 4, 7, 9])
    source, _, inputs = made._inputs(ConfigDict(), rows)
    chosen = features["train"][rows]
    for name in ("validation", "scored"):
        got = inputs[name](np.arange(3))["features"]
        np.testing.assert_allclose(got, (features[name][:3] - chosen.mean(axis=0)) / chosen.std(axis=0), rtol=1e-4)
    held = np.stack([source[n]["features"] for n in range(4)])
    np.testing.assert_allclose(held.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(held.std(axis=0), 1, rtol=1e-4)


def transfer_of(features: dict[str, np.ndarray]) -> transfer.Transfer:
    """Runs of a probe whose features are known already."""
    made = object.__new__(transfer.Transfer)
    made._settings = task_lib.Settings()
    made._features = features
    made._task = types.SimpleNamespace(targets=np.zeros((len(features["train"]), 2), np.int8))  # type: ignore[assignment]
    return made


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["probe", "full"])
def test_an_interrupted_run_goes_on_to_the_same_scores(
    mode: str,
    tmp_path: pathlib.Path,
    checkpoint: pathlib.Path,
    phantom_dir: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = task_lib.Settings(mode=mode, fractions=(0.25,), seeds=(0,), steps=8, evaluations=4, batch=8, patience=9)
    whole = _run(checkpoint, phantom_dir, tmp_path / "whole", settings)
    save, count = Checkpoints.save, 0

    def killed(self: Checkpoints, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            self.close()
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            _run(checkpoint, phantom_dir, tmp_path / "cut", settings)
    folder = pathlib.Path(mode) / "fraction_0.25" / "seed_0"
    assert find_checkpoint(tmp_path / "cut" / folder).step == 4
    resumed = _run(checkpoint, phantom_dir, tmp_path / "cut", settings)
    assert resumed["fractions"] == whole["fractions"]
    a, b = (np.load(tmp_path / name / folder / "scores.npz")["scores"] for name in ("whole", "cut"))
    np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def _saved_as(checkpoint: pathlib.Path, change: Any) -> pathlib.Path:
    """A copy of the checkpoint whose run record `change` has edited, with the digest of the edited one."""
    import shutil

    copy = checkpoint.parent / f"copy_{len(list(checkpoint.parent.iterdir()))}"
    shutil.copytree(checkpoint / "checkpoints" / "5", copy)
    file = next((copy / "run").rglob("metadata"))
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    sums = next((copy / "sums").rglob("metadata"))
    said = json.loads(sums.read_text())
    arrays = {name: value for name, value in said.items() if name not in ("digests", "all")}
    position = json.loads(next((copy / "data").rglob("metadata")).read_text())
    sums.write_text(json.dumps(with_digests(arrays, {"run": record, "data": position})))
    return copy


def _set(key: str, value: Any) -> Any:
    def change(record: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for name in path:
            record = record[name]
        record[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config.model.image_size", 128, "image_size=128"),
        ("config.model.text.vocab_size", 4096, "text encoder for 4096"),
        ("manifest.exposure.label_kinds.phantom-b", ["plague"], "another vocabulary of findings: plague"),
    ],
)
def test_a_checkpoint_of_another_size_or_vocabulary_is_refused(
    key: str, value: Any, message: str, tmp_path: pathlib.Path, checkpoint: pathlib.Path, phantom_dir: pathlib.Path
) -> None:
    copy = _saved_as(checkpoint, _set(key, value))
    with pytest.raises(UserError, match=message):
        _run(copy, phantom_dir, tmp_path, QUICK)
    with pytest.raises(UserError, match=message):
        model_lib.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"findings": ("plague",)}, "'plague' is no finding"),
        ({"batch": 12}, "no multiple of the 8 devices"),
        ({"mode": "half"}, "'half' is not one of"),
        ({"fractions": (2.0,)}, "not in"),
        ({"findings": ("covid_19",)}, "no image of"),
        ({"layer_decay": 0.0}, "layer_decay"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path, checkpoint: pathlib.Path, phantom_dir: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=message):
        _run(checkpoint, phantom_dir, tmp_path, task_lib.Settings(**changes))
