"""Exports to ONNX: ONNX Runtime gives the run's embeddings, for any number of rows."""

import pathlib
from typing import Any

import exports
import numpy as np
import pytest
import tiny

pytest.importorskip("torch", reason="torch and transformers have an environment of their own: make test-interop")
pytest.importorskip("timm_beside_cpu", reason="timm is part of make test-interop")
pytest.importorskip("onnxruntime", reason="onnxruntime is part of make test-interop")

import onnxruntime

from mmclip_jax.export import run as export
from mmclip_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.torch


def test_onnx_runtime_embeds_as_the_run_does(tmp_path: pathlib.Path) -> None:
    run, out = exports.save(tmp_path / "run", tiny.load_config("demo", "runlocal")), tmp_path / "out"
    export.run(run, "onnx", out)
    images = exports.images(64, 5)
    wanted = exports.embed(run, list(images[..., 0]), exports.TEXTS)
    pixels = ((images.astype(np.float32) / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)
    names: dict[str, Any] = {"pixels": pixels}
    exec(exports.snippet("ONNX", out), names)
    np.testing.assert_allclose(names["v"], wanted[0], atol=1e-5)
    texts = onnxruntime.InferenceSession(out / "encode_text.onnx")
    ids = np.stack([load_tokenizer().tokenize(text, [], 48).tokens for text in exports.TEXTS]).astype(np.int64)
    np.testing.assert_allclose(texts.run(None, {"input_ids": ids})[0], wanted[1], atol=1e-5)
    np.testing.assert_allclose(texts.run(None, {"input_ids": ids[:1]})[0], wanted[1][:1], atol=1e-5)
