"""The studies by name, and what is measured of their runs."""

from collections.abc import Mapping
from typing import Any

Setting = Any  # a value, or a function of the base config that gives one
Study = Mapping[str, Mapping[str, Setting]]

_STRATEGY, _HINT = "objective.attmim.strategy", "objective.attmim.hint"
_ATTMIM, _ENTMLM = "objective.attmim.weight", "objective.entmlm.weight"
_LOCAL = "objective.local.weight"
_PAIRED, _UNPAIRED = "data.batch_paired", "data.batch_unpaired"

# The first row of a study is what the others are compared with.
STUDIES: dict[str, dict[str, dict[str, Setting]]] = {
    # Does masked modelling help, and which half of it? At the weights of the config.
    "objectives": {
        "contrastive only": {_ATTMIM: 0.0, _ENTMLM: 0.0, _LOCAL: 0.0},
        "+ AttMIM": {_ENTMLM: 0.0, _LOCAL: 0.0},
        "+ EntMLM": {_ATTMIM: 0.0, _LOCAL: 0.0},
        "+ both": {_LOCAL: 0.0},
        "+ both, local": {},
    },
    # Is it the attention that matters in masking, or masking?
    "patches": {
        "attention": {_STRATEGY: "attention", _HINT: 0.0},
        "random": {_STRATEGY: "random", _HINT: 0.0},
        "inverse": {_STRATEGY: "inverse", _HINT: 0.0},
    },
    # The paper's claims. First the method as the config has it, then what it is measured against.
    "claim_attmim": {
        "attention": {},
        "attention by cross-attention": {"objective.attmim.response": "cross_attention"},
        "random": {_STRATEGY: "random"},
        "inverse": {_STRATEGY: "inverse"},
        "none": {_ATTMIM: 0.0},
    },
    # The same with pixels masked in place of features, which a stem of convolutions would see through.
    "claim_attmim_input": {
        "attention at the input": {"objective.attmim.mask_at": "input", "model.stem": "patch"},
        "none": {_ATTMIM: 0.0, "model.stem": "patch"},
    },
    "claim_entmlm": {
        "entities": {},
        "entities and modifiers": {"data.entity_labels": ("observation", "device", "anatomy", "modifier")},
        "random tokens": {"objective.entmlm.strategy": "random"},
        "none": {_ENTMLM: 0.0},
    },
    "claim_unpaired": {
        "through prompts": {},
        "labels of other images": {"data.shuffled_labels": True},
        "none": {_UNPAIRED: 0},
        "no bridges": {"data.bridge": 0.0},
        "bridges 0.25": {"data.bridge": 0.25},
    },
    "claim_total": {
        "all three": {},
        "all three at weight 0.1": {_ATTMIM: 0.1, _ENTMLM: 0.1},
        "all three at weight 1": {_ATTMIM: 1.0, _ENTMLM: 1.0},
        "contrastive and local": {_ATTMIM: 0.0, _ENTMLM: 0.0},
        "contrastive only": {_ATTMIM: 0.0, _ENTMLM: 0.0, _LOCAL: 0.0},
    },
    # Side and severity: is it the loss, the pools, or the texts?
    "hard_negatives": {
        "none": {"objective.hard_negatives.weight": 0.0},
        "weight 0.25": {"objective.hard_negatives.weight": 0.25},
        "weight 1": {"objective.hard_negatives.weight": 1.0},
        "side and severity, weight 1": {
            "objective.hard_negatives.weight": 1.0,
            "objective.hard_negatives.flips": ("side", "severity"),
        },
    },
    "hint": {
        "no hint": {_HINT: 0.0},
        "hint 0.1": {_HINT: 0.1},
        "hint 0.3": {_HINT: 0.3},
    },
    "tokens": {
        "entities": {"objective.entmlm.strategy": "entity"},
        "random tokens": {"objective.entmlm.strategy": "random"},
    },
    # Do unpaired images help? Once at the same number of rows a step, once at the same number of reports a step.
    "unpaired": {
        "paired and unpaired": {},
        "paired only, as many rows": {_PAIRED: lambda c: c.data.batch_paired + c.data.batch_unpaired, _UNPAIRED: 0},
        "paired only, as many reports": {_UNPAIRED: 0},
    },
    "response": {
        "similarity": {"objective.attmim.response": "similarity"},
        "cross-attention": {"objective.attmim.response": "cross_attention"},
    },
    "local": {
        "no local loss": {_LOCAL: 0.0},
        "local 0.5": {_LOCAL: 0.5},
        "local 1": {_LOCAL: 1.0},
    },
    "pool": {
        "means": {"model.pool": "mean", "model.text_pool": "mean"},
        "maximum of patches": {"model.pool": "max", "model.text_pool": "mean"},
        "maxima of both": {"model.pool": "max", "model.text_pool": "max"},
    },
    "bridges": {
        "no bridges": {"data.bridge": 0.0},
        "bridges 0.25": {"data.bridge": 0.25},
        "bridges 0.5": {"data.bridge": 0.5},
    },
    "targets": {
        "by text": {"objective.contrastive.targets": "text"},
        "by kinds": {"objective.contrastive.targets": "kinds"},
    },
    "loss": {
        "softmax": {"objective.contrastive.loss": "softmax"},
        "sigmoid": {"objective.contrastive.loss": "sigmoid"},
    },
    # Both with the linear stem: convolutions would let an encoder of visible patches see hidden neighbours.
    "mask_at": {
        "features": {"objective.attmim.mask_at": "features", "model.stem": "patch"},
        "input": {"objective.attmim.mask_at": "input", "model.stem": "patch"},
    },
    "stem": {
        "linear patches": {"model.stem": "patch"},
        "convolutions": {"model.stem": "conv"},
    },
    "sources": {
        "across sources": {"objective.contrastive.across_sources": True},
        "within sources": {"objective.contrastive.across_sources": False},
    },
}
ALL = "all"

# What is measured: key, heading, whether more is better (None: neither).
MEASURES: tuple[tuple[str, str, bool | None], ...] = (
    ("macro_auroc", "macro AUROC", True),
    ("report_only_auroc", "AUROC, report-only", True),
    ("pointing_similarity", "pointing, similarity", True),
    ("pointing_cross_attention", "pointing, cross-attention", True),
    ("pointing_random", "pointing, chance", None),
    ("iou_similarity", "IoU, similarity", True),
    ("entmlm_own", "EntMLM, own image", True),
    ("entmlm_swapped", "EntMLM, other image", None),
    ("entmlm_drop", "EntMLM, drop", True),
    ("contrastive_loss", "contrastive loss, paired", False),
    ("image_to_text", "recall@1, paired", True),
    ("polarity", "counterfactual, polarity", True),
    ("side", "counterfactual, side", True),
    ("severity", "counterfactual, severity", True),
    ("source_probe_auroc", "source probe AUROC", False),
)
