"""Which images a user's files, folders and patterns name, and reading them with damaged ones among them."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.inference.places import find_images, read_images

GREY = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)


def png(pixels: np.ndarray = GREY) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "films"
    for name in ("b.png", "a.JPG", "inner/c.dcm", "inner/IM0001", ".hidden.png", "__MACOSX/d.png", "notes.txt", "none"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 9 if "inner" in name else png())
    return root


def names(found: list[pathlib.Path], folder: pathlib.Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_a_folder_gives_its_images_at_any_depth_and_counts_the_rest(folder: pathlib.Path) -> None:
    found = find_images([folder])
    assert names(found.images, folder) == ["a.JPG", "b.png", "inner/IM0001", "inner/c.dcm"]
    assert found.others == 2  # notes.txt, and "none", which has no suffix and is no DICOM


def test_patterns_and_files_each_image_once(folder: pathlib.Path) -> None:
    assert names(find_images([folder / "*.png"]).images, folder) == ["b.png"]
    assert names(find_images([folder / "**/*.dcm"]).images, folder) == ["inner/c.dcm"]
    assert names(find_images([folder / "inn*"]).images, folder) == ["inner/IM0001", "inner/c.dcm"]
    everything = find_images([folder / "notes.txt", folder / "b.png", folder, folder / "b.png"])
    assert names(everything.images, folder)[:2] == ["notes.txt", "b.png"], "what is named is taken, whatever its name"
    assert len(everything.images) == 5
    odd = folder / "x[1].png"
    odd.write_bytes(png())
    assert find_images([odd]).images == [odd]


def test_a_place_that_is_not_there_is_one_line(folder: pathlib.Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "x.txt").write_text("x", encoding="utf-8")
    for place, message in (("no.png", "no.png does not exist"), ("*.bmp", "matches nothing"), ("empty", "no image")):
        with pytest.raises(UserError, match=message) as raised:
            find_images([folder, folder / place])
        assert "\n" not in str(raised.value)


def test_a_damaged_image_loses_nothing_of_the_others(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    pictures = {tmp_path / f"{n:03}.png": rng.integers(0, 256, (50 + n, 40), dtype=np.uint8) for n in range(70)}
    for path, pixels in pictures.items():
        path.write_bytes(png(pixels))
    bad = {
        tmp_path / "truncated.png": png()[:300],
        tmp_path / "empty.png": b"",
        tmp_path / "flat.png": png(np.full((9, 9), 7, np.uint8)),
        tmp_path / "black.png": png(np.eye(9, dtype=np.uint8)),
        tmp_path / "words.png": b"words",
    }
    for path, data in bad.items():
        path.write_bytes(data)
    gone = tmp_path / "gone.png"
    paths = [*list(pictures)[:5], *bad, gone, *list(pictures)[5:]]
    read, lost = {}, {}
    for there, pixels, unreadable in read_images(paths, 32):
        read |= dict(zip(there, pixels, strict=True))
        lost |= {each.path: each.reason for each in unreadable}
    assert list(read) == list(pictures)
    for path, pixels in pictures.items():
        np.testing.assert_array_equal(read[path], transforms.fit_image(pixels, 32)[..., 0])
    assert lost.keys() == {*bad, gone}
    assert lost[gone] == "No such file or directory"
    assert all("\n" not in reason and str(tmp_path) not in reason for reason in lost.values())
