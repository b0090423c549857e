"""The published data sets that can be built, by name. Their modules are imported when asked for."""

import importlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmclip_jax.errors import UserError

if TYPE_CHECKING:
    from mmclip_jax.data.builders.collection import Collection
    from mmclip_jax.data.builders.summary import CollectionSummary
    from mmclip_jax.data.records import Make

COLLECTIONS: Mapping[str, str] = {
    "mimic_cxr": "read MIMIC-CXR-JPG with the reports of MIMIC-CXR (paired)",
    "padchest": "read PadChest (labels)",
    "openi": "read the Indiana University collection of Open-I (paired)",
    "chestxray14": "read the NIH's ChestX-ray14 (labels, boxes)",
    "chexpert": "read CheXpert (labels)",
    "rsna": "read the RSNA Pneumonia Detection Challenge (labels, boxes)",
    "siim": "read the SIIM-ACR Pneumothorax Segmentation challenge (labels, masks)",
    "covidx": "read COVIDx CXR (labels)",
    "vindr": "read VinDr-CXR (labels, boxes)",
}
"""Name -> what `mmclip data build NAME` does; the module of that name has the class as `BUILDER`."""


def load(name: str) -> "type[Collection]":
    """The builder class of a data set.

    Raises:
      UserError: there is no such data set.
    """
    if name not in COLLECTIONS:
        raise UserError(f"there is no data set {name!r}; those that can be built are {', '.join(COLLECTIONS)}")
    module = importlib.import_module(f"mmclip_jax.data.builders.{name}")
    found: type[Collection] = module.BUILDER
    return found


def build(
    name: str,
    options: Any,
    data_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool = False,
    make: "Make | None" = None,
) -> "CollectionSummary":
    """Builds a published data set under `data_dir`.

    Args:
      name: one of `COLLECTIONS`.
      options: of the builder's `Options` class.
      data_dir: where the directory NAME/VERSION goes.
      overwrite: whether to replace what is there.
      progress: whether to show bars.
      make: as `records.build` takes it; default: in processes of this machine.

    Raises:
      UserError: a file is missing or cannot be understood, or too many rows cannot be used; the message names the
        file, the row and the remedy.
    """
    from mmclip_jax.data import records
    from mmclip_jax.data.builders.summary import CollectionSummary

    start = time.monotonic()
    path = records.build(load(name)(options, data_dir), overwrite=overwrite, progress=progress, make=make)
    return CollectionSummary(path, records.dataset_facts(path), time.monotonic() - start)
