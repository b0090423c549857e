"""The weights of another program's checkpoint as float32 arrays by name: safetensors, or a pickle of PyTorch's.

No code of a checkpoint is ever run: PyTorch unpickles tensors and plain containers alone (`weights_only`), and
TorchScript archives, which hold code, are refused.
"""

import argparse
import hashlib
import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError, extra

# Names that a checkpoint's folder holds its weights under, the safer format first.
FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# What a training program may have put around the weights of its model.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Facebook's MAE and many others save their command line, an argparse.Namespace, beside the weights. It is a bag of
# attributes: it is built without any code of the file being run.
_HARMLESS = (argparse.Namespace,)
_CHUNK = 1 << 24


def find_weights(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file of weights: the path itself, or that of a folder as Hugging Face and open_clip lay it out.

    Raises:
      UserError: there is none, or it is in several parts.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: there is no such checkpoint")
    for name in FILES:
        if (path / name).is_file():
            return path / name
        if (path / f"{name}.index.json").is_file():
            raise UserError(f"{path / name}: the weights lie in several parts; save them as one file")
    raise UserError(f"{path} holds no weights; a folder has one of {', '.join(FILES)}, or name the file itself")


def read_weights(file: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: float32 array, integers as they are} of a .safetensors file, or of a state dict that PyTorch saved.

    A state dict may lie under "state_dict", "model_state_dict" or "model", and its names may begin with "module.".

    Raises:
      UserError: not such a file, damaged, or the library that reads it is not installed.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    saved = _unpickle(file)
    for name in _WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(name), Mapping):
            saved = saved[name]
            break
    if not isinstance(saved, Mapping) or not saved:
        raise UserError(f"{file} holds a {type(saved).__name__} and no state dict; save model.state_dict() alone")
    weights = {}
    for name, value in saved.items():
        if not isinstance(name, str) or not hasattr(value, "detach"):
            raise UserError(
                f"{file}: {name!r} is a {type(value).__name__} and no tensor; save model.state_dict() alone"
            )
        tensor = value.detach().cpu()
        weights[name.removeprefix("module.")] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return weights


def sha256(file: pathlib.Path) -> str:
    """The SHA-256 sum of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Weights:
    """Weights that are taken one by one, each once and of the shape that its place has.

    Args:
      arrays: by name.
      where: the file, for errors.
      ignored: endings of names that are no weights (buffers), which nobody has to take.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], where: str, ignored: Sequence[str] = ()):
        self._arrays, self.where = dict(arrays), where
        self._left = {name for name in arrays if not name.endswith(tuple(ignored))}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def scalar(self, name: str) -> float:
        """The only value of a weight of no axis, or of one.

        Raises:
          UserError: as for `take`.
        """
        return float(self.take(name, *(1,) * min(1, np.ndim(self._arrays.get(name, 0)))).reshape(()))

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._arrays)

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """The array of this name and shape (None: any length), float32.

        Raises:
          UserError: there is none, its shape is another, or it is not finite.
        """
        if name not in self._arrays:
            raise UserError(f"{self.where} lacks the weight {name}: another layout or architecture")
        array = self._arrays[name]
        fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise UserError(f"{self.where}: {name} has the shape {list(array.shape)}, where [{wanted}] belongs")
        if not np.isfinite(array).all():
            raise UserError(f"{self.where}: {name} holds values that are not finite")
        self._left.discard(name)
        return np.asarray(array, np.float32)

    def ending(self, ending: str) -> list[str]:
        """What stands before this ending of a name, for each name that has it, sorted."""
        return [name.removesuffix(ending) for name in self.names() if name.endswith(ending)]

    def left(self) -> list[str]:
        """The names that nobody took, without the ignored ones, sorted."""
        return sorted(self._left)

    def finish(self) -> None:
        """Checks that every weight was taken.

        Raises:
          UserError: some were not, so this is another architecture.
        """
        if self._left:
            first = ", ".join(sorted(self._left)[:3])
            raise UserError(
                f"{self.where}: {len(self._left)} of its weights have no place in this architecture ({first})"
            )


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError, numpy
    except ImportError as error:
        raise UserError(f"{file} needs the package safetensors: install {extra('interop')}") from error
    try:
        arrays = numpy.load_file(file)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    return {
        name: array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)
        for name, array in arrays.items()
    }


def _unpickle(file: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a file of PyTorch's, which is not installed: install {extra('torch')}, or save the weights as "
            "safetensors"
        ) from error
    if _is_torchscript(file):
        raise UserError(
            f"{file} is a TorchScript archive, which holds code: load it with torch.jit.load, and save its state_dict()"
        )
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors, or is no file of PyTorch's, and is not unpickled; where you trust "
            "it, save its tensors alone: torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pt')"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read by PyTorch ({str(error).splitlines()[0]})") from error


def _is_torchscript(file: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(pathlib.PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())
