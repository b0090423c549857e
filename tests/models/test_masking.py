"""Selections of patches and tokens against NumPy, over random shapes, values with ties, infinities and NaN."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax import sharding
from mmclip_jax.models import masking

Array = np.ndarray
SHAPES = [(1, 1), (2, 3), (3, 5), (2, 27)]
# What a response can hold: ties (few distinct values), both zeros, infinities, NaN.
AWKWARD = np.array([0.25, 0.5, 0.75, 0.0, -0.0, -1.0, np.inf, -np.inf, np.nan], np.float32)


def order(row: Array, strategy: str) -> list[int]:
    """Patches in the order in which they are taken: NaN lowest, below -inf; ties to the lower index."""
    rank = [(not np.isnan(x), 0.0 if np.isnan(x) else float(x)) for x in row]
    if strategy == "attention":
        return sorted(range(len(row)), key=lambda n: (not rank[n][0], -rank[n][1], n))
    return sorted(range(len(row)), key=lambda n: (rank[n], n))


def select(response: Array, seed: int | jax.Array = 0, **options: Any) -> tuple[Array, Array]:
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    masked, visible = masking.select_masked_patches(jnp.asarray(response), key, **options)
    return np.asarray(masked), np.asarray(visible)


def awkward_response(shape: tuple[int, int], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    smooth = rng.random(shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.6, rng.choice(AWKWARD, shape), smooth)


# ---------------------------------------------------------------------------------------------------------------------
# Weights of tokens


def test_weights_are_affirmed_entity_tokens_else_valid_tokens() -> None:
    affirmed = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    valid = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    expected: Any = [[0, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(masking.token_weights(jnp.asarray(affirmed), jnp.asarray(valid)), expected, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Patches


@settings(max_examples=50)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**31 - 1),
    ratio=st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.75, 0.9, 1.0]),
    hint=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    strategy=st.sampled_from(["attention", "inverse", "random"]),
)
def test_selection_against_numpy(shape: tuple[int, int], seed: int, ratio: float, hint: float, strategy: str) -> None:
    response = awkward_response(shape, seed)
    masked, visible = select(response, seed, ratio=ratio, hint=hint, strategy=strategy)
    count = round(ratio * shape[1])
    assert masked.shape == (shape[0], count)
    assert visible.shape == (shape[0], shape[1] - count)
    assert masked.dtype == visible.dtype == np.int32
    swaps = min(round(hint * count), shape[1] - count)
    for row in range(shape[0]):
        assert sorted([*masked[row], *visible[row]]) == list(range(shape[1]))  # disjoint and complete
        assert list(masked[row]) == sorted(masked[row])
        assert list(visible[row]) == sorted(visible[row])
        if strategy != "random":
            top = set(order(response[row], strategy)[:count])
            assert len(top & set(masked[row])) == count - swaps
        if strategy != "random" and hint == 0:
            assert set(masked[row]) == top


def test_count_is_pythons_rounding() -> None:
    for patches in (1, 2, 3, 5, 10, 25, 27, 49, 196):
        for ratio in (0.05, 0.1, 0.15, 0.25, 0.29, 0.35, 0.5, 0.75):
            assert masking.masked_count(patches, ratio) == round(ratio * patches)
    assert masking.masked_count(25, 0.5) == 12
    assert masking.masked_count(27, 0.5) == 14


def test_ties_go_to_the_lower_index_and_nan_ranks_below_minus_infinity() -> None:
    nan, inf = np.nan, np.inf
    response = np.array([[nan, -inf, 1, 0.0, 1, -0.0, nan, inf, 1]], np.float32)
    expected = {
        "attention": [7, 2, 4, 8, 3, 5, 1, 0, 6],
        "inverse": [0, 6, 1, 3, 5, 2, 4, 8, 7],
    }
    for strategy, taken in expected.items():
        for count in range(10):
            masked, _ = select(response, ratio=count / 9, hint=0.0, strategy=strategy)
            assert list(masked[0]) == sorted(taken[:count]), (strategy, count)


def test_bfloat16_and_integer_responses_are_ordered_in_float32() -> None:
    response = np.array([[3, 1, 2, 5, 4]])
    for dtype in (jnp.bfloat16, jnp.int32):
        masked, _ = masking.select_masked_patches(
            jnp.asarray(response, dtype), jax.random.key(0), ratio=0.4, hint=0.0, strategy="attention"
        )
        assert masked.tolist() == [[3, 4]]


def test_a_single_key_is_folded_with_the_row_number() -> None:
    response = np.random.default_rng(0).random((5, 13)).astype(np.float32)
    key = jax.random.key(7)
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(5))
    for strategy in ("attention", "inverse", "random"):
        options = {"ratio": 0.5, "hint": 0.4, "strategy": strategy}
        together = select(response, key, **options)
        one_each = select(response, keys, **options)
        raw = select(response, jax.random.PRNGKey(7), **options)
        np.testing.assert_array_equal(together[0], one_each[0])
        np.testing.assert_array_equal(together[0], raw[0])
        backwards = select(response[::-1].copy(), keys[::-1], **options)
        np.testing.assert_array_equal(backwards[0][::-1], together[0])  # a row depends on its own key alone


def test_rows_and_keys_draw_differently() -> None:
    response = np.zeros((7, 31), np.float32)
    first, _ = select(response, 0, ratio=0.5, hint=0.5, strategy="random")
    second, _ = select(response, 1, ratio=0.5, hint=0.5, strategy="random")
    assert len({tuple(row) for row in [*first, *second]}) == 14


@pytest.mark.parametrize("strategy", ["attention", "inverse", "random"])
def test_hints_are_drawn_evenly(strategy: str) -> None:
    draws, patches, hint = 3000, 10, 0.4
    response = np.tile(np.arange(patches, dtype=np.float32), (draws, 1))
    masked, _ = select(response, 5, ratio=0.5, hint=hint, strategy=strategy)
    rate = np.bincount(masked.reshape(-1), minlength=patches) / draws
    high, low = {"attention": (0.4, 0.6), "inverse": (0.6, 0.4), "random": (0.5, 0.5)}[strategy]
    expected = [high] * 5 + [low] * 5
    np.testing.assert_allclose(rate, expected, atol=5 * np.sqrt(0.25 / draws))


def test_nothing_is_differentiated_through_the_selection() -> None:
    def total(response: jax.Array) -> jax.Array:
        masked, _ = masking.select_masked_patches(
            response, jax.random.key(0), ratio=0.4, hint=0.0, strategy="attention"
        )
        return jnp.take_along_axis(response, masked, axis=1).sum()

    response = jnp.asarray([[0.1, 0.5, 0.3, 0.4, 0.2]])
    np.testing.assert_array_equal(jax.grad(total)(response), [[0, 1, 0, 1, 0]])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"strategy": "top"}, "top"),
        ({"ratio": 1.1}, "ratio"),
        ({"ratio": -0.1}, "ratio"),
        ({"hint": 1.5}, "hint"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], word: str) -> None:
    settings: dict[str, Any] = {"ratio": 0.5, "hint": 0.1, "strategy": "attention"} | options
    with pytest.raises(ValueError, match=word):
        select(np.zeros((2, 5), np.float32), **settings)


def test_a_wrong_number_of_keys_is_refused() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="3"):
        select(np.zeros((2, 5), np.float32), keys, ratio=0.5, hint=0.1, strategy="attention")


def test_hidden_patches_and_masked_tokens_are_marked_exactly() -> None:
    hidden = masking.hidden_patches(jnp.asarray([[0, 3], [1, 2]]), 5)
    np.testing.assert_array_equal(hidden, [[1, 0, 0, 1, 0], [0, 1, 1, 0, 0]])
    tokens = jnp.asarray([[11, 12, 13, 14, 0], [21, 22, 0, 0, 0]])
    masked = masking.mask_tokens(tokens, jnp.asarray([[3, 1, 0], [0, 1, 4]]), jnp.asarray([[1.0, 1, 0], [0, 1, 0]]), 2)
    np.testing.assert_array_equal(masked, [[11, 2, 13, 2, 0], [21, 2, 0, 0, 0]])


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def texts(rows: int, length: int, seed: int, longest: int = 3) -> tuple[Array, Array]:
    """Entity numbers and validity of texts; the entities are runs of tokens, some rows have none."""
    rng = np.random.default_rng(seed)
    entity, valid = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    for row in range(rows):
        end = int(rng.integers(0, length + 1))
        valid[row, :end] = True
        place, number = int(rng.integers(0, 3)), 0
        while place < end and rng.random() < 0.9:
            size, number = int(rng.integers(1, longest + 1)), number + 1
            entity[row, place : min(place + size, end)] = number
            place += size + int(rng.integers(0, 3))
    return entity, valid


def mask_text(entity: Array, valid: Array, seed: int, **options: Any) -> tuple[Array, Array, Array, Array]:
    """(positions, weights, dropped, masked bool [B,L])."""
    settings: dict[str, Any] = {"probability": 0.5, "min_share": 0.15, "slots": 5, "strategy": "entity"} | options
    chosen = masking.select_masked_tokens(jnp.asarray(entity), jnp.asarray(valid), jax.random.key(seed), **settings)
    positions, weights, dropped = (np.asarray(x) for x in chosen)
    masked = np.zeros(entity.shape, bool)
    for row in range(len(entity)):
        masked[row, positions[row][weights[row] > 0]] = True
    return positions, weights, dropped, masked


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(3, 7), (5, 17)]),
    seed=st.integers(0, 2**31 - 1),
    slots=st.sampled_from([1, 3, 7]),
    min_share=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_whole_entities_are_masked_and_others_top_up(
    shape: tuple[int, int], seed: int, slots: int, min_share: float, probability: float
) -> None:
    entity, valid = texts(*shape, seed)
    options = {"slots": slots, "min_share": min_share, "probability": probability}
    positions, weights, dropped, masked = mask_text(entity, valid, seed, **options)
    assert positions.shape == weights.shape == (shape[0], slots)
    assert weights.dtype == np.float32
    for row in range(shape[0]):
        used = weights[row].astype(bool)
        assert set(weights[row]) <= {0.0, 1.0}
        assert list(weights[row]) == sorted(weights[row], reverse=True)
        assert len(set(positions[row])) == slots
        assert list(positions[row][used]) == sorted(positions[row][used])
        assert not np.any(masked[row] & ~valid[row])
        sizes = {n: int((entity[row] == n).sum()) for n in set(entity[row]) - {0}}
        hit = {n: int((masked[row] & (entity[row] == n)).sum()) for n in sizes}
        assert all(hit[n] in (0, sizes[n]) for n in sizes)  # whole or not at all
        whole = [n for n in sizes if hit[n]]
        if sizes and max(sizes.values()) <= slots:
            assert whole  # at least one where there is one
        if probability == 0:
            assert len(whole) + dropped[row] == bool(sizes)
        if probability == 1:
            assert len(whole) + dropped[row] == len(sizes)
        if sum(sizes.values()) <= slots:
            assert dropped[row] == 0
        in_entities = sum(hit.values())
        outside = int((valid[row] & (entity[row] == 0)).sum())
        wanted = int(np.ceil(round(min_share * valid[row].sum(), 6)))
        topped = min(max(wanted - in_entities, 0), slots - in_entities, outside)
        assert masked[row].sum() == in_entities + topped


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), slots=st.sampled_from([3, 7]))
def test_the_random_control_masks_as_many_tokens(seed: int, slots: int) -> None:
    entity, valid = texts(5, 17, seed)
    _, _, _, by_entity = mask_text(entity, valid, seed, slots=slots)
    _, _, dropped, at_random = mask_text(entity, valid, seed, slots=slots, strategy="random")
    np.testing.assert_array_equal(by_entity.sum(axis=1), at_random.sum(axis=1))
    assert not np.any(at_random & ~valid)
    assert not np.any(dropped)


def test_the_random_control_does_not_prefer_entities() -> None:
    rows = 2000
    entity = np.tile(np.array([1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0], np.int32), (rows, 1))
    valid = np.tile(np.arange(11) < 10, (rows, 1))
    masked = mask_text(entity, valid, 0, strategy="random", min_share=0.5)[3]
    assert np.all(masked.sum(axis=1) == 5)
    np.testing.assert_allclose(masked.mean(axis=0)[:10], 0.5, atol=5 * np.sqrt(0.25 / rows))


def test_each_entity_is_masked_with_the_probability_and_never_none() -> None:
    rows, entities, p = 3000, 3, 0.5
    entity = np.tile(np.array([1, 1, 0, 2, 0, 3, 3, 3, 0, 0], np.int32), (rows, 1))
    _, _, dropped, masked = mask_text(entity, np.ones_like(entity, bool), 1, slots=7, probability=p, min_share=0.0)
    chosen = masked[:, [0, 3, 5]]
    count = np.bincount(chosen.sum(axis=1), minlength=4) / rows
    # Binomial(3, 1/2), where "none" becomes "one".
    np.testing.assert_allclose(count, [0, 4 / 8, 3 / 8, 1 / 8], atol=5 * np.sqrt(0.25 / rows))
    rate = p + (1 - p) ** entities / entities
    np.testing.assert_allclose(chosen.mean(axis=0), rate, atol=5 * np.sqrt(0.25 / rows))
    assert not np.any(dropped)


def test_overflow_drops_whole_entities_at_random_and_counts_them() -> None:
    rows = 1000
    entity = np.tile(np.array([1, 1, 2, 2, 3, 3, 4, 4, 0, 0, 0], np.int32), (rows, 1))
    _, _, dropped, masked = mask_text(entity, np.ones_like(entity, bool), 2, slots=5, probability=1.0, min_share=0.0)
    assert np.all(dropped == 2)
    assert np.all(masked.sum(axis=1) == 4)
    np.testing.assert_allclose(masked[:, [0, 2, 4, 6]].mean(axis=0), 0.5, atol=5 * np.sqrt(0.25 / rows))


def test_topped_up_tokens_are_drawn_evenly_from_outside_entities() -> None:
    rows = 2000
    entity = np.tile(np.array([0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0], np.int32), (rows, 1))
    valid = np.tile(np.arange(11) < 10, (rows, 1))
    masked = mask_text(entity, valid, 3, probability=0.0, min_share=0.5, slots=7)[3]
    np.testing.assert_array_equal(masked[:, [1, 5]].sum(axis=1), 1)
    np.testing.assert_allclose(masked.mean(axis=0)[[0, 2, 3, 4, 6, 7, 8, 9]], 4 / 8, atol=5 * np.sqrt(0.25 / rows))


@pytest.mark.parametrize(
    ("options", "word"), [({"strategy": "words"}, "words"), ({"slots": 0}, "0"), ({"slots": 8}, "8")]
)
def test_impossible_token_settings_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        mask_text(*texts(2, 7, 0), 0, **options)


# ---------------------------------------------------------------------------------------------------------------------
# On eight devices


def test_selections_are_the_same_on_eight_devices_and_need_no_communication() -> None:
    response = awkward_response((16, 13), 3)
    rng = np.random.default_rng(0)
    entity, valid = rng.integers(0, 4, (16, 11)).astype(np.int32), np.arange(11)[None] < rng.integers(1, 12, (16, 1))
    keys = jax.random.key_data(jax.random.split(jax.random.key(3), 16))

    def everything(response: jax.Array, entity: jax.Array, valid: jax.Array, keys: jax.Array) -> list[jax.Array]:
        out: list[jax.Array] = []
        for strategy in masking.STRATEGIES:
            out += masking.select_masked_patches(response, keys, ratio=0.5, hint=0.3, strategy=strategy)
        for strategy in masking.TOKEN_STRATEGIES:
            out += masking.select_masked_tokens(
                entity, valid, keys, probability=0.5, min_share=0.3, slots=5, strategy=strategy
            )
        return out

    alone = jax.jit(everything)(response, entity, valid, keys)
    mesh = sharding.make_mesh(2)
    with jax.set_mesh(mesh):
        placed = jax.device_put((response, entity, valid, keys), sharding.batch_sharding(mesh))
        compiled = jax.jit(everything, out_shardings=sharding.batch_sharding(mesh)).lower(*placed).compile()
        spread = compiled(*placed)
    for a, b in zip(alone, spread, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not re.findall(r"(all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", str(compiled.as_text()))


@pytest.mark.parametrize("strategy", ["entity", "random"])
def test_marks_around_a_text_are_never_masked(strategy: str) -> None:
    entity = np.zeros((53, 7), np.int32)
    entity[:, 2] = 1
    entity[:, [0, 5]] = -1
    valid = np.arange(7)[None] < np.full((53, 1), 6)
    options: dict[str, Any] = {"probability": 0.5, "min_share": 0.6, "slots": 5, "strategy": strategy}
    slots, weights, _ = masking.select_masked_tokens(
        jnp.asarray(entity), jnp.asarray(valid), jax.random.key(3), **options
    )
    chosen = np.asarray(slots)[np.asarray(weights) > 0]
    assert len(chosen) == 53 * 4
    assert set(chosen.tolist()) == {1, 2, 3, 4}
