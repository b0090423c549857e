"""Ranks in retrieval: where each query's best match stands among all of a gallery, in both directions at once.

Similarities are made on the device in float32. Those too close to the best match for float32 to say which is higher are
made again in float64, so the ranks are those of float64. Nothing is sorted, and no n x n array is held.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

# Rows and columns of the similarities that are worked on at a time.
_ROWS, _COLUMNS = 512, 4096
# Similarities this close in float64 are ties: above its rounding, far below what a model can mean.
_TIE = 1e-14
# A rounding error of float32 products is at most this many times 2^-24 · sqrt(E) (seen: less than 1).
_MARGIN = 8.0
# A block of which a larger share is too close is made in float64 as a whole: a model that gives everything almost the
# same embedding.
_DENSE = 0.01


def retrieval_ranks(first: np.ndarray, second: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank (from 1) of the best match of each row of `first` among `second`, and of each of `second` among `first`.

    Rows i and j match if their ids agree in any column. An element that does not match and ties with the best match
    counts as ranked before it, so that a model that gives everything one embedding finds nothing. Memory is O(n).

    Args:
      first: [n, E], such as embeddings of images.
      second: [n, E], such as embeddings of texts.
      ids: int [n, G], of row i of both.

    Returns:
      int [n] twice.
    """
    n = len(ids)
    numbers: np.ndarray = np.unique(ids, return_inverse=True)[1]
    ids = numbers.reshape(n, -1)  # the same, in 32 bits whatever they were
    first, second = np.ascontiguousarray(first, np.float32), np.ascontiguousarray(second, np.float32)
    best = _best_matches(first, second, ids)
    before = np.zeros(n, np.int64), np.zeros(n, np.int64)
    margin = np.float32(_MARGIN * 2.0**-24 * first.shape[-1] ** 0.5 * _longest(first) * _longest(second))
    padded = -(-n // _COLUMNS) * _COLUMNS
    # What fills the last tile up is infinitely far from being ranked before anything.
    columns = (
        jnp.asarray(_filled(second, padded, 0).reshape(-1, _COLUMNS, second.shape[1])),
        jnp.asarray(_filled(ids.astype(np.int32), padded, 0).reshape(-1, _COLUMNS, ids.shape[1])),
        jnp.asarray(_filled(best[1].astype(np.float32), padded, np.inf).reshape(-1, _COLUMNS)),
        jnp.asarray((np.arange(padded) < n).reshape(-1, _COLUMNS)),
    )
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        count = rows.stop - start
        real = np.arange(_ROWS) < count
        given = _filled(first[rows], _ROWS, 0), _filled(ids[rows].astype(np.int32), _ROWS, 0)
        found = jax.device_get(
            _block(*given, _filled(best[0][rows].astype(np.float32), _ROWS, np.inf), real, columns, margin)
        )
        i, j = _set_bits(found[2])
        if len(i) > _DENSE * count * n:
            likeness = first[rows].astype(np.float64) @ second.T.astype(np.float64)
            other = ~_matches(ids[rows], ids)
            before[0][rows] += (other & (likeness >= best[0][rows, np.newaxis] - _TIE)).sum(axis=1)
            before[1][:] += (other & (likeness >= best[1] - _TIE)).sum(axis=0)
            continue
        before[0][rows] += found[0][:count]
        before[1][:] += found[1].reshape(-1)[:n]
        i += start
        products = _products(first, second, i, j)
        np.add.at(before[0], i[products >= best[0][i] - _TIE], 1)
        np.add.at(before[1], j[products >= best[1][j] - _TIE], 1)
    return before[0] + 1, before[1] + 1


@jax.jit
def _block(rows, ids, best, real, columns, margin):  # type: ignore[no-untyped-def]
    """How many are surely ranked before the best match of each row and column of a block, and which pairs are close.

    Pairs that are close in one direction count in neither: int32 [rows], int32 [tiles, columns], and bits in uint8
    [rows, tiles * columns / 8].
    """

    def tile(before, column):  # type: ignore[no-untyped-def]
        embedded, column_ids, column_best, column_real = column
        likeness = jnp.dot(rows, embedded.T, precision=jax.lax.Precision.HIGHEST)
        other = real[:, None] & column_real[None]
        for g in range(ids.shape[1]):
            other &= ids[:, g, None] != column_ids[None, :, g]
        by_row, by_column = likeness - best[:, None], likeness - column_best[None]
        close = other & ((jnp.abs(by_row) <= margin) | (jnp.abs(by_column) <= margin))
        sure = other & ~close
        before += (sure & (by_row > margin)).sum(axis=1, dtype=jnp.int32)
        by_column_before = (sure & (by_column > margin)).sum(axis=0, dtype=jnp.int32)
        return before, (by_column_before, jnp.packbits(close, axis=1))

    before, (by_column, close) = jax.lax.scan(tile, jnp.zeros(len(rows), jnp.int32), columns)
    return before, by_column, jnp.moveaxis(close, 0, 1).reshape(len(rows), -1)


def _set_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every bit that is set in uint8 [rows, columns / 8]."""
    row, byte = np.nonzero(packed)
    which, bit = np.nonzero(np.unpackbits(packed[row, byte][:, np.newaxis], axis=1))
    return row[which], byte[which] * 8 + bit


def match_counts(ids: np.ndarray) -> np.ndarray:
    """How many rows each row matches, itself included: int [n], of ids int [n, G] (see `retrieval_ranks`)."""
    counts = np.zeros(len(ids), np.int64)
    for size in range(1, ids.shape[1] + 1):  # rows that agree in both of two columns were counted twice
        for chosen in itertools.combinations(range(ids.shape[1]), size):
            _, number, many = np.unique(ids[:, chosen], axis=0, return_inverse=True, return_counts=True)
            counts += (-1) ** (size + 1) * many[number.reshape(-1)]
    return counts


def _best_matches(first: np.ndarray, second: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity of each row's best match, and of each column's: float64 [n] twice."""
    rows, columns = np.full(len(ids), -np.inf), np.full(len(ids), -np.inf)
    everyone = np.arange(len(ids))
    for start in range(0, len(ids), _COLUMNS):
        part = everyone[start : start + _COLUMNS]
        rows[part] = columns[part] = _products(first, second, part, part)
    for column in ids.T:
        order = np.argsort(column, kind="stable")
        ends = np.flatnonzero(np.diff(column[order])) + 1
        for members in np.split(order, ends):
            for start in range(0, len(members) if len(members) > 1 else 0, _ROWS):
                some = members[start : start + _ROWS]
                likeness = first[some].astype(np.float64) @ second[members].T.astype(np.float64)
                rows[some] = np.maximum(rows[some], likeness.max(axis=1))
                columns[members] = np.maximum(columns[members], likeness.max(axis=0))
    return rows, columns


def _products(first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The similarities of the pairs (i, j): float64 [pairs]."""
    found = np.empty(len(i))
    for start in range(0, len(i), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        found[part] = np.einsum("pe,pe->p", first[i[part]].astype(np.float64), second[j[part]].astype(np.float64))
    return found


def _matches(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce([a[:, np.newaxis] == b[np.newaxis] for a, b in zip(ids.T, others.T, strict=True)])


def _longest(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("ne,ne->n", vectors, vectors).max(initial=0.0)))


def _filled(array: np.ndarray, length: int, value: float) -> np.ndarray:
    """Filled up to `length` rows."""
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), value, array.dtype)])
