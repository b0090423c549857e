"""Every block of docs/use.md runs as it stands there, on a small run, a few films and a small data set."""

import contextlib
import io
import pathlib
import re
import shlex
import shutil
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

import mmclip_jax
from mmclip_jax import cli

pytestmark = pytest.mark.compiles

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "use.md"
MANIFEST = {
    "exposure": {
        "sources": {"phantom-a": {"paired": 2000, "unpaired": 0}},
        "label_kinds": {},
        "report_kinds": {"phantom-a": ["edema", "pneumothorax"]},
    }
}


def dicom(pixels: np.ndarray, path: pathlib.Path) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_every_block_of_the_page_runs(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save_run(tmp_path / "runs" / "demo", (7,), MANIFEST)
    shutil.copytree(phantom_dir, tmp_path / "data" / "phantom" / "1.0.0")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 48), dtype=np.uint8) for _ in range(4)]
    pictures[0][0, :2] = 0, 255  # as 16 bits it uses them all
    Image.fromarray(pictures[0]).save("chest.png")
    for folder in ("films/inner", "more/deep"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(pictures[1]).save("films/inner/b.jpg")
    dicom(pictures[2], tmp_path / "films" / "a.dcm")
    dicom(pictures[3], tmp_path / "more" / "deep" / "c.dcm")
    (tmp_path / "sentences.txt").write_text("No acute disease.\nEdema.\n", encoding="utf-8")
    model = mmclip_jax.load("runs/demo")
    monkeypatch.setattr("mmclip_jax.inference.model.load", lambda run, step=None: model)  # compiled once

    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    commands = [line for language, block in blocks if not language for line in block.splitlines()]
    assert len(commands) == 7
    for line in commands:
        word, *words = shlex.split(line)
        assert (word, cli.main(words)) == ("mmclip", 0), line
    assert "coin" in capsys.readouterr().out
    assert len(list((tmp_path / "maps").iterdir())) == 6  # three films, two findings
    said: dict[int, str] = {}
    names: dict[str, Any] = {}
    for number, block in enumerate(block for language, block in blocks if language == "python"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
        said[number] = out.getvalue()
    assert "artificial X-rays alone, phantom-a (2,000 images)" in said[0]
    assert (tmp_path / "why.png").exists()
    assert said[2] == "0.0\n"
    refused = said[3].splitlines()
    assert len(refused) == 3
    for line, words in zip(refused, ("must be 0 to 1", "all but black", "images must be a list"), strict=True):
        assert words in line
    assert "artificial X-rays alone" in said[4]
    assert re.match(r"\(\d+, 32\) \d+\n", said[5])


def test_the_page_names_every_option() -> None:
    text = PAGE.read_text(encoding="utf-8")
    parser = cli.entry.make_parser().commands()
    for command in ("predict", "embed"):
        for option in set(parser[command].options()) - {"-h", "--help"}:
            assert option in text, f"{command} {option}"
