"""The demo: a small model on the chest phantom, minutes on two CPU cores."""

from ml_collections import ConfigDict

from mmclip_jax.config import default_config, transformer
from mmclip_jax.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" for the demo, "runlocal" for a few steps of a tiny model (tests)."""
    if arg not in ("", "runlocal"):
        raise UserError(f"configs/demo.py takes the argument 'runlocal' or none, not {arg!r}")
    config = default_config()
    config.model.update(
        {
            "image_size": 64,
            "patch_size": 8,
            "embed_dim": 128,
            "pool": "max",
            "text_pool": "max",
            "stem": "conv",
            "dtype": "float32",
            "remat": False,
            "unroll": True,
            "image": transformer(128, 2, 4),
            "text": transformer(96, 2, 4, length=48, vocab_size=0),
            "image_decoder": transformer(64, 1, 4),
            "text_decoder": transformer(96, 1, 4),
        }
    )
    config.objective.entmlm.slots = 24
    # At 1 its gradient on the text encoder is nine times the contrastive one (docs/results.md).
    config.objective.entmlm.weight = 0.1
    config.objective.local.weight = 0.5  # the response map finds the lesion with it (docs/results.md)
    config.data.update({"batch_paired": 32, "batch_unpaired": 32, "bridge": 0.4, "max_negated": 1})
    config.data.update({"workers": 0, "threads": 1})
    config.data.train = ("runs/demo/data/phantom",)
    config.optimizer.peak_lr = 2e-3
    config.train.update({"steps": 1000, "log_every": 20, "evaluate_every": 250, "checkpoint_every": 250})
    config.train.gradient_norms_every = 0  # its compilation takes half a minute
    config.train.compiler_options = "xla_cpu_enable_fast_math=true"  # a quarter off the step; NaN is still honoured
    if arg == "runlocal":
        config.model.update(
            {
                "image": transformer(32, 2, 2),
                "text": transformer(32, 2, 2, length=48, vocab_size=0),
                "image_decoder": transformer(32, 1, 2),
                "text_decoder": transformer(32, 1, 2),
                "embed_dim": 32,
                "unroll": False,
            }
        )
        config.data.update({"batch_paired": 16, "batch_unpaired": 8})
        config.train.update({"steps": 20, "log_every": 5, "evaluate_every": 10, "checkpoint_every": 10})
        config.train.pictures = 0  # to draw them is compiled, too
    return config
