"""Every setting of a run with its default; files under configs/ start from here and say what they change."""

from typing import Any

from ml_collections import ConfigDict


def transformer(width: int, depth: int, heads: int, mlp_dim: int | None = None, **more: int) -> ConfigDict:
    """The sizes of one encoder or decoder; the MLP is four times as wide unless said otherwise."""
    return ConfigDict({"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim or 4 * width, **more})


def _variant() -> dict[str, Any]:
    """What one transformer differs in from another, with ours: see models/transformer.py."""
    return {
        "activation": "gelu_tanh",  # gelu | gelu_tanh | quick_gelu
        "epsilon": 1e-6,  # of the layer norms
        "key_bias": False,
    }


def _head() -> dict[str, Any]:
    """The map from a pooled feature to the embedding: one linear map, or two."""
    return {
        "hidden": 0,  # width between the two; 0: one map
        "activation": "gelu",  # gelu | gelu_tanh | quick_gelu | tanh
        "hidden_bias": True,
        "bias": False,
    }


def default_config() -> ConfigDict:
    """The paper-scale recipe: ViT-B/16 at 224 px and a 12-layer text tower. docs/method.md says where it comes from."""
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict(
        {
            "image_size": 224,
            "patch_size": 16,
            "embed_dim": 512,
            "pool": "mean",  # mean | max | cls | map
            "text_pool": "mean",  # mean | max | first | last
            "stem": "patch",  # patch | conv (convolutions in place of one linear map: for small data)
            "dtype": "bfloat16",  # of activations; parameters, softmax, norms and losses are float32
            "attention": "auto",  # auto | plain | xla | cudnn; auto: cuDNN in bfloat16 on GPUs from 9.0 up, else plain
            "remat": True,
            "unroll": False,
            "image": {
                "encoder": "vit",  # vit | convnext
                **transformer(768, 12, 12),
                **_variant(),
                # What vision transformers of other programs have, and ours has not.
                "norm": "pre",  # pre | post
                "first_norm": False,
                "final_norm": True,
                "layer_scale": False,
                "class_token": False,  # pool "cls" has one anyway
                "registers": 0,
                "depths": (),  # blocks of each stage of a convnext, such as (3, 3, 9, 3); `width` is of the last
            },
            "text": {
                "encoder": "transformer",  # transformer | bert | clip
                **transformer(768, 12, 12, length=128, vocab_size=0),  # vocab_size 0: the tokenizer's
                **_variant(),
            },
            "image_decoder": transformer(512, 4, 8),
            "text_decoder": transformer(512, 4, 8),
            "image_head": _head(),
            "text_head": _head(),
        }
    )
    config.objective = ConfigDict(
        {
            "contrastive": {
                "loss": "softmax",  # softmax | sigmoid
                "targets": "text",  # text | kinds | known
                "across_sources": True,
                "chunk": 0,  # columns of logits held at once; 0: all, unless they would not fit; -1: all
            },
            "attmim": {
                "weight": 1.0,
                "mask_ratio": 0.5,
                "hint": 0.1,
                "strategy": "attention",  # attention | random | inverse
                "response": "similarity",  # similarity | cross_attention
                "temperature": 0.1,
                "mask_at": "features",  # features | input
                "random_share": 0.1,  # the first share of the steps masks at random: the response is noise then
            },
            "entmlm": {
                "weight": 1.0,
                "strategy": "entity",  # entity | random
                "probability": 0.5,
                "min_share": 0.15,
                "slots": 48,
            },
            "local": {"weight": 0.0, "tokens": 4, "temperature": 0.1},
            # Paired images against their own report with one thing turned round: of polarity, side, severity.
            "hard_negatives": {"weight": 0.0, "flips": ("polarity", "side", "severity")},
        }
    )
    config.init = ConfigDict(  # a start from weights that are there; docs/pretrained.md
        {
            "image": "",  # a file or folder of an image encoder: timm, Hugging Face, MAE, DINOv2, CLIP
            "text": "",  # likewise of a text encoder: BERT, CLIP; its vocabulary lies beside it, or is data.tokenizer
            "model": "",  # in place of both: a run of mmclip train, or another program's dual encoder
            "mean": (),  # of the pixels in [0, 1] that the image encoder was trained on; () as the files beside it say
            "std": (),
            "trained_on": (),  # what the weights learnt from: "SOURCE", or "SOURCE:FINDING,FINDING" where labels were
        }
    )
    config.data = ConfigDict(
        {
            "train": (),  # directories of built data sets
            "evaluate": (),  # the same for evaluation while training; () means those of train, split "validation"
            "allow_leakage": "",  # why evaluation data may share patients or images with the training data
            "same_ids": (),  # pairs of sources "A,B" whose equal ids mean the same; the audit compares them
            "other_ids": (),  # likewise, pairs whose equal ids say nothing
            "paired_weights": (),  # share of each data set of `train` among the paired rows; () by size
            "unpaired_weights": (),
            "batch_paired": 768,
            "batch_unpaired": 256,
            "bridge": 0.25,  # share of paired rows whose text is a prompt made from their own report
            "max_negated": 2,  # absences that a prompt may state
            "shuffled_labels": False,  # a control: unpaired images have the labels of others
            "deny_alone": 0.0,  # share of prompts from labels that state absences and nothing else
            "share_no_finding": True,  # reports without an affirmed observation are positives of each other
            "sentence_subset": 0.5,  # share of reports drawn as a shuffled random subset of their sentences
            "entity_labels": ("observation", "device", "anatomy"),
            "augment": {"rotate": 10.0, "shift": 0.06, "scale": 0.1, "brightness": 0.2, "contrast": 0.2},
            "augment_on": "auto",  # auto | device | host; auto: in the step on accelerators, else where rows are made
            "keep_decoded": 256,  # MB of decoded images that each process keeps, and does not decode again; 0 none
            "workers": 8,  # processes that prepare batches; 0 prepares them in this process
            "threads": 16,  # reading threads of a process
            "max_damaged": 10,  # records that cannot be read or decoded and are replaced before the run stops
            "tokenizer": "",  # a SentencePiece model, or init.text's vocabulary; "": the package's, or what lies there
        }
    )
    config.optimizer = ConfigDict(
        {
            "peak_lr": 1e-4,
            "warmup_share": 0.05,
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-6,
            "clip": 1.0,
            "ema": 0.999,  # 0 keeps none; evaluation uses the average where there is one
            "accumulate": 1,  # chunks of a batch that are computed one after another; the loss stays global
        }
    )
    config.train = ConfigDict(
        {
            "steps": 10_000,
            "log_every": 50,
            "evaluate_every": 1_000,
            "pictures": 4,  # cases of which an evaluation writes pictures for TensorBoard
            "checkpoint_every": 500,  # 0: at the end only
            "gradient_norms_every": 1_000,  # writes the gradient norm of each loss; 0 never (it costs a compilation)
            "keep": 3,
            "max_skipped": 3,  # updates left out one after another (not finite, or a spike) before the run stops
            "spike": 0.0,  # a loss this many times the mean of the last 100 is a spike, and left out; 0 never
            "profile": 0,  # steps to trace with JAX's profiler into WORKDIR/profile, from the third of a start on
            "platform_flags": True,  # the compiler's flags of train/flags.py on several TPUs or GPUs
            "compiler_options": "",  # XLA options of the step, "name=value name=value"
        }
    )
    config.mesh = ConfigDict(
        {
            "fsdp": 1,  # devices that share one copy of the parameters
            "shard_optimizer": False,  # cut parameters, moments and average along "data" between steps (ZeRO-1)
        }
    )
    return config


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return found
