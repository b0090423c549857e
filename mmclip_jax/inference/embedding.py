"""Embeddings of a user's images, of a data set, or of texts, in a file that says where they come from."""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmclip_jax import files
from mmclip_jax.data.images import transforms
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS, SPLITS
from mmclip_jax.errors import UserError
from mmclip_jax.inference import places
from mmclip_jax.inference.model import Model
from mmclip_jax.inference.stamp import RESEARCH_ONLY

SUFFIXES = (".npz", ".parquet")
STAMP = "stamp"  # the key of the JSON text in a file
_COLUMNS = ("source", "split", "part", "patient", "study")  # of a data set's examples
_CHUNK = 256


@dataclasses.dataclass
class Embeddings:
    """n embeddings of size E.

    columns: "id" and what else is known of each row, lists of n strings; vectors: float32 [n, E], L2-normalised; facts:
    the stamp, for JSON; unreadable: images that have none.
    """

    columns: dict[str, list[str]]
    vectors: np.ndarray
    facts: dict[str, Any]
    unreadable: list[places.Unreadable] = dataclasses.field(default_factory=list)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes it, whole or not at all.

        .npz: "embedding" and the columns as arrays, "stamp" a JSON text. .parquet: the columns, and "embedding" as a
        list of fixed size; the stamp is under the key "stamp" of the file's metadata.

        Raises:
          UserError: the name has another ending.
        """
        check_name(path)
        stream, stamp = io.BytesIO(), json.dumps(self.facts)
        if pathlib.Path(path).suffix == ".npz":
            arrays: dict[str, Any] = {name: np.array(values, str) for name, values in self.columns.items()}
            np.savez(stream, **arrays, embedding=self.vectors, **{STAMP: np.array(stamp)})
        else:
            import pyarrow
            import pyarrow.parquet

            flat = pyarrow.array(self.vectors.ravel(), pyarrow.float32())
            column = pyarrow.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1])
            table = pyarrow.table({**self.columns, "embedding": column})
            pyarrow.parquet.write_table(table.replace_schema_metadata({STAMP: stamp}), stream)
        files.write_whole(path, stream.getvalue())


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuses a file that is neither .npz nor .parquet.

    Raises:
      UserError: it is.
    """
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise UserError(
            f"{os.fspath(path)}: embeddings are written to a file whose name ends in {' or '.join(SUFFIXES)}"
        )


def embed_files(
    model: Model, paths: Sequence[pathlib.Path], name: str, advance: Callable[[int], object] = lambda count: None
) -> Embeddings:
    """Of image files; the id is the path. Those that cannot be read are listed, and lose nothing of the others."""
    ids, vectors, unreadable = [], [_none(model)], []
    for there, images, lost in places.read_images(paths, model.config.model.image_size):
        unreadable += lost
        ids += [str(path) for path in there]
        vectors.append(model.encode_image(images))
        advance(len(there) + len(lost))
    return Embeddings({"id": ids}, _joined(vectors), _facts(model, name, "images"), unreadable)


def embed_data(
    model: Model,
    directory: str | os.PathLike[str],
    name: str,
    splits: Sequence[str] = SPLITS,
    advance: Callable[[int], object] = lambda count: None,
) -> Embeddings:
    """Of a built data set's images, with the id, source, split, part, patient and study of each.

    Raises:
      UserError: there is no such data set, or it has no image in these splits.
    """
    columns: dict[str, list[str]] = {column: [] for column in ("id", *_COLUMNS)}
    vectors = [_none(model)]
    for split in splits:
        for part in PARTS:
            records = open_records(directory, split, part)
            for start in range(0, len(records), _CHUNK):
                examples = [records[index] for index in range(start, min(start + _CHUNK, len(records)))]
                for column, values in columns.items():
                    values += [str(getattr(example, column)) for example in examples]
                vectors.append(model.encode_image([transforms.decode_image(example.image) for example in examples]))
                advance(len(examples))
    if not columns["id"]:
        raise UserError(f"{os.fspath(directory)} has no image in {', '.join(splits)}: choose another split")
    return Embeddings(columns, _joined(vectors), _facts(model, name, "images") | {"data": os.fspath(directory)})


def embed_texts(model: Model, file: pathlib.Path, name: str) -> Embeddings:
    """Of the lines of a UTF-8 file, with their text; the id is the line's number, from 1. Blank lines have none.

    Raises:
      UserError: it cannot be read, is no UTF-8, or has no line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})") from error
    rows = [(str(number), line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{file} has no text: give one a line")
    ids, texts = map(list, zip(*rows, strict=True))
    return Embeddings({"id": ids, "text": texts}, _joined([model.encode_text(texts)]), _facts(model, name, "texts"))


def _none(model: Model) -> np.ndarray:
    return np.zeros((0, model.config.model.embed_dim), np.float32)


def _joined(vectors: Sequence[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(vectors)
    if not np.isfinite(joined).all():
        raise UserError("some embeddings are not finite: the checkpoint is broken, choose an earlier step")
    return joined


def _facts(model: Model, name: str, what: str) -> dict[str, Any]:
    return {
        "model": name,
        "step": model.step,
        "embeddings_of": what,
        "logit_scale": model.logit_scale,
        "domain": model.stamp.domain,
        "exposure": dict(model.stamp.findings),
        "note": RESEARCH_ONLY,
    }
