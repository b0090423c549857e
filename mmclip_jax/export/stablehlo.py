"""Both encoders, or a classifier, as StableHLO programs for where this package is not: `jax.export`, or a compiler.

The parameters are the first argument of each, a dictionary by path, and lie in params.npz once.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from mmclip_jax.checkpoints.arrays import nested
from mmclip_jax.checkpoints.exported import PARAMS_FILE
from mmclip_jax.errors import UserError, extra
from mmclip_jax.export.content import CLASSIFIER_FILE, Content, write_json
from mmclip_jax.inference.classifier import pool
from mmclip_jax.models.inputs import pixels, standardize
from mmclip_jax.models.mmclip import MMCLIP, PAD_ID, build_model

ABOUT_FILE = "stablehlo.json"
PLATFORMS = ("cpu", "cuda", "tpu")
FIXED = 1

Function = Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]


def functions(model: MMCLIP) -> dict[str, Function]:
    """The two functions of (parameters by path, input) -> embeddings float32 [B,E], L2-normalised.

    encode_image takes images uint8 [B,S,S,1], encode_text token ids int32 [B,L].
    """

    def apply(params: Mapping[str, jax.Array], method: str, *arrays: Any) -> Any:
        return model.apply({"params": nested(params)}, *arrays, method=method)

    def encode_image(params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        return apply(params, "encode_image", standardize(pixels(images)))[1]

    def encode_text(params: Mapping[str, jax.Array], tokens: jax.Array) -> jax.Array:
        valid = tokens != PAD_ID
        return apply(params, "embed_text", apply(params, "encode_text", tokens, valid), valid)

    return {"encode_image": encode_image, "encode_text": encode_text}


def classify(model: MMCLIP, task: str) -> Function:
    """The function of (parameters by path, images uint8 [B,S,S,1]) -> probabilities float32 [B,K] of a classifier."""

    def function(params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        tree = nested(params)
        z = jnp.dot(pool(model, tree, images), tree["head"]["kernel"], precision="highest") + tree["head"]["bias"][None]
        return jax.nn.softmax(z) if task == "multi-class" else jax.nn.sigmoid(z)

    return function


def _serialized(program: jax_export.Exported) -> bytes:
    try:
        return bytes(program.serialize())
    except ImportError as error:
        raise UserError(f"StableHLO is written by the package flatbuffers; install {extra('export')}") from error


def write(content: Content, folder: pathlib.Path, batch: int = FIXED) -> str:
    """Writes the programs, for any number of rows and for `batch` of them, parameters and tokenizer (or findings)."""
    settings, model = content.model, build_model(content.model)
    content.write_reader(folder)
    image = jax.ShapeDtypeStruct((settings.image_size, settings.image_size, 1), np.uint8)
    if content.classifier is not None:
        said = {"classifier": CLASSIFIER_FILE}
        return write_programs(
            {"classify": classify(model, content.classifier["task"])},
            {"classify": image},
            content.params,
            folder,
            said,
            batch,
        )
    used = {path: x for path, x in content.params.items() if not path.startswith(("decode_", "response_"))}
    made = functions(model)
    rows = {"encode_image": image, "encode_text": jax.ShapeDtypeStruct((settings.text.length,), np.int32)}
    about = {"logit_scale": float(np.exp(content.params["log_logit_scale"])), "padding": PAD_ID}
    return write_programs(made, rows, used, folder, about, batch)


def write_programs(
    made: Mapping[str, Function],
    rows: Mapping[str, jax.ShapeDtypeStruct],
    params: Mapping[str, np.ndarray],
    folder: pathlib.Path,
    about: Mapping[str, Any],
    batch: int = FIXED,
) -> str:
    """Writes functions of (parameters by path, rows) with their parameters; returns what is to be said.

    rows: one row of what each function takes. about: what `stablehlo.json` says beside the programs.

    Raises:
      UserError: the package flatbuffers is missing.
    """
    np.savez(folder / PARAMS_FILE, **params)  # type: ignore[arg-type]
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    (symbol,) = jax_export.symbolic_shape("batch")
    programs = {}
    for name, function in made.items():
        row = rows[name]
        for ending, count in (("any", symbol), (str(batch), batch)):
            taken = jax.ShapeDtypeStruct((count, *row.shape), row.dtype)
            program = jax_export.export(jax.jit(function), platforms=PLATFORMS)(shapes, taken)
            file = f"{name}.{ending}.jax_export"
            (folder / file).write_bytes(_serialized(program))
            programs[file] = {"function": name, "batch": ending, "input": [*row.shape], "dtype": row.dtype.name}
            if count is batch:
                (folder / f"{name}.{ending}.mlir").write_text(program.mlir_module(), encoding="utf-8")
    said = {"programs": programs, "platforms": PLATFORMS, "parameters": PARAMS_FILE} | dict(about)
    write_json(folder / ABOUT_FILE, said)
    return f"{len(programs)} programs for {', '.join(PLATFORMS)}; {len(params)} arrays"
