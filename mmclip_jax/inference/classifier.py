"""A fine-tuned classifier for use in Python: what `mmclip_jax.load` gives for a run of `mmclip finetune`.

A classifier is the image encoder of a pre-training run with a linear layer on its pooled features. A linear probe is
kept in the same form: the standardisation of its features is part of the layer.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mmclip_jax import checkpoints, sharding
from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.inference.inputs import BATCH, as_pixels, batch_size, batches, check_several, pad, shared
from mmclip_jax.inference.stamp import Stamp, describe_classifier, stamp_of_classifier
from mmclip_jax.models import inputs
from mmclip_jax.models.mmclip import MMCLIP, build_model, init_params
from mmclip_jax.text import prompts

FOLDER = "classifier"
"""Of a run of `mmclip finetune`: the checkpoint that holds its classifier."""

KEY = "classifier"
"""Of a checkpoint's manifest: what is known of the classifier; a checkpoint without it is none."""


def pool(model: MMCLIP, encoder: Any, images: jax.Array) -> jax.Array:
    """Pooled features float32 [B,D] of images uint8 [B,S,S,1]: what the encoder gives before its projection."""
    # Two scalars belong to the model itself and not to a part of it, so that it asks for them.
    variables = {name: encoder[name] for name in encoder if name != "head"}
    variables |= {"log_logit_scale": jnp.zeros(()), "logit_bias": jnp.zeros(())}
    unit = inputs.pixels(images)
    return model.apply({"params": variables}, inputs.standardize(unit), method="pool_image")[1].astype(jnp.float32)


def encoder_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a model that pooled features need."""
    return {name: part for name, part in params.items() if name == "image_encoder" or "pool" in name}


def place_of(path: epath.PathLike) -> epath.Path:
    """The checkpoint in a folder of `mmclip finetune`; any other path as it is.

    Raises:
      UserError: the folder holds several classifiers, or a finished run that kept none.
    """
    place = checkpoints.absolute_path(path)
    if checkpoints.is_checkpoint(place / FOLDER):
        return place / FOLDER
    if checkpoints.is_checkpoint(place) or (place / checkpoints.FOLDER).exists() or not place.exists():
        return place
    if (place / "result.json").exists():
        raise UserError(
            f"{place} kept no classifier: delete its result.json and give the command of mmclip finetune again, "
            "without --discard-classifiers"
        )
    patterns = ("seed_*", "fraction_*/seed_*", "*/fraction_*/seed_*")
    there = sorted(
        found for pattern in patterns for found in place.glob(pattern) if checkpoints.is_checkpoint(found / FOLDER)
    )
    if there:
        named = ", ".join(str(found.relative_to(place)) for found in there[:4])
        more = f" and {len(there) - 4} more" if len(there) > 4 else ""
        raise UserError(f"{place} holds {len(there)} classifiers: name the folder of one ({named}{more})")
    return place


def shapes_of(saved: checkpoints.Saved) -> dict[str, Any]:
    """Shapes and types of the parameters of a checkpoint whose manifest has a classifier (`KEY`), as a tree."""
    model = build_model(saved.config.model)
    shapes = encoder_of(jax.eval_shape(lambda: init_params(model, saved.config.model, 0)))
    findings, width = len(saved.manifest[KEY]["findings"]), saved.config.model.image.width
    shapes["head"] = {
        "kernel": jax.ShapeDtypeStruct((width, findings), jnp.float32),
        "bias": jax.ShapeDtypeStruct((findings,), jnp.float32),
    }
    return shapes


def restore(saved: checkpoints.Saved, all_devices: bool = False) -> "Classifier":
    """The classifier of a checkpoint whose manifest has one (`KEY`).

    Raises:
      UserError: the checkpoint holds other parameters than its settings say.
      DamagedCheckpointError: they cannot be read.
    """
    shapes = shapes_of(saved)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = checkpoints.abstract_like(shapes, jax.tree.map(lambda _: device, shapes))
    return Classifier(saved.config, saved.restore_params(abstract), saved.manifest, all_devices)


class Classifier:
    """A fine-tuned classifier. Images are of any size and form, as for `Model`.

    Attributes:
      config: ConfigDict; `config.finetune` holds the settings of the fine-tuning.
      manifest: what pre-training and fine-tuning learnt from; `manifest["classifier"]` is about the fine-tuning.
      step: the training step whose validation score was best.
      findings: the K findings, or classes, in the order of the outputs.
      task: "multi-label" (each finding has a probability of its own) or "multi-class" (they sum to 1).
      thresholds: {finding: {"youden": probability or None, "sensitivity_90": likewise}}, chosen on validation; an image
        is called positive from the threshold up. None where too few patients allowed none (`without_threshold`).
      without_threshold: {finding: why it has no threshold}.
    """

    logit_scale = 1.0  # its scores are logits as they are

    def __init__(self, config: ConfigDict, params: Any, manifest: Mapping[str, Any], all_devices: bool = False):
        told = manifest[KEY]
        self.config, self.manifest = config, manifest
        self.findings: tuple[str, ...] = tuple(told["findings"])
        self.task, self.step = str(told["task"]), int(told["step"])
        rules = {each["finding"]: each for each in told["thresholds"]["findings"]}
        self.thresholds: dict[str, dict[str, float | None]] = {
            finding: {rule: entry and entry["threshold"] for rule, entry in rules[finding]["rules"].items()}
            for finding in self.findings
        }
        self.without_threshold = {finding: note for finding in self.findings if (note := rules[finding]["note"])}
        # As many devices as share every batch evenly.
        count = math.gcd(BATCH, jax.local_device_count()) if all_devices else 1
        self._mesh = sharding.make_mesh(1, jax.local_devices()[:count])
        self._processes = jax.process_count() if all_devices else 1
        self._module = build_model(config.model)
        self._head = {name: np.asarray(part, np.float64) for name, part in params["head"].items()}
        encoder = {name: part for name, part in params.items() if name != "head"}
        self._encoder = jax.device_put(encoder, sharding.replicated(self._mesh))

    def __repr__(self) -> str:
        size = self.config.model.image_size
        named = ", ".join(self.findings)
        return (
            f"<mmclip_jax.Classifier, step {self.step:,}: {len(self.findings)} findings ({named}), {size} px; "
            f"learnt from {self.stamp.domain}>"
        )

    @property
    def description(self) -> str:
        """Its sizes in a line."""
        return describe_classifier(self.config.model, self.manifest[KEY])

    @functools.cached_property
    def stamp(self) -> Stamp:
        """What its numbers have to be read with, as for `Model.stamp`."""
        return stamp_of_classifier(self.manifest)

    def finding_of(self, name: str) -> str:
        """The finding among its outputs that a name, or another spelling, means.

        Raises:
          UserError: it has no such output.
        """
        finding = prompts.kind_of(name) or name
        if finding not in self.findings:
            raise UserError(f"the classifier has no output for {name!r}; it has: {', '.join(self.findings)}")
        return finding

    def predict(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Probability of each finding in each of n images: {finding: float32 [n]}, in [0, 1].

        Raises:
          UserError: an image cannot be read; the message names the file.
        """
        z = self.logits_of(self.encode_image(images))
        chances = np.exp(-np.logaddexp(0.0, -z)).astype(np.float32)
        return dict(zip(self.findings, chances.T, strict=True))

    def encode_image(self, images: Sequence[Any]) -> np.ndarray:
        """Pooled features float32 [n,D] of n images, before any projection and not normalised."""
        check_several("images", images)
        return shared(images, self._encode_own, self.config.model.image.width, self._processes)

    def logits_of(self, features: np.ndarray) -> np.ndarray:
        """float64 [n,K] of features [n,D]: the logit of each probability that `predict` gives."""
        z = np.asarray(features, np.float64) @ self._head["kernel"] + self._head["bias"]
        if self.task != "multi-class":
            return z
        # The logit of a softmax's probability: a class against the sum of all others.
        others = np.repeat(z[:, np.newaxis, :], z.shape[1], axis=1)
        others[:, np.arange(z.shape[1]), np.arange(z.shape[1])] = -np.inf
        return np.asarray(z - np.logaddexp.reduce(others, axis=2))

    def _encode_own(self, images: Sequence[Any]) -> np.ndarray:
        size, rows = self.config.model.image_size, batch_size(len(images), self._mesh.size)
        out = []
        for (batch,) in batches(images):
            fitted = np.stack([transforms.fit_image(as_pixels(image), size) for image in batch])
            out.append(self._pool(pad(fitted, rows))[: len(batch)])
        return np.concatenate(out) if out else np.zeros((0, self.config.model.image.width), np.float32)

    @functools.cached_property
    def _pool(self) -> Callable[[np.ndarray], np.ndarray]:
        replicated = sharding.replicated(self._mesh)
        compiled = jax.jit(functools.partial(pool, self._module), out_shardings=replicated)

        def call(images: np.ndarray) -> np.ndarray:
            with jax.set_mesh(self._mesh):
                return np.asarray(compiled(self._encoder, jax.device_put(images, sharding.batch_sharding(self._mesh))))

        return call
