"""Every check of a run's settings: the range of each one, and what several must be to each other."""

from ml_collections import ConfigDict

from mmclip_jax import ranges
from mmclip_jax.config import flat
from mmclip_jax.data import batch
from mmclip_jax.errors import UserError
from mmclip_jax.objectives import registry
from mmclip_jax.ranges import BOOLEAN, SEED, SHARE, TEXT, Choice, Number, Range, Several, count, positive
from mmclip_jax.text.terms import LABELS

_TRANSFORMER: dict[str, Range] = {name: count(1) for name in ("width", "depth", "heads", "mlp_dim")}
_VARIANT: dict[str, Range] = {
    "activation": Choice(("gelu", "gelu_tanh", "quick_gelu")),
    "epsilon": positive(),
    "key_bias": BOOLEAN,
}
_HEAD: dict[str, Range] = {
    "hidden": count(),
    "activation": Choice(("gelu", "gelu_tanh", "quick_gelu", "tanh")),
    "hidden_bias": BOOLEAN,
    "bias": BOOLEAN,
}

# Every setting outside `objective` has its entry; what two settings must be to each other is in `check_values`.
_RANGES: dict[str, Range] = {
    "seed": SEED,
    "model.image_size": count(1),
    "model.patch_size": count(1),
    "model.embed_dim": count(1),
    "model.pool": Choice(("mean", "max", "cls", "map")),
    "model.text_pool": Choice(("mean", "max", "first", "last")),
    "model.stem": Choice(("patch", "conv")),
    "model.dtype": Choice(("float32", "bfloat16", "float16")),
    "model.attention": Choice(("auto", "plain", "xla", "cudnn")),
    "model.remat": BOOLEAN,
    "model.unroll": BOOLEAN,
    **{
        f"model.{tower}.{name}": allowed
        for tower in ("image", "text", "image_decoder", "text_decoder")
        for name, allowed in _TRANSFORMER.items()
    },
    "model.image.encoder": Choice(("vit", "convnext")),
    "model.text.encoder": Choice(("transformer", "bert", "clip")),
    **{f"model.{part}.{name}": allowed for part in ("image", "text") for name, allowed in _VARIANT.items()},
    "model.image.norm": Choice(("pre", "post")),
    "model.image.first_norm": BOOLEAN,
    "model.image.final_norm": BOOLEAN,
    "model.image.layer_scale": BOOLEAN,
    "model.image.class_token": BOOLEAN,
    "model.image.registers": count(),
    "model.image.depths": Several(count(1)),
    **{f"model.{part}_head.{name}": allowed for part in ("image", "text") for name, allowed in _HEAD.items()},
    "model.text.length": count(1),
    "model.text.vocab_size": count(),
    "init.image": TEXT,
    "init.text": TEXT,
    "init.model": TEXT,
    "init.mean": Several(Number()),
    "init.std": Several(positive()),
    "init.trained_on": Several(TEXT),
    "data.train": Several(TEXT),
    "data.evaluate": Several(TEXT),
    "data.allow_leakage": TEXT,
    "data.same_ids": Several(TEXT),
    "data.other_ids": Several(TEXT),
    "data.paired_weights": Several(Number(0)),
    "data.unpaired_weights": Several(Number(0)),
    "data.batch_paired": count(),
    "data.batch_unpaired": count(),
    "data.bridge": SHARE,
    "data.max_negated": count(),
    "data.deny_alone": SHARE,
    "data.share_no_finding": BOOLEAN,
    "data.shuffled_labels": BOOLEAN,
    "data.sentence_subset": SHARE,
    "data.entity_labels": Several(Choice(LABELS), distinct=True),
    "data.augment.rotate": Number(0, 180),  # degrees
    "data.augment.shift": Number(0, 1, below=True),  # of the side
    "data.augment.scale": Number(0, 1, below=True),
    "data.augment.brightness": SHARE,
    "data.augment.contrast": SHARE,
    "data.augment_on": Choice(("auto", "device", "host")),
    "data.keep_decoded": count(),
    "data.workers": count(0, 1024),
    "data.threads": count(1, 1024),
    "data.max_damaged": count(),
    "data.tokenizer": TEXT,
    "optimizer.peak_lr": positive(),
    "optimizer.warmup_share": SHARE,
    "optimizer.weight_decay": Number(0),
    "optimizer.b1": Number(0, 1, below=True),
    "optimizer.b2": Number(0, 1, below=True),
    "optimizer.eps": positive(),
    "optimizer.clip": positive(),
    "optimizer.ema": Number(0, 1, below=True),
    "optimizer.accumulate": count(1),
    "train.steps": count(1, 2**31 - 2),
    "train.log_every": count(1),
    "train.evaluate_every": count(),
    "train.pictures": count(0, 64),
    "train.checkpoint_every": count(),
    "train.gradient_norms_every": count(),
    "train.keep": count(1),
    "train.max_skipped": count(),
    "train.spike": Number(0),
    "train.profile": count(),
    "train.platform_flags": BOOLEAN,
    "train.compiler_options": TEXT,
    "mesh.fsdp": count(1),
    "mesh.shard_optimizer": BOOLEAN,
}


def setting_ranges() -> dict[str, Range]:
    """The range of every setting by its dotted name; those of objectives stand with the objectives."""
    return _RANGES | registry.ranges()


def check_ranges(config: ConfigDict) -> None:
    """Refuses settings out of their range.

    Raises:
      UserError: naming the setting and its range.
    """
    ranges.check(flat(config), setting_ranges())
    compiler_options(config.train.compiler_options)
    init = config.init
    if init.model and (init.image or init.text):
        raise UserError("init.model is a whole model: leave init.image and init.text out, or give them in its place")
    if len(init.mean) not in (0, 1, 3) or len(init.mean) != len(init.std):
        raise UserError("init.mean and init.std are one number each, or three, or both left out")
    if 0.0 < config.train.spike < 1.0:
        raise UserError(f"train.spike={config.train.spike} is not at least 1, nor 0 for none: every loss would be one")


def compiler_options(text: str) -> dict[str, str | bool]:
    """XLA options {"name": value} of `train.compiler_options`, "name=value name=value"; true and false are booleans.

    Raises:
      UserError: a word that is not name=value.
    """
    options: dict[str, str | bool] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"train.compiler_options: {word!r} is not name=value")
        options[name] = {"true": True, "false": False}.get(value, value)
    return options


def check_config(config: ConfigDict, devices: int) -> None:
    """Refuses settings that the step cannot honour, on so many devices.

    Raises:
      UserError: naming the setting and the remedy.
    """
    check_values(config)
    chunk = devices * config.optimizer.accumulate
    for name in ("batch_paired", "batch_unpaired"):
        if config.data[name] % chunk:
            raise UserError(
                f"data.{name}={config.data[name]} is no multiple of {chunk} "
                f"({devices} devices x optimizer.accumulate={config.optimizer.accumulate})"
            )
    if not config.data.batch_paired + config.data.batch_unpaired:
        raise UserError("data.batch_paired and data.batch_unpaired are both 0")


def check_values(config: ConfigDict) -> None:
    """Refuses settings that no number of devices can honour.

    Raises:
      UserError: naming the setting and the remedy.
    """
    check_ranges(config)
    patch, image = config.model.patch_size, config.model.image_size
    if patch > image:
        raise UserError(f"model.patch_size={patch} is not in 1 to {image}")
    registry.check(config)
    for objective in registry.active(config):
        if missing := sorted(set(objective.fields) - batch.fields(config).keys()):
            raise UserError(f"objective.{objective.name} needs the fields {', '.join(missing)}, which no batch has")
