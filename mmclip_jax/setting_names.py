"""Which setting is meant by a name that no setting has: other programs' names, wrong groups, mistyped names."""

import difflib
from collections.abc import Collection

# The last word of other programs' names: PyTorch, timm, open_clip, Lightning, Hugging Face, big_vision, flax examples.
_OTHER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("lr", "learning_rate", "base_lr", "max_lr", "peak_learning_rate", "init_lr", "blr"), ("optimizer.peak_lr",)
    ),
    **dict.fromkeys(
        ("warmup", "warmup_steps", "warmup_ratio", "warmup_epochs", "warmup_fraction", "num_warmup_steps"),
        ("optimizer.warmup_share",),
    ),
    **dict.fromkeys(("wd", "decay", "weight_decay_rate"), ("optimizer.weight_decay",)),
    **dict.fromkeys(("beta1", "beta_1", "adam_beta1", "momentum"), ("optimizer.b1",)),
    **dict.fromkeys(("beta2", "beta_2", "adam_beta2"), ("optimizer.b2",)),
    "betas": ("optimizer.b1", "optimizer.b2"),
    **dict.fromkeys(("adam_epsilon", "adam_eps"), ("optimizer.eps",)),
    **dict.fromkeys(
        ("grad_clip", "clip_grad", "clip_grad_norm", "max_grad_norm", "gradient_clip", "gradient_clip_val",
         "grad_clip_norm", "clip_norm"),
        ("optimizer.clip",),
    ),
    **dict.fromkeys(("ema_decay", "ema_rate", "moving_average"), ("optimizer.ema",)),
    **dict.fromkeys(
        ("accum_freq", "accum_steps", "accumulate_grad_batches", "gradient_accumulation_steps", "gradient_accumulation",
         "grad_accum", "grad_accum_steps", "update_freq"),
        ("optimizer.accumulate",),
    ),
    **dict.fromkeys(
        ("batch", "batch_size", "global_batch_size", "train_batch_size", "per_device_train_batch_size", "bs"),
        ("data.batch_paired", "data.batch_unpaired"),
    ),
    **dict.fromkeys(("num_workers", "n_workers", "dataloader_num_workers", "processes"), ("data.workers",)),
    **dict.fromkeys(("num_threads", "n_threads"), ("data.threads",)),
    **dict.fromkeys(("dataset", "datasets", "train_data", "data_dir", "train_dir"), ("data.train",)),
    **dict.fromkeys(("val_data", "eval_data", "validation", "val"), ("data.evaluate",)),
    **dict.fromkeys(("augmentation", "aug", "transforms"), ("data.augment.rotate", "data.augment.shift")),
    **dict.fromkeys(("rotation", "degrees"), ("data.augment.rotate",)),
    **dict.fromkeys(
        ("epochs", "num_epochs", "max_epochs", "num_train_epochs", "max_steps", "num_steps", "total_steps",
         "num_train_steps", "num_training_steps", "iterations", "max_iters"),
        ("train.steps",),
    ),
    **dict.fromkeys(
        ("log_interval", "log_steps", "logging_steps", "log_every_steps", "log_every_n_steps", "print_freq"),
        ("train.log_every",),
    ),
    **dict.fromkeys(
        ("eval_every", "eval_steps", "eval_interval", "eval_every_steps", "val_frequency", "val_check_interval"),
        ("train.evaluate_every",),
    ),
    **dict.fromkeys(
        ("save_every", "save_steps", "save_frequency", "checkpoint_steps", "checkpoint_interval", "ckpt_steps",
         "ckpt_every", "checkpoint_every_steps"),
        ("train.checkpoint_every",),
    ),
    **dict.fromkeys(("max_to_keep", "save_total_limit", "keep_checkpoints", "save_top_k"), ("train.keep",)),
    **dict.fromkeys(("random_seed", "rng_seed", "rng"), ("seed",)),
    **dict.fromkeys(
        ("img_size", "resolution", "image_resolution", "input_size", "crop_size", "resize"), ("model.image_size",)
    ),
    "patch": ("model.patch_size",),
    **dict.fromkeys(("hidden_size", "dim", "d_model", "hidden_dim"), ("model.image.width", "model.text.width")),
    **dict.fromkeys(
        ("layers", "num_layers", "n_layers", "num_hidden_layers"), ("model.image.depth", "model.text.depth")
    ),
    **dict.fromkeys(("num_heads", "n_heads", "num_attention_heads"), ("model.image.heads", "model.text.heads")),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "mlp_width"), ("model.image.mlp_dim", "model.text.mlp_dim")),
    **dict.fromkeys(
        ("max_length", "max_len", "context_length", "max_seq_len", "max_seq_length", "seq_len", "block_size",
         "max_position_embeddings"),
        ("model.text.length",),
    ),
    **dict.fromkeys(("projection_dim", "embedding_dim", "embed_size", "proj_dim"), ("model.embed_dim",)),
    **dict.fromkeys(("pooling", "pooling_type", "global_pool"), ("model.pool", "model.text_pool")),
    **dict.fromkeys(("precision", "amp", "fp16", "bf16", "half_precision", "mixed_precision"), ("model.dtype",)),
    **dict.fromkeys(
        ("gradient_checkpointing", "grad_checkpointing", "activation_checkpointing", "rematerialize", "remat_policy"),
        ("model.remat",),
    ),
    **dict.fromkeys(("pretrained", "init_from", "resume", "resume_from", "finetune_from"), ("init.model",)),
    **dict.fromkeys(("masking_ratio", "mask_rate"), ("objective.attmim.mask_ratio",)),
    **dict.fromkeys(("mlm_probability", "mask_prob", "mask_probability"), ("objective.entmlm.probability",)),
    **dict.fromkeys(("tokenizer_name", "tokenizer_path", "vocab", "vocab_file"), ("data.tokenizer",)),
    **dict.fromkeys(("xla_flags", "xla_options"), ("train.compiler_options",)),
}  # fmt: skip
_MOST = 3  # a longer list of settings with the same last word says nothing


def meant(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The settings that a name may mean, nearest first; () if none is near.

    Args:
      name: dotted, and none of `known`.
      known: the dotted names of the settings that there are.

    Looked for in this order: a name with a letter or two wrong; another program's word, or the last word of a setting
    of another group; a name, or a last word, with more of it wrong.
    """
    word = _last(name).replace("-", "_").lower()
    by_word: dict[str, list[str]] = {}
    for each in known:
        by_word.setdefault(_last(each), []).append(each)
    for other, settings in _OTHER.items():
        if there := [each for each in settings if each in known]:
            by_word.setdefault(other, there)
    if found := difflib.get_close_matches(name, list(known), n=1, cutoff=0.9):
        return tuple(found)
    if word in by_word:
        return _of_nearest_group(name, by_word[word])
    if found := difflib.get_close_matches(name, list(known), n=1, cutoff=0.8):
        return tuple(found)
    if found := difflib.get_close_matches(word, list(by_word), n=1, cutoff=0.8):
        return _of_nearest_group(name, by_word[found[0]])
    return tuple(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7))


def problem(name: str, known: Collection[str]) -> str:
    """What is wrong with a name that no setting has, for a message."""
    found = meant(name, known)
    remedy = f"did you mean {' or '.join(found)}?" if found else "mmclip config demo lists them"
    return f"there is no setting {name}; {remedy}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _of_nearest_group(name: str, settings: list[str]) -> tuple[str, ...]:
    """Those of the settings that share most words of the group with the name; () if they are too many."""
    words = set(name.split(".")[:-1])
    shared = [len(words & set(each.split(".")[:-1])) for each in settings]
    best = [each for each, count in zip(settings, shared, strict=True) if count == max(shared)]
    return tuple(best) if len(best) <= _MOST else ()
