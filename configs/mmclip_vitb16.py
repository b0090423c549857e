"""The paper-scale recipe: ViT-B/16 at 224 px, MIMIC-CXR paired, PadChest unpaired. Every number is a default of ours.

docs/method.md, "The paper-scale recipe", says for each setting which published work it follows. The data sets are built
beforehand; give their directories with --config.data.train.
"""

from ml_collections import ConfigDict

from mmclip_jax.config import default_config, transformer
from mmclip_jax.errors import UserError

_PAIRED_STUDIES = 210_000  # frontal MIMIC-CXR studies with a report, in round numbers
_EPOCHS = 30


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" for a pod or a GPU cluster, "runlocal" for the same path at a size that a laptop computes (tests)."""
    if arg not in ("", "runlocal"):
        raise UserError(f"configs/mmclip_vitb16.py takes the argument 'runlocal' or none, not {arg!r}")
    config = default_config()
    config.data.train = ("data/mimic_cxr", "data/padchest")
    config.train.steps = _EPOCHS * _PAIRED_STUDIES // config.data.batch_paired
    if arg == "runlocal":
        config.model.update(
            {
                "image": transformer(64, 2, 2),
                "text": transformer(64, 2, 2, length=128, vocab_size=0),
                "image_decoder": transformer(32, 1, 2),
                "text_decoder": transformer(32, 1, 2),
            }
        )
        config.data.update({"batch_paired": 16, "batch_unpaired": 8, "workers": 0, "threads": 2})
        config.train.update({"steps": 10, "log_every": 1, "evaluate_every": 10, "checkpoint_every": 5})
    return config
