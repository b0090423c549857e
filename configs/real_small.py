"""Small real collections of chest X-rays on one CPU or GPU: notes and readings paired, labelled images through prompts.

The argument is the folder of the data sets that `mmclip data build table` made (docs/data.md, "Small real
collections").
"""

import pathlib

from ml_collections import ConfigDict

from mmclip_jax.config import default_config, transformer

DATA_SETS = ("covid", "shenzhen", "nih", "kermany")


def get_config(arg: str = "runs/real/data") -> ConfigDict:
    """arg: the folder that holds the data sets (`DATA_SETS`); "runlocal" shrinks model and run (tests)."""
    config = default_config()
    runlocal = arg == "runlocal"
    folder = pathlib.Path("runs/real/data" if runlocal or not arg else arg)
    config.data.train = tuple(str(folder / name) for name in DATA_SETS)
    config.model.update(
        {
            "image_size": 128,
            "patch_size": 16,
            "embed_dim": 128,
            "pool": "max",
            "text_pool": "max",
            "stem": "conv",
            "dtype": "float32",
            "remat": False,
            "unroll": True,
            "image": transformer(128, 2, 4),
            "text": transformer(96, 2, 4, length=64, vocab_size=0),
            "image_decoder": transformer(64, 1, 4),
            "text_decoder": transformer(96, 1, 4),
        }
    )
    config.objective.entmlm.slots = 24
    config.objective.contrastive.targets = "kinds"  # a handful of labels: most prompts agree in part
    config.objective.entmlm.weight = 0.1
    config.objective.local.weight = 0.5
    config.data.update({"batch_paired": 16, "batch_unpaired": 48, "workers": 0, "threads": 1})
    config.optimizer.update({"peak_lr": 1e-3})
    config.train.update({"steps": 1000, "log_every": 25, "evaluate_every": 250, "checkpoint_every": 250})
    config.train.gradient_norms_every = 0  # its compilation takes half a minute
    if runlocal:
        config.model.update(
            {
                "image": transformer(32, 2, 2),
                "text": transformer(32, 2, 2, length=48, vocab_size=0),
                "image_decoder": transformer(32, 1, 2),
                "text_decoder": transformer(32, 1, 2),
                "unroll": False,
            }
        )
        config.data.update({"batch_paired": 8, "batch_unpaired": 16})
        config.train.update({"steps": 10, "log_every": 1, "evaluate_every": 10, "checkpoint_every": 5})
        config.train.pictures = 0  # to draw them is compiled, too
    return config
