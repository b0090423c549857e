"""Files that are there whole or not at all, however a process ends; on disk, or in a bucket of Cloud Storage (gs://)."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from mmclip_jax.errors import UserError

_SCHEME = "gs://"
_TENSORSTORE_PROBLEM = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|NOT_FOUND|DEADLINE_EXCEEDED): ")


def locate(path: str | os.PathLike[str]) -> epath.Path:
    """The path with "~" expanded, or the address gs://BUCKET/... in Cloud Storage.

    Raises:
      UserError: an address elsewhere, or one in Cloud Storage without the extra that reads it, or without permission.
    """
    text = os.fspath(path)
    if text.startswith(_SCHEME):
        _open_cloud(text)
    elif "://" in text:
        raise UserError(f"{text}: of all addresses only gs://BUCKET/... can be read; mount the place, or copy it")
    return epath.Path(text).expanduser()


def in_bucket(path: epath.Path) -> bool:
    """Whether the path lies in Cloud Storage."""
    return os.fspath(path).startswith(_SCHEME)


def _open_cloud(address: str) -> None:
    """Makes epath read addresses by gcsfs; UserError where that is not installed."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f'{address}: addresses in Cloud Storage need the extra [gcs]: pip install "mmclip-jax[gcs]"; or mount the '
            "bucket with gcsfuse and give the directory"
        )
    import fsspec.config

    os.environ.setdefault("EPATH_USE_TF", "false")  # epath would take TensorFlow, where there is one
    # What TensorStore and other processes write must be seen at once.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    _check_access(address)


@functools.cache
def _check_access(address: str) -> None:
    """UserError where what lies there cannot be listed. gcsfs would call it missing, or raise what it likes."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    bucket, _, prefix = address.removeprefix(_SCHEME).partition("/")
    try:
        next(iter(storage.Client().list_blobs(bucket, prefix=prefix, max_results=1)), None)
    except (GoogleAPIError, GoogleAuthError, OSError, ValueError) as error:
        raise UserError(
            f"{address} cannot be listed ({' '.join(str(error).split())}): check the bucket's name, and that this "
            "machine's account has access (gcloud auth application-default login)"
        ) from error


def bucket_problem(error: Exception) -> str:
    """What Cloud Storage, or the way there, said in an error of one of the libraries that read it; "" in others."""
    source, text = type(error).__module__.partition(".")[0], " ".join(str(error).split())
    foreign = source in ("gcsfs", "google", "requests", "aiohttp")
    foreign |= isinstance(error, OSError) and error.errno is None
    foreign |= isinstance(error, ValueError) and _TENSORSTORE_PROBLEM.search(text) is not None
    return (text or type(error).__name__) if foreign else ""


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file beside its place and moves it there; its folder is made if missing. A bucket does so by itself."""
    place = locate(path)
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(place):
        place.write_bytes(data)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.unfinished")
    unfinished.write_bytes(data)
    os.replace(unfinished, place)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str], last: str) -> Iterator[pathlib.Path]:
    """A new, empty folder to write into; what was written is moved into `path` when the block ends without an error.

    Args:
      path: the folder; files of other names that lie there stay.
      last: the file that says that all others are there: its old version goes first, its new one comes last. A reader
        that finds it finds files of one and the same run.
    """
    place = locate(path)
    if in_bucket(place):
        twin = LocalTwin(place)
        yield twin.folder
        (place / last).unlink(missing_ok=True)
        twin.copy(last)
        return
    path = pathlib.Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.unfinished"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        yield unfinished
        path.mkdir(exist_ok=True)
        (path / last).unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == last):
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class LocalTwin:
    """A local folder in place of one in a bucket, for what only writes to disk, or goes on with a file that is there.

    A local folder is its own twin, and nothing is copied.

    Attributes:
      path: what it stands for.
      folder: where to write.
      is_copied: whether `path` lies in a bucket.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = locate(path)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}
        self.is_copied = in_bucket(self.path)
        self._temporary = tempfile.TemporaryDirectory(prefix="mmclip-") if self.is_copied else None
        self.folder = pathlib.Path(self._temporary.name if self._temporary else self.path)

    def fetch(self, name: str) -> None:
        """Copies a file from the bucket, if it is there."""
        if self.is_copied and (self.path / name).exists():
            (self.folder / name).write_bytes((self.path / name).read_bytes())

    def copy(self, last: str = "") -> None:
        """Copies to the bucket what is new or longer than at the last copy; the file `last` after all others."""
        if not self.is_copied:
            return
        for file in sorted(self.folder.rglob("*"), key=lambda file: (file.name == last, file)):
            if not file.is_file():
                continue
            now = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._copied.get(file) != now:
                (self.path / file.relative_to(self.folder).as_posix()).write_bytes(file.read_bytes())
                self._copied[file] = now
