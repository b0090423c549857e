"""Runs with random parameters to export, images and texts to ask them."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import tiny
from etils import epath
from ml_collections import ConfigDict

from mmclip_jax.checkpoints import Checkpoints, Saved, find_checkpoint, run_record
from mmclip_jax.checkpoints.arrays import flat_tree, nested
from mmclip_jax.checkpoints.exported import PARAMS_FILE, read_arrays, record
from mmclip_jax.checkpoints.saved import EXPORT_RECORD
from mmclip_jax.data.images import transforms
from mmclip_jax.inference.classifier import KEY, encoder_of
from mmclip_jax.inference.inputs import as_pixels
from mmclip_jax.models.inputs import pixels, standardize
from mmclip_jax.models.mmclip import build_model
from mmclip_jax.state import TrainState
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import optim

MANIFEST: dict[str, Any] = {
    "exposure": {"sources": {"phantom-a": {"paired": 8, "unpaired": 4}}, "label_kinds": {"phantom-a": ["edema"]}},
}
TEXTS = [
    "Small left pleural effusion, 3.5 cm.",
    "No acute disease. The heart is normal in size; NO pneumothorax.",
    "edema",
    "",
    "Herzschatten grenzwertig groß — naïve café ½ 胸部 🫁\tend",
    "The lungs are clear. " * 30,
]


def save(
    folder: pathlib.Path,
    config: ConfigDict,
    tokenizer: Any = None,
    params: Any = None,
    manifest: dict[str, Any] | None = None,
) -> pathlib.Path:
    """A checkpoint of step 3 as an export to NumPy, of random parameters (no bias is zero) or these, by path."""
    tokenizer = tokenizer or load_tokenizer()
    config.model.text.vocab_size = tokenizer.vocab_size
    if params is None:
        params = flat_tree(tiny.random_params(build_model(config.model), config, 7))
    arrays = {path: np.asarray(array) for path, array in params.items()}
    folder.mkdir()
    saved = Saved(epath.Path(folder), 3, config, tokenizer.model_bytes, manifest or MANIFEST, {})
    np.savez(folder / PARAMS_FILE, **arrays)  # type: ignore[arg-type]
    (folder / EXPORT_RECORD).write_text(json.dumps(record(saved, "numpy", arrays)))
    return folder


def save_classifier(folder: pathlib.Path, config: ConfigDict, task: str) -> pathlib.Path:
    """A fine-tuned classifier of two findings and step 3, of random parameters, as an export to NumPy."""
    findings, rng = ["edema", "pneumothorax"], np.random.default_rng(3)
    tokenizer = load_tokenizer()
    config.model.text.vocab_size = tokenizer.vocab_size
    random = encoder_of(tiny.random_params(build_model(config.model), config, 7))
    head = {"kernel": rng.normal(size=(config.model.image.width, 2)), "bias": rng.normal(size=2)}
    params = flat_tree(random | {"head": {name: part.astype(np.float32) for name, part in head.items()}})
    told = {
        "mode": "full", "task": task, "fraction": 0.1, "seed": 0, "step": 3, "findings": findings, "images": 9,
        "patients": 8, "uncertain": "ignore", "checkpoint": {"run": "run", "step": 1}, "data": {}, "label_kinds": {},
        "sources": {"phantom-a": 9}, "validation": {"images": 5, "patients": 4, "macro_auroc": 0.5},
        "thresholds": {"findings": [{"finding": each, "note": "few", "rules": {"youden": None}} for each in findings]},
    }  # fmt: skip
    return save(folder, config, tokenizer, params, MANIFEST | {KEY: told})


def stored(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters that `save` wrote."""
    return read_arrays(folder / PARAMS_FILE)


def save_run(folder: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """A workdir with a checkpoint of step 3, as training leaves one."""
    tokenizer = load_tokenizer()
    config.model.text.vocab_size = tokenizer.vocab_size
    params = tiny.random_params(build_model(config.model), config, 7)
    optimizer = optim.make_optimizer(config.optimizer, 10)
    checkpoints = Checkpoints(folder, keep=1)
    state = TrainState(jnp.int32(3), params, optimizer.init(params), params)
    run = run_record(config, tokenizer.model_bytes, MANIFEST)
    checkpoints.save(state, iter(grain.MapDataset.range(10).to_iter_dataset()), run)
    checkpoints.close()
    return folder


def embed(folder: pathlib.Path, pictures: Sequence[Any], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(images [n,E], texts [m,E]) as `mmclip_jax.load` embeds them, of what `save` wrote; compiled quickly."""
    saved = find_checkpoint(folder)
    tree, model = nested(stored(folder)), build_model(saved.config.model)
    size, length = saved.config.model.image_size, saved.config.model.text.length
    fitted = np.stack([transforms.fit_image(as_pixels(picture), size) for picture in pictures])
    tokenizer = load_tokenizer(saved.tokenizer_model)
    tokens = np.stack([tokenizer.tokenize(text, [], length).tokens for text in texts])

    def both(params: Any, images: Any, tokens: Any) -> Any:
        def apply(method: str, *arrays: Any) -> Any:
            return model.apply({"params": params}, *arrays, method=method)

        features = apply("encode_text", tokens)
        return apply("encode_image", standardize(pixels(images)))[1], apply("embed_text", features, tokens != 0)

    made = tiny.jit(both)(tree, fitted, tokens)
    return np.asarray(made[0]), np.asarray(made[1])


def images(size: int, count: int = 3) -> np.ndarray:
    """`pictures` as the model sees them: padded to squares, uint8 [n,S,S,1]."""
    return np.stack([transforms.fit_image(as_pixels(each), size) for each in pictures(count)]).reshape(
        -1, size, size, 1
    )


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
    from mmclip_jax.data.phantom.generate import PAIRED_SOURCE, PhantomConfig, generate_patient

    drawn = [next(generate_patient(PhantomConfig(), "test", PAIRED_SOURCE, number)) for number in range(count)]
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


def snippet(heading: str, out: pathlib.Path) -> str:
    """The Python of docs/export.md below this heading, reading the directory `out`."""
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```python\n")[1].split("```")[0].replace("OUT", str(out))
