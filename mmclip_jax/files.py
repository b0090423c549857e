"""Files that are there whole or not at all, however a process ends; on disk, or in a bucket of Cloud Storage (gs://)."""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from mmclip_jax import processes
from mmclip_jax.errors import UserError, extra

_SCHEME = "gs://"
_MOVE_SECONDS = 300.0
_TENSORSTORE_PROBLEM = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|NOT_FOUND|DEADLINE_EXCEEDED): ")


# Orbax and TFDS look for files with patterns into which they put the path as it is (etils.epath hands it to glob): a
# checkpoint below "a[1]" could be written and never read, and "a*b" finds the data of "a-b". Bytes that are no UTF-8
# (Python's surrogates) cannot be written into the files that name them.
_PATTERN = re.compile(r"[\[\]*?\\\x00-\x1f\x7f\ud800-\udfff]")


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuses a place whose name the libraries below would take for a pattern, wherever in the whole path it stands.

    Raises:
      UserError: naming the character.
    """
    text = os.fspath(path)
    whole = text if "://" in text else os.path.abspath(os.path.expanduser(text))
    if found := _PATTERN.search(whole):
        raise UserError(
            f"{whole!r} has {found[0]!r} in its name, which libraries that read checkpoints and data sets take for a "
            "pattern, or cannot show: rename the folder, or give another one (without [ ] * ? \\, control characters "
            "and bytes that are no UTF-8)"
        )


def locate(path: str | os.PathLike[str]) -> epath.Path:
    """The path with "~" expanded, or the address gs://BUCKET/... in Cloud Storage.

    Raises:
      UserError: an address elsewhere, or one in Cloud Storage without the extra that reads it, or without permission;
        a name that `check_name` refuses.
    """
    text = os.fspath(path)
    check_name(text)
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
            f"{address}: addresses in Cloud Storage need {extra('gcs')}; or mount the bucket "
            " with gcsfuse and give the directory"
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


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str, keys: Sequence[str] = (), kind: type = dict) -> Any:
    """The content of a JSON file, of this kind, an object with these keys at least.

    remedy: what to do about a damaged one, as the end of a sentence.

    Raises:
      UserError: it cannot be read, is cut off, is no JSON, or holds something else.
    """
    place = epath.Path(path)
    try:
        content: Any = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place} is damaged ({' '.join(str(error).split())[:100]}): {remedy}") from error
    if not issubclass(type(content), kind):
        raise UserError(f"{place} is damaged (a {type(content).__name__}, and no {kind.__name__}): {remedy}")
    if missing := [key for key in keys if key not in content]:
        raise UserError(f"{place} is damaged (it has no {missing[0]!r}): {remedy}")
    return content


_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<owner>[0-9a-f]{8}-\d+-\d+)\.[0-9a-f]{8}\.unfinished")


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    """A name beside a path, for what will be moved there; it says which process makes it."""
    return path.with_name(f".{path.name}.{processes.this_process().word}.{uuid.uuid4().hex[:8]}.unfinished")


def remove_leftovers(folder: str | os.PathLike[str], name: str = "") -> None:
    """Removes what killed processes of this machine left unfinished in a folder.

    name: only what was to become this file or folder. What others are still making stays, as does what was made on
    another machine, whose processes cannot be seen.
    """
    try:
        entries = list(pathlib.Path(folder).iterdir())
    except OSError:
        return
    for entry in entries:
        found = _UNFINISHED.fullmatch(entry.name)
        owner = processes.parse_word(found["owner"]) if found else None
        if found is None or owner is None or not owner.is_gone or (name and found["name"] != name):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file beside its place and moves it there; its folder is made if missing. A bucket does so by itself.

    Text is written as UTF-8.
    """
    place = locate(path)
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(place):
        place.write_bytes(data)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(pathlib.Path(place))
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, place)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str], last: str) -> Iterator[pathlib.Path]:
    """A new, empty folder to write into; what was written is moved into `path` when the block ends without an error.

    Args:
      path: the folder; files of other names that lie there stay.
      last: the file that says that all others are there: its old version goes first, its new one comes last. A reader
        that finds it finds files of one and the same run. Of two processes that write into one folder, both do so
        whole, and the files of the later one stay.
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
    remove_leftovers(path.parent, path.name)
    unfinished = _unfinished(path)
    unfinished.mkdir()
    try:
        yield unfinished
        from mmclip_jax import locks  # which needs this module

        with locks.held(path, "moving results", wait=_MOVE_SECONDS):  # so that files of two runs are never mixed
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
