"""Runs with random parameters to export, images and texts to ask them."""

import pathlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tiny
from ml_collections import ConfigDict

from mmclip_jax.checkpoints import Checkpoints, run_record
from mmclip_jax.checkpoints.arrays import flat_tree, nested
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


def flat(params: Any) -> list[tuple[str, Any]]:
    """Every array with its path."""
    return list(flat_tree(params).items())


def save(
    folder: pathlib.Path, config: ConfigDict, tokenizer: Any = None, seed: int = 7, params: Any = None
) -> pathlib.Path:
    """A workdir with a checkpoint of step 3 of random parameters; no bias is zero."""
    tokenizer = tokenizer or load_tokenizer()
    config.model.text.vocab_size = tokenizer.vocab_size
    if params is None:
        params = tiny.random_params(build_model(config.model), config, seed)
    else:
        params = jax.tree.map(jnp.asarray, nested(params))
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


def pictures(count: int = 3) -> list[Any]:
    """Real X-rays in the forms in which they come (MMCLIP_REAL_DATA), or drawn ones; grey PIL images, no two alike."""
    import os

    from PIL import Image

    root = pathlib.Path(__file__).resolve().parents[2]
    folder = pathlib.Path(os.environ.get("MMCLIP_REAL_DATA", root.parent / "shared" / "data" / "real"))
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(found) >= count:
        chosen = [found[number * (len(found) - 1) // (count - 1)] for number in range(count)]
        return [Image.open(file).convert("L") for file in chosen]
    from mmclip_jax.data.images.transforms import decode_image
    from mmclip_jax.data.phantom import generate

    settings = generate.PhantomConfig()
    drawn = [next(generate.generate_patient(settings, "test", generate.PAIRED_SOURCE, n)) for n in range(count)]
    return [Image.fromarray(decode_image(example.image)) for example in drawn]


def clip_like(config: ConfigDict) -> ConfigDict:
    """The settings of a run that started from CLIP."""
    config.model.update({"pool": "cls", "text_pool": "last", "stem": "patch", "image_size": 42, "patch_size": 7})
    config.model.image.update({"first_norm": True, "key_bias": True, "activation": "quick_gelu", "epsilon": 1e-5})
    config.model.text.update({"encoder": "clip", "key_bias": True, "activation": "quick_gelu", "length": 29})
    return config


def dual_like(config: ConfigDict, first_norm: bool = False, hidden: int = 0) -> ConfigDict:
    """The settings of a run of a ViT (or CLIP's) and a BERT, whose texts have BERT's pooler."""
    config.model.update({"pool": "cls", "text_pool": "first", "stem": "patch", "image_size": 42, "patch_size": 7})
    config.model.image.update({"first_norm": first_norm, "epsilon": 1e-12, "activation": "gelu"})
    config.model.image_head.update({"hidden": hidden, "activation": "tanh"})
    config.model.text.update({"encoder": "bert", "key_bias": True, "epsilon": 1e-12, "length": 31})
    config.model.text_head.update({"hidden": config.model.text.width, "activation": "tanh"})
    return config
