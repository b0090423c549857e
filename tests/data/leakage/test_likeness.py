"""Looks in blocks against every pair by itself, and the file that keeps them."""

import io
import pathlib
import stat
from collections.abc import Iterator

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmclip_jax.data.leakage import likeness as likeness_lib


def drawing(seed: int, size: int = 96) -> np.ndarray:
    rough = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8))
    return np.asarray(rough.resize((size, size), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def looks_of(*pictures: np.ndarray) -> np.ndarray:
    return np.array([likeness_lib.look_of(png(picture)) for picture in pictures], likeness_lib.TYPE)


def changed(pixels: np.ndarray, how: int) -> np.ndarray:
    if how == 0:
        return pixels[::2, ::2]
    if how == 1:
        return np.clip(pixels * 0.7 + 30, 0, 255).astype(np.uint8)
    return np.clip(pixels + np.random.default_rng(how).normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)


def plain(train: np.ndarray, test: np.ndarray) -> list[tuple[int, int]]:
    """Every pair by itself, with NumPy's correlation and Python's count of bits."""
    found = []
    for b, one in enumerate(test):
        best = (likeness_lib.ALIKE, -1)
        for a, other in enumerate(train):
            bits = bin(int(one["bits"]) ^ int(other["bits"])).count("1")
            if bits <= likeness_lib.HASH_BITS:
                alike = float(np.corrcoef(one["thumbnail"].astype(float), other["thumbnail"].astype(float))[0, 1])
                if alike >= best[0] + (1e-6 if best[1] >= 0 else 0):
                    best = (alike, a)
        if best[1] >= 0:
            found.append((best[1], b))
    return found


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9), st.integers(0, 9), st.integers(1, 5))
def test_blocks_give_what_every_pair_gives(seed: int, ours: int, theirs: int, copies: int, block: int) -> None:
    train = looks_of(*(drawing(seed + n) for n in range(ours)))
    pictures = [changed(drawing(seed + n % ours), n) if n < copies else drawing(seed + 100 + n) for n in range(theirs)]
    test = looks_of(*pictures)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("_TRAIN_BLOCK", block), ("_TEST_BLOCK", 2), ("_PAIRS", 3)):
            patch.setattr(likeness_lib, name, size)
        found = likeness_lib.alike(train, test)
    assert found == plain(train, test)


def test_copies_are_found_in_whatever_block_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness_lib, "_TRAIN_BLOCK", 3)
    train = looks_of(*(drawing(n) for n in range(10)))
    order = [7, 2, 9, 0]
    found = likeness_lib.alike(train, looks_of(*(drawing(n) for n in order), drawing(77)))
    assert found == [(n, row) for row, n in enumerate(order)]


def test_what_squares_tell_is_no_farther_apart_than_the_thumbnails() -> None:
    seen = looks_of(*(drawing(n) for n in range(9)), *(changed(drawing(n), n) for n in range(9)))
    unit, coarse = likeness_lib._unit(seen["thumbnail"]), likeness_lib._coarse(seen["thumbnail"])
    apart = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    assert (((coarse[:, None] - coarse[None]) ** 2).sum(-1) <= apart + 1e-5).all()
    np.testing.assert_allclose(apart, 2 - 2 * unit @ unit.T, atol=1e-5)


class Counted:
    """Images, and how often somebody went through them."""

    def __init__(self, count: int):
        self.count, self.times = count, 0

    def __call__(self) -> Iterator[bytes]:
        self.times += 1
        return (png(drawing(n)) for n in range(self.count))


def store(folder: pathlib.Path, count: int = 4, fingerprint: str = "a" * 64) -> likeness_lib.Store:
    return likeness_lib.Store(epath.Path(folder), "train", fingerprint, count)


def test_looks_are_made_once_and_mapped(tmp_path: pathlib.Path) -> None:
    images = Counted(4)
    assert store(tmp_path).stored() is None
    made = np.array(store(tmp_path).make(images))
    again = store(tmp_path).stored()
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(made, looks_of(*(drawing(n) for n in range(4))))
    assert images.times == 1
    (file,) = tmp_path.iterdir()
    assert file.name == f"looks-train-{'a' * 16}.npy"
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(tmp_path.stat().st_mode) & 0o666
    assert store(tmp_path, count=5).stored() is None
    assert store(tmp_path, fingerprint="b" * 64).stored() is None, "other contents"
    file.write_bytes(file.read_bytes()[:5000])
    assert store(tmp_path).stored() is None, "cut off"


def test_where_nothing_can_be_written_they_are_made_for_this_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(likeness_lib.Store, "_write", full)
    images = Counted(3)
    np.testing.assert_array_equal(store(tmp_path, 3).make(images), looks_of(*(drawing(n) for n in range(3))))
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    def images() -> Iterator[bytes]:
        yield png(drawing(0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).make(images)
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_read_is_like_no_other(tmp_path: pathlib.Path) -> None:
    pictures = [b"", png(drawing(1)), b"\xff\xd8", b""]
    made = store(tmp_path).make(lambda: iter(pictures))
    assert likeness_lib.unreadable(made) == 3
    assert likeness_lib.alike(made, made) == [(1, 1)]
