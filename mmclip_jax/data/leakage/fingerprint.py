"""What a run learns from, in a few digests: contents and order of its data sets, and its tokenizer.

Cheap at every start: the digest of contents was made at build time (`facts.json`). That of the record files covers
their names, numbers of records and sizes, which decide the order. It also covers the ends of some of them, to detect
files that were replaced while facts.json stayed.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from mmclip_jax.data import records
from mmclip_jax.data.schema import PARTS, SPLITS
from mmclip_jax.errors import UserError

CONTENTS, TOKENIZER = "contents", "tokenizer"
_PROBED = 4  # files of a split whose ends are read: few, since each read from a bucket takes its time
_END = 65_536  # bytes


def of_data_set(directory: str | os.PathLike[str]) -> dict[str, str]:
    """{"name", "fingerprint" (of all that the records say), "records" (of their files)} of a built data set."""
    place = records.dataset_dir(directory)
    digest = hashlib.sha256()
    for split, part in itertools.product(SPLITS, PARTS):
        there = records.shards(place, f"{split}_{part}")
        listed = [(file.name, length, file.stat().length) for file, length in there]
        digest.update(json.dumps([split, part, listed]).encode())
        for file, _ in there[:: -(-len(there) // _PROBED) or 1]:
            digest.update(_ends(file))
    facts = records.dataset_facts(place)
    return {"name": place.parent.name, "fingerprint": str(facts["fingerprint"]), "records": digest.hexdigest()}


def _ends(file: epath.Path) -> bytes:
    with file.open("rb") as stream:
        first = stream.read(_END)
        stream.seek(max(file.stat().length - _END, 0))
        return bytes(first + stream.read())


def of_run(data: Iterable[str | os.PathLike[str]], tokenizer_model: bytes) -> dict[str, Any]:
    """What a manifest keeps of what a run learns from; data: in the order of its settings."""
    return {
        CONTENTS: [of_data_set(directory) for directory in data],
        TOKENIZER: hashlib.sha256(tokenizer_model).hexdigest(),
    }


def check_same(workdir: str | os.PathLike[str], saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a run on other data, or with another tokenizer.

    Args:
      workdir: of the run, for the message.
      saved: the manifest of its newest checkpoint; what an older version did not store is not compared.
      now: what `of_run` gives.

    Raises:
      UserError: naming what differs.
    """
    differences = []
    before, here = saved.get(CONTENTS), now[CONTENTS]
    if before is None:
        known = sorted(str(each["fingerprint"]) for each in saved.get("data", {}).values())
        if known and known != sorted({each["fingerprint"] for each in here}):
            differences.append("its data sets have other contents")
    elif len(before) != len(here):
        differences.append(f"it learnt from {len(before)} data sets, not {len(here)}")
    else:
        differences += [
            f"data set {number}, {new['name']}, {problem}"
            for number, (old, new) in enumerate(zip(before, here, strict=True), start=1)
            if (problem := _difference(old, new))
        ]
    if TOKENIZER in saved and saved[TOKENIZER] != now[TOKENIZER]:
        differences.append(
            f"its tokenizer is another (digest {now[TOKENIZER][:12]}, was {saved[TOKENIZER][:12]}): the same token "
            "numbers would stand for other words"
        )
    if differences:
        raise UserError(
            f"{workdir} holds a run on other data: {'; '.join(differences)}. Use the same data, or another --workdir "
            "for a new run"
        )


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if old["fingerprint"] != new["fingerprint"]:
        return f"has other contents (digest {new['fingerprint'][:12]}, was {old['fingerprint'][:12]})"
    if old["records"] != new["records"]:
        return "has the same contents in other files: records would come in another order"
    return ""
