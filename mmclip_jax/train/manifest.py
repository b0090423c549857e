"""What a run is made of, for its manifest: data, exposure, seed, devices, versions, commit, and its audit."""

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

import mmclip_jax
from mmclip_jax.data.leakage import audit
from mmclip_jax.data.records import dataset_dir, dataset_facts
from mmclip_jax.data.schema import PARTS

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")


def audit_validation(config: ConfigDict, learnt: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """What `data.audit.check` says of the validation data, which quick evaluations score while training.

    learnt: the data sets that the model learns from, those of the run that it starts from among them;
    None for `data.train`.

    Raises:
      LeakageError: validation images are known from training, and data.allow_leakage gives no reason.
    """
    evaluate = tuple(config.data.evaluate) or tuple(config.data.train)
    told = audit.IdStatements.read(config.data.same_ids, config.data.other_ids)
    return audit.check(learnt or tuple(config.data.train), evaluate, "validation", config.data.allow_leakage, told)


def make_manifest(config: ConfigDict) -> dict[str, Any]:
    """What the run is made of: versions, commit, devices, data fingerprints, and what the model is exposed to.

    exposure: {"sources": {source: {"paired": n, "unpaired": n}}, "label_kinds": {source: kinds that prompts may state
    from labels}, "report_kinds": {source: kinds that its reports affirm}}, of the training split.
    """
    exposure: dict[str, dict[str, Any]] = {"sources": {}, "label_kinds": {}, "report_kinds": {}}
    data = {}
    for directory in config.data.train:
        facts = dataset_facts(directory)
        data[str(dataset_dir(directory))] = {key: facts[key] for key in ("name", "version", "examples", "fingerprint")}
        for part in PARTS:
            if not config.data[f"batch_{part}"]:
                continue
            for source, said in facts["splits"].get(f"train_{part}", {}).get("sources", {}).items():
                counts = exposure["sources"].setdefault(source, {"paired": 0, "unpaired": 0})
                counts[part] += said["examples"]
                # Labels of paired rows never reach the model: their text comes from the report alone.
                seen = "label_kinds" if part == "unpaired" else "report_kinds"
                exposure[seen][source] = sorted({*exposure[seen].get(source, ()), *said[seen]})
    return {
        "exposure": exposure,
        "data": data,
        "seed": config.seed,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "versions": {"mmclip_jax": mmclip_jax.__version__} | {name: metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source tree this package lies in, "" for an installed copy."""
    folder = epath.Path(mmclip_jax.__file__).parent
    if not (folder.parent / ".git").exists():
        return ""
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
