"""Runs with random parameters to export, images and texts to ask them."""

import pathlib
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import tiny
from ml_collections import ConfigDict

from mmclip_jax.checkpoints import Checkpoints, run_record
from mmclip_jax.models.mmclip import build_model
from mmclip_jax.state import TrainState
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import optim

MANIFEST: dict[str, Any] = {
    "exposure": {"sources": {"phantom": {"paired": 8, "unpaired": 4}}, "label_kinds": {"phantom": ["edema"]}},
}
TEXTS = [
    "Small left pleural effusion, 3.5 cm.",
    "No acute disease. The heart is normal in size; NO pneumothorax.",
    "edema",
    "",
    "Herzschatten grenzwertig groß — naïve café ½ 胸部 🫁\tend",
    "The lungs are clear. " * 30,
]


def save(folder: pathlib.Path, config: ConfigDict, tokenizer: Any = None, seed: int = 7) -> pathlib.Path:
    """A workdir with a checkpoint of step 3 of random parameters; no bias is zero."""
    tokenizer = tokenizer or load_tokenizer()
    config.model.text.vocab_size = tokenizer.vocab_size
    params = tiny.random_params(build_model(config.model), config, seed)
    optimizer = optim.make_optimizer(config.optimizer.copy_and_resolve_references(), 10)
    checkpoints = Checkpoints(folder, keep=1)
    state = TrainState(jnp.int32(3), params, optimizer.init(params), params)
    run = run_record(config, tokenizer.model_bytes, MANIFEST)
    checkpoints.save(state, iter(grain.MapDataset.range(10).to_iter_dataset()), run)
    checkpoints.close()
    return folder


def images(size: int, count: int = 3) -> np.ndarray:
    """Square images uint8 [n,S,S,1] that differ from each other."""
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 1)).astype(np.uint8)
