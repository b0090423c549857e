"""The model's formulas against NumPy: embeddings, responses, attended text, what the reconstruction may know."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.errors import UserError
from mmclip_jax.models import inputs, masking
from mmclip_jax.models.mmclip import MMCLIP, build_model, init_params

pytestmark = pytest.mark.compiles

Array = np.ndarray
Run = Any


def runner(**changes: Any) -> tuple[Run, Any]:
    """(run(method, *arrays, **static arguments), parameters)."""
    model, params = tiny.model_and_params(tiny.config(**changes))

    def apply(params: Any, *arguments: Any, **static: Any) -> Any:
        return model.apply({"params": params}, *arguments, **static)

    compiled = tiny.jit(apply, static_argnames=("method", "kind", "temperature"))
    return lambda method, *arguments, **static: compiled(params, *arguments, method=method, **static), params


@pytest.fixture(scope="module")
def plain() -> tuple[Run, Any]:
    return runner()


@pytest.fixture(scope="module")
def batch() -> dict[str, Array]:
    rows = tiny.rows(3, 0)
    return rows | {"images": np.asarray(inputs.standardize(inputs.pixels(jnp.asarray(rows["image"]))))}


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def decode_tokens(model: MMCLIP, *arguments: Any) -> jax.Array:
    return model.decode_tokens(*arguments)


def kernel(params: Any, name: str) -> Array:
    assert set(params[name]) == {"kernel"}
    return np.asarray(params[name]["kernel"], np.float64)


def test_embeddings_are_normalised_projections_of_the_means(plain: tuple[Run, Any], batch: dict[str, Array]) -> None:
    run, params = plain
    patches, v = run("encode_image", batch["images"])
    features = run("encode_text", batch["tokens"])
    valid = batch["tokens"] != 0
    u = run("embed_text", features, valid)
    assert patches.shape == (3, tiny.PATCHES, 12)
    assert v.dtype == u.dtype == jnp.float32
    np.testing.assert_allclose(
        v, unit(np.float64(patches).mean(axis=1) @ kernel(params, "image_projection")), atol=1e-5
    )
    mean = np.stack([np.float64(row[keep]).mean(axis=0) for row, keep in zip(features, valid, strict=True)])
    np.testing.assert_allclose(u, unit(mean @ kernel(params, "text_projection")), atol=1e-5)
    # The local projections share W_v and W_t with the global ones.
    v_n, u_l = run("project_patches", patches), run("project_tokens", features)
    np.testing.assert_allclose(v_n, unit(np.float64(patches) @ kernel(params, "image_projection")), atol=1e-5)
    np.testing.assert_allclose(u_l, unit(np.float64(features) @ kernel(params, "text_projection")), atol=1e-5)


def test_embeddings_of_the_maxima(batch: dict[str, Array]) -> None:
    run, params = runner(model__pool="max", model__text_pool="max")
    patches, v = run("encode_image", batch["images"])
    features = np.asarray(run("encode_text", batch["tokens"]), np.float64)
    valid = batch["tokens"] != 0
    assert not valid.all()
    np.testing.assert_allclose(v, unit(np.float64(patches).max(axis=1) @ kernel(params, "image_projection")), atol=1e-5)
    highest = np.stack([row[keep].max(axis=0) for row, keep in zip(features, valid, strict=True)])
    u = run("embed_text", np.float32(features), valid)
    np.testing.assert_allclose(u, unit(highest @ kernel(params, "text_projection")), atol=1e-5)
    assert np.all(np.asarray(run("embed_text", np.float32(features), np.zeros_like(valid))) == 0)


@pytest.mark.parametrize("kind", ["similarity", "cross_attention"])
def test_responses_use_their_projections(plain: tuple[Run, Any], batch: dict[str, Array], kind: str) -> None:
    run, params = plain
    patches, _ = run("encode_image", batch["images"])
    features = run("encode_text", batch["tokens"])
    weights = np.asarray(masking.token_weights(jnp.asarray(batch["affirmed"]), jnp.asarray(batch["tokens"] != 0)))
    got = run("response", patches, features, weights, kind=kind, temperature=0.1)
    names = {
        "similarity": ("image_projection", "text_projection"),
        "cross_attention": ("response_query", "response_key"),
    }
    v, u = (unit(np.float64(x) @ kernel(params, n)) for x, n in zip((patches, features), names[kind], strict=True))
    logits = np.einsum("bne,ble->bnl", v, u) / 0.1
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bnl,bl->bn", softmax, weights), rtol=1e-3, atol=1e-6)


def test_attended_text_is_the_papers_softmax_over_tokens(plain: tuple[Run, Any], batch: dict[str, Array]) -> None:
    run, params = plain
    patches, _ = run("encode_image", batch["images"])
    features = np.asarray(run("encode_text", batch["tokens"]))
    valid = batch["tokens"] != 0
    got = run("attend_text", patches, features, valid)
    queries = np.float64(patches) @ kernel(params, "response_query")
    keys = np.float64(features) @ kernel(params, "response_key")
    for row in range(3):
        logits = queries[row] @ keys[row].T / np.sqrt(tiny.EMBED)
        logits[:, ~valid[row]] = -np.inf
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax /= softmax.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(got[row], softmax @ np.float64(features[row]), rtol=1e-3, atol=1e-4)


def test_the_reconstruction_knows_nothing_of_masked_features(plain: tuple[Run, Any], batch: dict[str, Array]) -> None:
    run, _ = plain
    patches, _ = run("encode_image", batch["images"])
    features = run("encode_text", batch["tokens"])
    valid = batch["tokens"] != 0
    masked = np.sort(np.stack([np.random.default_rng(n).permutation(25)[:12] for n in range(3)])).astype(np.int32)
    expected = run("reconstruct", patches, masked, features, valid)
    hidden = np.asarray(masking.hidden_patches(jnp.asarray(masked), 25))[:, :, None]
    rubbish = 3.0 * np.random.default_rng(5).normal(size=patches.shape).astype(np.float32)
    np.testing.assert_array_equal(
        run("reconstruct", np.where(hidden, rubbish, patches), masked, features, valid), expected
    )
    np.testing.assert_array_equal(
        run("reconstruct", np.where(hidden, np.float32(np.nan), patches), masked, features, valid), expected
    )
    visible_changed = run("reconstruct", np.where(hidden, patches, rubbish), masked, features, valid)
    assert np.abs(visible_changed - expected).max(axis=(1, 2)).min() > 1e-2
    padded = np.where(valid[:, :, None], features, 7.0).astype(np.float32)
    assert not valid.all()
    np.testing.assert_array_equal(run("reconstruct", patches, masked, padded, valid), expected)


def test_restored_tokens_see_the_image_but_no_padding(plain: tuple[Run, Any], batch: dict[str, Array]) -> None:
    run, params = plain
    patches, _ = run("encode_image", batch["images"])
    features = run("encode_text", batch["tokens"])
    valid = batch["tokens"] != 0
    slots = np.array([[0, 2, 3]] * 3, np.int32)
    logits = run("restore", features, valid, patches, slots)
    assert logits.shape == (3, 3, tiny.VOCAB)
    padded = np.where(valid[:, :, None], features, 7.0).astype(np.float32)
    np.testing.assert_array_equal(run("restore", padded, valid, patches, slots), logits)
    other = run("restore", features, valid, np.roll(patches, 1, axis=0), slots)
    assert np.abs(other - logits).max(axis=(1, 2)).min() > 1e-3
    # Tied to the text encoder's embedding, in its width.
    restored = run(decode_tokens, features, valid, patches, slots)
    embedding = np.asarray(params["text_encoder"]["embed"]["embedding"], np.float64)
    np.testing.assert_allclose(logits, np.float64(restored) @ embedding.T, atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "map"])
def test_pools_keep_the_patches_and_embed_something_else(pool: str, batch: dict[str, Array]) -> None:
    run, params = runner(model__pool=pool)
    patches, v = run("encode_image", batch["images"])
    assert patches.shape == (3, tiny.PATCHES, 12)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1.0, atol=1e-5)
    mean = unit(np.float64(patches).mean(axis=1) @ kernel(params, "image_projection"))
    assert np.abs(v - mean).max() > 1e-2
    visible = np.array([[0, 3, 5, 7]] * 3, np.int32)
    seen, _ = run("encode_image", batch["images"], visible)
    assert seen.shape == (3, 4, 12)
    if pool == "map":
        assert set(params["pool_attention"]["key"]) == {"kernel"}


def test_initial_parameters_come_from_the_seed_alone() -> None:
    config = tiny.config(model__dtype="bfloat16")
    model = build_model(config.model)
    make = jax.jit(lambda seed: init_params(model, config.model, seed), compiler_options=tiny.QUICK)
    params, again, other = make(0), make(0), make(1)
    assert tiny.largest_difference(params, again) == 0
    assert np.abs(params["image_projection"]["kernel"] - other["image_projection"]["kernel"]).max() > 1e-3
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert float(jnp.exp(params["log_logit_scale"])) == pytest.approx(1 / 0.07)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    assert not [path for path in paths if path.endswith("key/bias")]
    assert sum(path.endswith("key/kernel") for path in paths) == 7  # self: 4 transformers; cross: 2; the response


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model__pool": "median"}, "median"),
        ({"model__text_pool": "cls"}, "cls"),
        ({"model__image_size": 21}, "21"),
        ({"model__image__heads": 5}, "model.image.width=12"),
        ({"model__text_decoder__heads": 3}, "model.text_decoder.width=16"),
        ({"model__image_decoder__width": 6}, "model.image_decoder.width=6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        build_model(tiny.config(**change).model)
