"""The loss of a batch on one device: its terms, its options, and what is masked and drawn."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mmclip_jax import objectives
from mmclip_jax.models import inputs, masking
from mmclip_jax.models.inputs import patchify
from mmclip_jax.objectives import attmim, local
from mmclip_jax.objectives import rows as rows_lib
from mmclip_jax.train import step

pytestmark = pytest.mark.compiles

Array = np.ndarray
# 8 + 8 rows: one or two parts, up to four chunks.
SMALL = {"data__batch_paired": 8, "data__batch_unpaired": 8}


def small(**changes: Any) -> ConfigDict:
    return tiny.config(**SMALL | changes)


@functools.cache
def forward(**changes: Any) -> Any:
    """Compiled (params, step, batch) -> (loss, metrics as floats) of `small(**changes)`."""
    config = small(**changes)
    model = tiny.build_model(config.model)
    compiled = tiny.jit(lambda p, n, b: step.compute_loss(model, config, tiny.MASK_ID, p, n, b))

    def run(params: Any, number: int, batch: Any) -> tuple[float, dict[str, float]]:
        loss, metrics = compiled(params, jnp.int32(number), batch)
        return float(loss), {name: float(value) for name, value in metrics.items()}

    return run


@pytest.fixture(scope="module")
def params() -> Any:
    return tiny.model_and_params(small())[1]


@pytest.fixture(scope="module")
def batch() -> Any:
    return tiny.batch(small())


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def test_the_total_is_the_weighted_sum_of_its_terms(params: Any, batch: Any) -> None:
    changes = {"objective__attmim__weight": 0.7, "objective__entmlm__weight": 1.3, "objective__local__weight": 0.4}
    loss, metrics = forward(**changes)(params, 3, batch)
    parts = [metrics[f"{name}/loss"] for name in ("contrastive", "attmim", "entmlm", "local")]
    assert min(parts) > 0
    assert loss == pytest.approx(np.dot([1, 0.7, 1.3, 0.4], parts), rel=1e-5)
    assert metrics["loss"] == pytest.approx(loss)
    assert metrics["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5)
    for name in ("contrastive/accuracy", "entmlm/accuracy", "entmlm/entity_share", "entmlm/masked_share"):
        assert 0 <= metrics[name] <= 1


def test_terms_equal_a_computation_from_the_pieces(params: Any, batch: Any) -> None:
    """Embeddings, masks and logits by the model's methods; masks and sums by hand, part by part."""
    config = small()
    model = tiny.build_model(config.model)
    loss, metrics = forward()(params, 3, batch)

    def pieces(params: Any, rows: Any, keys: jax.Array) -> dict[str, jax.Array]:
        def apply(method: str, *arguments: Any) -> Any:
            return model.apply({"params": params}, *arguments, method=method)

        valid = rows["tokens"] != 0
        patches, v = apply("encode_image", inputs.standardize(inputs.pixels(rows["image"])))
        features = apply("encode_text", rows["tokens"])
        weights = masking.token_weights(rows["affirmed"], valid)
        response = apply("response", patches, features, weights, "similarity", 0.1)
        masked, _ = attmim.masked_patches(response, keys, config.objective.attmim, jnp.bool_(False))
        positions, used, _ = masking.select_masked_tokens(
            rows["entity"], valid, rows_lib.stream(keys, rows_lib.TOKENS), probability=0.5, min_share=0.15, slots=5,
            strategy="entity",
        )  # fmt: skip
        hidden_text = masking.mask_tokens(rows["tokens"], positions, used, tiny.MASK_ID)
        logits = apply("restore", apply("encode_text", hidden_text), valid, patches, positions)
        return {
            "v": v,
            "u": apply("embed_text", features, valid),
            "masked": masked,
            "predicted": apply("reconstruct", patches, masked, features, valid),
            "positions": positions,
            "used": used,
            "log_probability": jax.nn.log_softmax(logits),
        }

    compiled = tiny.jit(pieces)
    parts = {
        name: {
            key: np.asarray(value, np.float64 if value.dtype == jnp.float32 else None)
            for key, value in compiled(params, rows, rows_lib.row_key_data(config.seed, jnp.int32(3), name, 8)).items()
        }
        for name, rows in batch.items()
    }
    v, u = (np.concatenate([parts[name][key] for name in batch]) for key in "vu")
    ids = np.concatenate([batch[name]["text_id"] for name in batch])
    contrastive, _ = objectives.contrastive_loss(
        jnp.asarray(v, jnp.float32), jnp.asarray(u, jnp.float32), 1 / 0.07, jnp.asarray(ids)
    )
    errors = []
    for name, part in parts.items():
        pixels = np.asarray(patchify(jnp.asarray(batch[name]["image"] / 255.0, jnp.float32), 4), np.float64)
        for row in range(8):
            true = pixels[row, part["masked"][row].astype(int)]
            true = (true - true.mean(axis=1, keepdims=True)) / np.sqrt(true.var(axis=1, keepdims=True) + (2 / 255) ** 2)
            errors.append(np.mean((true - part["predicted"][row]) ** 2))
    paired = parts["paired"]
    total = hits = entities = 0.0
    for row in range(8):
        for slot, position in enumerate(paired["positions"][row].astype(int)):
            if paired["used"][row, slot]:
                target = batch["paired"]["tokens"][row, position]
                total -= paired["log_probability"][row, slot, target]
                hits += paired["log_probability"][row, slot].argmax() == target
                entities += batch["paired"]["entity"][row, position] > 0
    count = paired["used"].sum()
    assert metrics["contrastive/loss"] == pytest.approx(float(contrastive), rel=1e-5)
    assert metrics["attmim/loss"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert metrics["entmlm/loss"] == pytest.approx(total / count, rel=1e-4)
    assert metrics["entmlm/accuracy"] == pytest.approx(hits / count)
    assert metrics["entmlm/entity_share"] == pytest.approx(entities / count)
    assert metrics["entmlm/masked_share"] == pytest.approx(count / (batch["paired"]["tokens"] != 0).sum())
    assert loss == pytest.approx(float(contrastive) + np.mean(errors) + total / count, rel=1e-5)


def test_entmlm_concerns_paired_rows_only(params: Any, batch: Any) -> None:
    run = forward()
    _, expected = run(params, 3, batch)
    other = tiny.batch(small(), seed=5)["unpaired"]
    _, metrics = run(params, 3, {"paired": batch["paired"], "unpaired": other})
    for name in expected:
        if name.startswith("entmlm/"):
            assert metrics[name] == expected[name]
    assert metrics["attmim/loss"] != expected["attmim/loss"]


@pytest.mark.parametrize("missing", ["paired", "unpaired"])
def test_a_part_may_be_missing(params: Any, batch: Any, missing: str) -> None:
    loss, metrics = forward()(params, 3, {name: part for name, part in batch.items() if name != missing})
    assert np.isfinite(loss)
    assert ("entmlm/loss" in metrics) == (missing == "unpaired")


def test_a_paired_batch_without_a_word_to_mask_has_no_loss_and_no_nan(params: Any, batch: Any) -> None:
    empty = {name: part | {"tokens": np.zeros_like(part["tokens"])} for name, part in batch.items()}
    loss, metrics = forward()(params, 3, empty)
    assert np.isfinite(loss)
    assert metrics["entmlm/loss"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__contrastive__loss": "sigmoid"},
        {"objective__contrastive__targets": "kinds"},
        {"objective__contrastive__across_sources": False},
        {"objective__attmim__response": "cross_attention"},
        {"objective__attmim__strategy": "inverse"},
        {"objective__attmim__mask_at": "input"},
        {"objective__entmlm__strategy": "random"},
    ],
)
def test_every_option_changes_the_term_that_it_names(params: Any, batch: Any, changes: dict[str, Any]) -> None:
    _, plain = forward()(params, 3, batch)
    _, metrics = forward(**changes)(params, 3, batch)
    changed = {
        name for name in plain if name.endswith("/loss") and metrics[name] != pytest.approx(plain[name], rel=1e-5)
    }
    assert changed == {f"{next(iter(changes)).split('__')[1]}/loss"}
    assert all(np.isfinite(value) for value in metrics.values())


def test_switched_off_objectives_leave_the_clip_loss(params: Any, batch: Any) -> None:
    loss, metrics = forward(objective__attmim__weight=0.0, objective__entmlm__weight=0.0)(params, 3, batch)
    assert loss == metrics["contrastive/loss"]
    assert not {name for name in metrics if name.startswith(("entmlm/", "attmim/", "local/"))}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_neither_loss_nor_gradient(params: Any, batch: Any, accumulate: int) -> None:
    # Nearly all words to mask are in the first rows: a mean of the chunks' means would give another loss.
    lopsided = {name: dict(part) for name, part in batch.items()}
    tokens = lopsided["paired"]["tokens"] = batch["paired"]["tokens"].copy()
    tokens[3:, 1:] = 0
    changes = {"objective__local__weight": 0.5}
    whole, parts = small(**changes), small(**changes, optimizer__accumulate=accumulate)
    model = tiny.build_model(whole.model)
    (loss, metrics), gradients = tiny.jit(tiny.loss_and_gradients(model, whole))(params, jnp.int32(3), lopsided)
    (loss_n, metrics_n), gradients_n = tiny.jit(tiny.loss_and_gradients(model, parts))(params, jnp.int32(3), lopsided)
    assert float(loss_n) == pytest.approx(float(loss), abs=1e-5)
    assert tiny.largest_difference(metrics, metrics_n) < 1e-5
    assert tiny.largest_difference(gradients, gradients_n) < 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# Local loss


def test_the_local_loss_takes_affirmed_tokens_only(params: Any, batch: Any) -> None:
    model = tiny.build_model(small().model)
    rows = {name: jnp.asarray(x) for name, x in batch["paired"].items()}
    affirmed = np.zeros(rows["tokens"].shape, bool)
    affirmed[0, 1:3], affirmed[1, :7] = True, True
    rows |= {"affirmed": jnp.asarray(affirmed), "key": rows_lib.row_key_data(0, jnp.int32(1), "paired", len(affirmed))}
    images = inputs.standardize(inputs.pixels(rows["image"]))
    patches = model.apply({"params": params}, images, method="encode_image")[0]
    features = model.apply({"params": params}, rows["tokens"], method="encode_text")
    out = local.local_rows(model, {"params": params}, patches, features, rows, 3)
    tokens, ids = np.asarray(rows["tokens"]), np.asarray(out["id"])
    assert sorted(ids[0]) == sorted([-1, *tokens[0, 1:3]])
    assert set(ids[1]) <= set(tokens[1, :7])
    assert np.all(ids[2:] == -1)
    np.testing.assert_array_equal(out["affirmed"], np.where(affirmed, tokens, -1))
    # The embeddings are those of the drawn tokens.
    every = np.asarray(model.apply({"params": params}, features, method="project_tokens"))
    for slot in range(3):
        places = [place for place in range(7) if tokens[1, place] == ids[1, slot]]
        assert min(np.abs(every[1, place] - out["token"][1, slot]).max() for place in places) < 1e-6


@pytest.mark.slow
def test_gradient_norms_of_single_losses(params: Any, batch: Any) -> None:
    weights = {"objective__attmim__weight": 0.7, "objective__entmlm__weight": 0.0, "objective__local__weight": 0.4}
    config = small(**weights)
    model = tiny.build_model(config.model)
    norms = tiny.jit(functools.partial(step.loss_gradient_norms, model, config, tiny.MASK_ID))(
        params, jnp.int32(3), batch
    )
    assert set(norms) == {"gradient_norm/contrastive", "gradient_norm/attmim", "gradient_norm/local"}
    # Without the other two the total is the contrastive loss alone.
    alone = small(**dict.fromkeys(weights, 0.0))
    gradients = tiny.jit(tiny.loss_and_gradients(model, alone))(params, jnp.int32(3), batch)[1]
    expected = np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(gradients)))
    assert float(norms["gradient_norm/contrastive"]) == pytest.approx(expected, rel=1e-4)
    # A loss of twice the weight has twice the gradient.
    double = small(**weights | {"objective__attmim__weight": 1.4})
    twice = tiny.jit(functools.partial(step.loss_gradient_norms, model, double, tiny.MASK_ID))(
        params, jnp.int32(3), batch
    )
    assert float(twice["gradient_norm/attmim"]) == pytest.approx(2 * float(norms["gradient_norm/attmim"]), rel=1e-4)
    assert float(norms["gradient_norm/local"]) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def test_the_first_tenth_of_the_steps_masks_at_random(params: Any, batch: Any) -> None:
    changes = {"train__steps": 50, "objective__entmlm__weight": 0.0}
    switch = forward(objective__attmim__random_share=0.1, **changes)
    at_random = forward(objective__attmim__strategy="random", **changes)
    attention = forward(objective__attmim__random_share=0.0, **changes)
    for number in (0, 4):
        _, metrics = switch(params, number, batch)
        assert metrics["attmim/random"] == 1
        assert metrics["attmim/loss"] == pytest.approx(at_random(params, number, batch)[1]["attmim/loss"], abs=1e-6)
        assert metrics["attmim/loss"] != pytest.approx(attention(params, number, batch)[1]["attmim/loss"], abs=1e-5)
    for number in (5, 49):
        _, metrics = switch(params, number, batch)
        assert metrics["attmim/random"] == 0
        assert metrics["attmim/loss"] == pytest.approx(attention(params, number, batch)[1]["attmim/loss"], abs=1e-6)


class Spy:
    """A model that keeps what `reconstruct` predicts, and how many texts each pass of the text encoder took."""

    def __init__(self, model: Any):
        self._model, self.patch_size = model, model.patch_size
        self.predicted: Any = None
        self.passes: list[int] = []

    def apply(self, variables: Any, *arguments: Any, method: str) -> Any:
        out = self._model.apply(variables, *arguments, method=method)
        if method == "encode_text":
            self.passes.append(len(arguments[0]))
        if method == "reconstruct":
            self.predicted = out
        return out


def test_one_pass_of_the_text_encoder_takes_all_texts(params: Any) -> None:
    config = small(objective__hard_negatives__weight=0.5)
    spy, given = Spy(tiny.build_model(config.model)), tiny.batch(config)
    jax.eval_shape(lambda p: step.compute_loss(spy, config, tiny.MASK_ID, p, jnp.int32(0), given), params)  # type: ignore[arg-type]
    assert spy.passes == [8 + 8 + 8 + 8], "reports, prompts, reports with hidden entities, flipped reports"


@pytest.mark.parametrize(("mask_at", "leaks"), [("input", False), ("features", True)])
def test_masked_pixels_reach_the_prediction_only_through_whole_image_features(
    params: Any, batch: Any, mask_at: str, leaks: bool
) -> None:
    config = small(objective__attmim__mask_at=mask_at)
    spy = Spy(tiny.build_model(config.model))

    def run(params: Any, image: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array]:
        variables, images = {"params": params}, inputs.pixels(image)
        patches, _ = spy.apply(variables, inputs.standardize(images), method="encode_image")
        features = spy.apply(variables, rows["tokens"], method="encode_text")
        out = attmim.attmim_rows(
            spy, variables, images, patches, features, rows, config.objective, jnp.bool_(True)  # type: ignore[arg-type]
        )  # fmt: skip
        return spy.predicted, out["masked"]

    compiled = tiny.jit(run)
    rows = batch["paired"] | {"key": np.asarray(rows_lib.row_key_data(0, jnp.int32(0), "paired", 8))}
    image = rows.pop("image")
    predicted, masked = compiled(params, image, rows)
    pixels = np.array(patchify(jnp.asarray(image), 4))
    for row in range(8):
        pixels[row, masked[row]] = 255 - pixels[row, masked[row]]
    other, same_masked = compiled(params, np.asarray(step_unpatchify(pixels)), rows)
    np.testing.assert_array_equal(masked, same_masked)
    difference = np.abs(other - predicted).max(axis=(1, 2))
    assert np.all(difference > 1e-3) if leaks else np.all(difference == 0)
    # The control: visible pixels matter in both.
    assert np.abs(compiled(params, 255 - image, rows)[0] - predicted).max() > 1e-3


def step_unpatchify(pixels: Array) -> Array:
    return pixels.reshape(-1, 5, 5, 4, 4, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 20, 20, 1)


@pytest.mark.parametrize("response", ["similarity", "cross_attention"])
def test_no_gradient_flows_through_the_response(params: Any, batch: Any, response: str) -> None:
    config = small(objective__attmim__response=response)
    model = tiny.build_model(config.model)
    rows = batch["paired"] | {"key": rows_lib.row_key_data(0, jnp.int32(0), "paired", 8)}

    def error(params: Any, temperature: jax.Array) -> jax.Array:
        variables, images = {"params": params}, inputs.pixels(rows["image"])
        patches, _ = model.apply(variables, inputs.standardize(images), method="encode_image")
        features = model.apply(variables, rows["tokens"], method="encode_text")
        objective = config.objective.copy_and_resolve_references()
        with objective.unlocked(), objective.ignore_type():
            objective.attmim.temperature = temperature
        out = attmim.attmim_rows(model, variables, images, patches, features, rows, objective, jnp.bool_(False))
        return out["error"].mean() + out["response"][0, 0]

    gradient, of_temperature = tiny.jit(jax.grad(error, argnums=(0, 1)))(params, jnp.float32(0.1))
    assert float(of_temperature) == 0
    for name in ("image_projection", "text_projection"):
        assert not np.any(gradient[name]["kernel"])
    # A_r trains the projections of the cross-attention response, in either case.
    for name in ("response_query", "response_key"):
        assert np.abs(gradient[name]["kernel"]).max() > 1e-7


# ---------------------------------------------------------------------------------------------------------------------
# Random draws


def test_a_rows_key_depends_on_seed_step_part_and_row() -> None:
    keys = {
        tuple(row.tolist())
        for seed in (0, 1)
        for number in (0, 1)
        for part in ("paired", "unpaired")
        for row in np.asarray(rows_lib.row_key_data(seed, jnp.int32(number), part, 3))
    }
    assert len(keys) == 2 * 2 * 2 * 3
    more = rows_lib.row_key_data(0, jnp.int32(1), "paired", 7)
    np.testing.assert_array_equal(more[:3], rows_lib.row_key_data(0, jnp.int32(1), "paired", 3))


def test_the_masks_differ_from_step_to_step(params: Any, batch: Any) -> None:
    run = forward()
    losses = [run(params, number, batch)[1] for number in (3, 4, 3)]
    for name in ("attmim/loss", "entmlm/loss"):
        assert losses[0][name] == losses[2][name]
        assert losses[0][name] != losses[1][name]
    assert losses[0]["contrastive/loss"] == losses[1]["contrastive/loss"]


def test_patches_tokens_and_local_tokens_of_a_row_are_drawn_apart(
    params: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three draws of one row, three keys: one key for two of them would tie what is masked to what is compared."""
    asked: list[int] = []
    stream = rows_lib.stream

    def spy(key_data: jax.Array, number: int) -> jax.Array:
        asked.append(number)
        return stream(key_data, number)

    monkeypatch.setattr(rows_lib, "stream", spy)
    config = small(objective__local__weight=0.5)
    model = tiny.build_model(config.model)
    jax.eval_shape(lambda p, b: step.compute_loss(model, config, tiny.MASK_ID, p, jnp.int32(3), b), params, batch)
    assert len(asked) == 3
    rows = rows_lib.row_key_data(0, jnp.int32(3), "paired", 5)
    keys = [tuple(key.tolist()) for number in asked for key in np.asarray(jax.random.key_data(stream(rows, number)))]
    assert len(set(keys)) == 15
