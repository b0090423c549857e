"""Hard negatives: the loss against its formula, and the rows that have one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax import check
from mmclip_jax.data import texts
from mmclip_jax.errors import UserError
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.objectives import registry
from mmclip_jax.objectives.base import Context, Encoded
from mmclip_jax.text.entities import find_entities
from mmclip_jax.train.step import encode_texts

OBJECTIVE = registry.OBJECTIVES["hard_negatives"]


def context() -> Context:
    config = tiny.config(objective__hard_negatives__weight=0.5)
    model = build_model(config.model)
    params = init_params(model, config.model, 3) | {"log_logit_scale": jnp.log(7.0)}
    return Context(model, {"params": params}, config, jnp.int32(0), tiny.MASK_ID)


def test_the_loss_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(11)
    true, flipped = rng.normal(size=(2, 13))
    there = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1], float)
    margin = (true - flipped)[there > 0]
    rows = {"true": jnp.asarray(true), "flipped": jnp.asarray(flipped), "there": jnp.asarray(there)}
    loss, metrics = OBJECTIVE.loss(context(), rows)
    assert float(loss) == pytest.approx(-np.log(1 / (1 + np.exp(-7.0 * margin))).mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((margin > 0).mean())
    assert float(metrics["share"]) == pytest.approx(8 / 13)


def test_without_a_flipped_report_there_is_no_loss_and_no_gradient() -> None:
    def loss(true: jax.Array) -> jax.Array:
        return OBJECTIVE.loss(context(), {"true": true, "flipped": jnp.zeros(5), "there": jnp.zeros(5)})[0]

    value, gradient = jax.value_and_grad(loss)(jnp.arange(5.0))
    assert value == 0.0
    assert not gradient.any()


def test_similarities_are_those_of_the_embedded_texts() -> None:
    given, rng = context(), np.random.default_rng(5)
    tokens = rng.integers(5, tiny.VOCAB, (2, 7, tiny.LENGTH))
    tokens[1, 3] = 0  # the fourth row has none
    tokens[:, :, 8:] = 0

    def embed(some: np.ndarray) -> jax.Array:
        features = given.model.apply(given.variables, jnp.asarray(some), method="encode_text")
        return given.model.apply(given.variables, features, jnp.asarray(some != 0), method="embed_text")

    image = jax.nn.standardize(jnp.asarray(rng.normal(size=(7, tiny.EMBED))))
    rows = {"tokens": jnp.asarray(tokens[0]), "negative": jnp.asarray(tokens[1])}
    nothing = jnp.zeros(0)
    features, prepared = encode_texts(
        given, rows["tokens"], {"hard_negatives": OBJECTIVE.prepare(given, {"paired": rows})}
    )
    encoded = Encoded(rows, {"paired": rows}, nothing, nothing, image, features, embed(tokens[0]), prepared)
    found = OBJECTIVE.rows(given, encoded)
    np.testing.assert_allclose(found["true"], np.einsum("re,re->r", image, embed(tokens[0])), rtol=1e-5)
    np.testing.assert_allclose(found["flipped"], np.einsum("re,re->r", image, embed(tokens[1])), rtol=1e-5)
    assert found["there"].tolist() == [1, 1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("flips", "turned"),
    [
        (("side",), {"A small right pleural effusion. No edema."}),
        (("severity",), {"A large left pleural effusion. No edema."}),
        (("polarity",), {"No small left pleural effusion. No edema.", "A small left pleural effusion. Edema."}),
    ],
)
def test_the_flipped_report_differs_in_one_thing(flips: tuple[str, ...], turned: set[str]) -> None:
    text = "A small left pleural effusion. No edema."
    drawn = texts.DrawnText(text, tuple(find_entities(text)), (), (), "", "", prompt=False)
    found = {texts.flipped(drawn, np.random.default_rng(seed), flips) for seed in range(20)}
    assert found == turned


def test_prompts_and_reports_without_a_finding_have_none() -> None:
    for text, prompt in (("Left pleural effusion.", True), ("The lungs are clear.", False)):
        drawn = texts.DrawnText(text, tuple(find_entities(text)), (), (), "", "", prompt=prompt)
        assert texts.flipped(drawn, np.random.default_rng(0), ("side",)) == ""


def test_settings_out_of_range_are_refused() -> None:
    for flips in ((), ("side", "side"), ("colour",)):
        with pytest.raises(UserError, match=r"objective\.hard_negatives\.flips"):
            check.check_values(tiny.config(objective__hard_negatives__flips=flips))
