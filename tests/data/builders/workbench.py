"""Fixtures for builders of published data sets; imported by name, since a second conftest would hide the first."""

import gzip
import io
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmclip_jax.data import records
from mmclip_jax.data.builders import files, registry
from mmclip_jax.data.schema import PARTS, SPLITS, Example


def drawing(seed: int, height: int = 37, width: int = 53) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def picture(file: pathlib.Path, seed: int = 0, height: int = 37, width: int = 53) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing(seed, height, width)).save(file)


def examples_of(path: pathlib.Path) -> dict[str, Example]:
    return {e.id: e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)}


class Bench:
    """A folder laid out as a published data set, and its builds."""

    def __init__(self, folder: pathlib.Path, out: pathlib.Path | None = None):
        self.folder, self.out = folder, out or folder / "out"
        self.raw = folder / "raw"
        self.raw.mkdir()

    def write(self, name: str, text: str) -> pathlib.Path:
        file = self.raw / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            file.write_bytes(gzip.compress(text.encode()))
        else:
            file.write_text(text, encoding="utf-8")
        return file

    def builder(self, name: str, **options: Any) -> Any:
        kind = registry.load(name)
        return kind(kind.Options(str(self.raw), **({"workers": 1} | options)), self.out)

    def build(self, name: str, **options: Any) -> tuple[dict[str, Example], dict[str, Any]]:
        path = records.build(self.builder(name, **options), overwrite=True)
        return examples_of(path), records.dataset_facts(path)


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def wheel_table(wheel_dir: pathlib.Path) -> Callable[[str], pd.DataFrame]:
    """Reads one of the real tables as text, with pandas."""

    def read(name: str) -> pd.DataFrame:
        data = (wheel_dir / name).read_bytes()
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = archive.read(archive.namelist()[0])
        elif name.endswith(".gz"):
            data = gzip.decompress(data)
        return pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)

    return read


@pytest.fixture
def all_images_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """For counting the rows of whole tables: every image is found, none is ever read."""
    monkeypatch.setattr(files.FileIndex, "find", lambda self, *wanted: wanted[0])
    monkeypatch.setattr(files.FileIndex, "find_any", lambda self, stem: f"{stem}.dcm")
