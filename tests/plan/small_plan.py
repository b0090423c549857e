"""The settings that plans of the tests are of."""

from typing import Any

import tiny
from ml_collections import ConfigDict

from mmclip_jax.plan import topologies

QUICK = "xla_backend_optimization_level=0 xla_llvm_disable_expensive_passes=true"
CONTRASTIVE = {"objective__attmim__weight": 0.0, "objective__entmlm__weight": 0.0}
V5E = topologies.parse_topology("v5e:2x4")


def config(**changes: Any) -> ConfigDict:
    """Depths of 3 and 2: layers are loops, and each turns another number of times."""
    batch = {"data__batch_paired": 96, "data__batch_unpaired": 32}
    return tiny.config(**(batch | {"model__image__depth": 3, "train__compiler_options": QUICK} | changes))
