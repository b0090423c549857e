"""Parameters and settings in files that NumPy and a reader of JSON open."""

import pathlib

import numpy as np

from mmclip_jax.checkpoints.exported import PARAMS_FILE
from mmclip_jax.export.content import Content, write_json

CONFIG_FILE = "config.json"


def write(content: Content, folder: pathlib.Path) -> str:
    """Writes params.npz, config.json and the tokenizer, or classifier.json; returns what is to be said."""
    np.savez(folder / PARAMS_FILE, **content.params)  # type: ignore[arg-type]
    write_json(folder / CONFIG_FILE, content.saved.config.to_dict())
    content.write_reader(folder)
    count = sum(array.size for array in content.params.values())
    return f"{len(content.params)} arrays, {count:,} numbers"
