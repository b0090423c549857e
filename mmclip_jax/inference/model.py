"""A trained model for use in Python: `mmclip_jax.load(workdir)`, then embed, score, and look inside.

Every call takes single images or texts of any number, fits them to the model and runs in batches of a few sizes
(`inputs.batch_size`): each is compiled at its first use.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmclip_jax import checkpoints, ranges, sharding
from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.inference import classifier, pictures, scoring
from mmclip_jax.inference.inputs import (
    BATCH,
    as_pixels,
    batch_size,
    batches,
    check_equal,
    check_numbers,
    check_several,
    pad,
    shared,
)
from mmclip_jax.inference.stamp import Stamp, describe, stamp_of
from mmclip_jax.models import masking
from mmclip_jax.models.inputs import patchify, pixels, standardize, unpatchify
from mmclip_jax.models.mmclip import MMCLIP, PAD_ID, RESPONSES, build_model, init_params
from mmclip_jax.objectives.attmim import attmim_rows
from mmclip_jax.text import entities as entities_lib
from mmclip_jax.text import prompts
from mmclip_jax.text.schema import Entity
from mmclip_jax.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from PIL import Image


def load(workdir_or_checkpoint: str | os.PathLike[str], step: int | None = None, *, all_devices: bool = False) -> Any:
    """Loads a checkpoint: the newest of a workdir, its `step`, or a step directory itself.

    Returns a `Model`; of the folder of one run of `mmclip finetune`, a `Classifier`.

    all_devices: spreads the rows of each batch over this process's devices, and the images of `encode_image` over all
    processes, which must then make the same calls; else one device does everything.

    Raises:
      UserError: there is no such checkpoint, or it does not fit the vocabulary that is installed.
    """
    saved, tokenizer = open_checkpoint(classifier.place_of(workdir_or_checkpoint), step)
    if classifier.KEY in saved.manifest:
        return classifier.restore(saved, all_devices)
    model = build_model(saved.config.model)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: init_params(model, saved.config.model, 0))
    abstract = checkpoints.abstract_like(shapes, jax.tree.map(lambda _: device, shapes))
    params = saved.restore_params(abstract)
    return Model(saved.config, params, tokenizer, saved.step, saved.manifest, all_devices)


def open_checkpoint(
    workdir_or_checkpoint: str | os.PathLike[str], step: int | None = None
) -> tuple[checkpoints.Saved, Tokenizer]:
    """A checkpoint, its parameters not yet read, and its tokenizer.

    Raises:
      UserError: there is none; its tokenizer is not of the size of its text encoder; or it was trained on labels or
        reports of kinds that the vocabulary does not know.
    """
    saved = checkpoints.find_checkpoint(workdir_or_checkpoint, step)
    tokenizer = load_tokenizer(saved.tokenizer_model)
    if tokenizer.vocab_size != saved.config.model.text.vocab_size:
        raise UserError(
            f"{saved.directory} has a tokenizer of {tokenizer.vocab_size} pieces and a text encoder for "
            f"{saved.config.model.text.vocab_size}: it was put together from two runs, take one of one run"
        )
    exposure = saved.manifest.get("exposure", {})
    seen = {
        kind for part in ("label_kinds", "report_kinds") for kinds in exposure.get(part, {}).values() for kind in kinds
    }
    if strange := sorted(seen - set(prompts.KINDS)):
        raise UserError(
            f"{saved.directory} was trained with another vocabulary of findings: {', '.join(strange[:5])} are not "
            "in the one in use; set MMCLIP_RESOURCES to the run's resources"
        )
    return saved, tokenizer


def _distinct(items: Sequence[Any], key: Callable[[Any], Any]) -> tuple[np.ndarray, list[Any]]:
    """(for each item the number of its first equal, the distinct items in order of appearance)."""
    numbers: dict[Any, int] = {}
    first: list[Any] = []
    for item in items:
        if numbers.setdefault(key(item), len(first)) == len(first):
            first.append(item)
    return np.array([numbers[key(item)] for item in items], int), first


class Model:
    """A trained MMCLIP model. Images are of any size and form: paths, bytes, PIL images, arrays (`inputs.as_pixels`).

    Attributes: config (ConfigDict), tokenizer, step, manifest (dict, what the run was trained on), logit_scale, stamp
    (in words: what it learnt from, and how it knew of each finding).
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Any,
        tokenizer: Tokenizer,
        step: int,
        manifest: dict[str, Any],
        all_devices: bool = False,
    ):
        # As many devices as share every batch evenly.
        count = math.gcd(BATCH, jax.local_device_count()) if all_devices else 1
        self._mesh = sharding.make_mesh(1, jax.local_devices()[:count])
        self._processes = jax.process_count() if all_devices else 1
        self.config, self.tokenizer, self.manifest = config, tokenizer, manifest
        here = config.model.copy_and_resolve_references().unlock()
        here.attention = "auto"  # this machine's, whatever the run was trained on
        self._module: MMCLIP = build_model(here, jax.local_devices()[0])
        self.take(params, step)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        return (
            f"<mmclip_jax.Model, step {self.step:,}: {describe(self.config.model)}, {count:,} parameters; "
            f"learnt from {self.stamp.domain}>"
        )

    @functools.cached_property
    def stamp(self) -> Stamp:
        """What its numbers have to be read with: `str(stamp)` is some lines, `stamp.of("edema")` that of a finding."""
        return stamp_of(self.manifest)

    def take(self, params: Any, step: int) -> None:
        """Takes the parameters of another step of the same run; what is compiled stays."""
        self.step = step
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        self.logit_scale = float(jnp.exp(params["log_logit_scale"]))

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles function(apply, *arrays), where apply(method, ...) runs a method of the module."""

        def run(params: Any, *arrays: jax.Array) -> Any:
            def apply(method: str, *args: Any) -> Any:
                return self._module.apply({"params": params}, *args, method=method)

            return function(apply, *arrays)

        compiled = jax.jit(run, out_shardings=sharding.replicated(self._mesh))

        def call(*arrays: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return compiled(self._params, *jax.device_put(arrays, sharding.batch_sharding(self._mesh)))

        return call

    # -----------------------------------------------------------------------------------------------------------------
    # Embeddings and scores

    def encode_image(self, images: Sequence[Any]) -> np.ndarray:
        """Image embeddings float32 [n,E], L2-normalised."""
        check_several("images", images)
        return shared(images, self._encode_own, self.config.model.embed_dim, self._processes)

    def _encode_own(self, images: Sequence[Any]) -> np.ndarray:
        size = self._size(images)
        out = [self._encode_image(pad(self._fit(batch), size))[: len(batch)] for (batch,) in batches(images)]
        return np.concatenate(out) if out else np.zeros((0, self.config.model.embed_dim), np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Text embeddings float32 [n,E], L2-normalised."""
        check_several("texts", texts)
        size = self._size(texts)
        out = [self._encode_text(pad(self._tokens(batch)[0], size))[: len(batch)] for (batch,) in batches(texts)]
        return np.concatenate(out) if out else np.zeros((0, self.config.model.embed_dim), np.float32)

    def similarity(self, images: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Cosine similarity of each image to each text: float32 [n images, m texts], from -1 to 1."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def zero_shot(self, images: Sequence[Any], findings: scoring.Findings) -> dict[str, np.ndarray]:
        """Probability of each finding in each image by its positive against its negative prompts: {finding: [n]}.

        softmax over (positive, negative) of the logit scale times the similarity; prompts of a polarity are averaged.

        findings: names of the vocabulary, or any words: {"my finding": (texts that affirm it, texts that deny it)},
        where None in place of the texts means the vocabulary's own.

        Raises:
          UserError: a finding that the vocabulary does not know, or one without texts of both polarities.
        """
        asked = scoring.texts_of(findings)
        return scoring.probabilities(self, self.encode_image(images), asked)

    # -----------------------------------------------------------------------------------------------------------------
    # Looking inside

    def response_map(self, image: Any, text: str, response: str = "similarity") -> np.ndarray:
        """How much each patch of the padded square image responds to the text: float32 [rows, columns], sum 1."""
        return self.response_maps([image], [text], response)[0]

    def response_maps(self, images: Sequence[Any], texts: Sequence[str], response: str = "similarity") -> np.ndarray:
        """`response_map` of n images with one text each: float32 [n, rows, columns].

        Raises:
          UserError: response is neither "similarity" nor "cross_attention".
        """
        if response not in RESPONSES:
            raise UserError(f"response {response!r} is not one of {', '.join(RESPONSES)}")
        check_equal(images=images, texts=texts)
        images = list(images)  # rows of one array are new objects at every look
        # The pointing game asks many texts of one image and one text of many images: each is encoded once.
        image_index, distinct_images = _distinct(images, key=id)
        text_index, distinct_texts = _distinct(texts, key=str)
        size = self._size(distinct_images)
        patches = [self._patches(pad(self._fit(batch), size))[: len(batch)] for (batch,) in batches(distinct_images)]
        features, weights = [], []
        size = self._size(distinct_texts)
        for (batch,) in batches(distinct_texts):
            tokens, _, affirmed = self._tokens(batch)
            encoded = self._features(pad(tokens, size), pad(affirmed, size))
            features.append(encoded[0][: len(batch)])
            weights.append(encoded[1][: len(batch)])
        if not patches:
            return np.zeros((0, self._side, self._side), np.float32)
        columns = (
            np.concatenate(patches)[image_index],
            np.concatenate(features)[text_index],
            np.concatenate(weights)[text_index],
        )
        compute, size = self._responses[response], self._size(images)
        out = []
        for batch in batches(*columns):
            out.append(np.asarray(compute(*(pad(np.asarray(column), size) for column in batch)))[: len(batch[0])])
        return np.concatenate(out).reshape(-1, self._side, self._side)

    def explain(self, image: Any, text: str, response: str = "similarity") -> "Image.Image":
        """A figure: the image, and the response map of a text over it, with their similarity and the model's stamp.

        Returns:
          a PIL image (RGB, 1,048 pixels wide).

        Raises:
          UserError: as for `response_map`.
        """
        shown = as_pixels(image)
        answer = self.response_map(shown, text, response)
        score = float(self.similarity([shown], [text])[0, 0])
        lines = [f"“{text}”", f"cosine similarity {score:.3f}", f"Model of step {self.step:,}, {self.stamp.caption}"]
        return pictures.explained(transforms.fit_image(shown, pictures.SHOWN_SIDE)[..., 0], answer, lines)

    def attmim(self, images: Sequence[Any], texts: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
        """What AttMIM hides of n images and how it restores it.

        Returns:
          response float32 [n,rows,columns], masked bool [n,rows,columns], reconstruction float32 [n,S,S] in 0..255 (the
          masked patches as restored, with the brightness and contrast of the true patch, the others as they are),
          image uint8 [n,S,S].
        """
        check_equal(images=images, texts=texts)
        ranges.check({"seed": seed}, {"seed": ranges.Number(0, 2**31 - 1, whole=True)})
        out: dict[str, list[np.ndarray]] = {"response": [], "masked": [], "reconstruction": [], "image": []}
        rows = self._size(images)
        for batch_images, batch_texts in batches(images, texts):
            tokens, _, affirmed = self._tokens(batch_texts)
            fitted, count = self._fit(batch_images), len(batch_texts)
            done = self._attmim(pad(fitted, rows), pad(tokens, rows), pad(affirmed, rows), np.int32(seed))
            for name in ("response", "masked", "reconstruction"):
                out[name].append(np.asarray(done[name])[:count])
            out["image"].append(fitted[..., 0])
        if not len(images):
            size, kinds = self.config.model.image_size, {"masked": bool, "image": np.uint8}
            shapes = dict.fromkeys(("response", "masked"), self._side) | dict.fromkeys(
                ("reconstruction", "image"), size
            )
            return {name: np.zeros((0, n, n), kinds.get(name, np.float32)) for name, n in shapes.items()}
        joined = {name: np.concatenate(values) for name, values in out.items()}
        for name in ("response", "masked"):
            joined[name] = joined[name].reshape(-1, self._side, self._side)
        return joined

    def restore(
        self,
        images: Sequence[Any],
        texts: Sequence[str],
        masked_entities: Sequence[Sequence[int]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Masks entities of n texts and restores them with the images (EntMLM).

        masked_entities: for each text, indices into its entities. entities: of each text; by default
        `find_entities(text)`, which reads English.

        Returns:
          For each text (true token ids, restored token ids) of its masked tokens in reading order, both int32 [m]; m is
          0 where the entities lie beyond the model's text length.
        """
        check_equal(images=images, texts=texts, masked_entities=masked_entities)
        if entities is not None:
            check_equal(texts=texts, entities=entities)
        for number, (text, chosen) in enumerate(zip(texts, masked_entities, strict=True)):
            found = entities_lib.find_entities(text) if entities is None else entities[number]
            check_numbers(f"masked_entities[{number}]", chosen, len(found))
        results, size = [], self._size(images)
        for batch in batches(images, texts, masked_entities, entities or [None] * len(texts)):
            batch_images, batch_texts, batch_masked, batch_found = batch
            labels = ("observation", "device", "anatomy", "modifier")
            tokens, entity, _ = self._tokens(batch_texts, labels, batch_found if entities is not None else None)
            hidden = np.stack(
                [np.isin(row, np.asarray(chosen, int) + 1) for row, chosen in zip(entity, batch_masked, strict=True)]
            )
            masked_tokens = np.where(hidden, self.tokenizer.mask_id, tokens).astype(np.int32)
            restored = np.asarray(self._restore(pad(self._fit(batch_images), size), pad(masked_tokens, size)))
            for row, text_tokens in enumerate(tokens):
                results.append((text_tokens[hidden[row]], restored[row][hidden[row]]))
        return results

    # -----------------------------------------------------------------------------------------------------------------
    # Input

    def _size(self, rows: Sequence[Any]) -> int:
        """What the batches of a call for these rows are padded to."""
        return batch_size(len(rows), self._mesh.size)

    @property
    def _side(self) -> int:
        return self.config.model.image_size // self.config.model.patch_size

    def _fit(self, images: Sequence[Any]) -> np.ndarray:
        size = self.config.model.image_size
        return np.stack([transforms.fit_image(as_pixels(image), size) for image in images])

    def _tokens(
        self,
        texts: Sequence[str],
        labels: tuple[str, ...] | None = None,
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens int32 [n,L], entity int32 [n,L] numbering its entities from 1, affirmed bool [n,L])."""
        rows = []
        for number, text in enumerate(texts):
            found = entities_lib.find_entities(text) if entities is None else list(entities[number])
            chosen = labels or tuple(self.config.data.entity_labels)
            rows.append(self.tokenizer.tokenize(text, found, self.config.model.text.length, entity_labels=chosen))
        return (
            np.stack([row.tokens for row in rows]),
            np.stack([row.entity for row in rows]),
            np.stack([row.affirmed for row in rows]),
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Compiled functions

    @functools.cached_property
    def _encode_image(self) -> Callable[..., np.ndarray]:
        encode = self._jit(lambda apply, images: apply("encode_image", standardize(pixels(images)))[1])
        return lambda images: np.asarray(encode(images))

    @functools.cached_property
    def _encode_text(self) -> Callable[..., np.ndarray]:
        encode = self._jit(lambda apply, tokens: apply("embed_text", apply("encode_text", tokens), tokens != PAD_ID))
        return lambda tokens: np.asarray(encode(tokens))

    @functools.cached_property
    def _patches(self) -> Callable[..., np.ndarray]:
        encode = self._jit(lambda apply, images: apply("encode_image", standardize(pixels(images)))[0])
        return lambda images: np.asarray(encode(images))

    @functools.cached_property
    def _features(self) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        def compute(apply: Any, tokens: jax.Array, affirmed: jax.Array) -> tuple[jax.Array, jax.Array]:
            return apply("encode_text", tokens), masking.token_weights(affirmed, tokens != PAD_ID)

        encode = self._jit(compute)
        return lambda tokens, affirmed: tuple(map(np.asarray, encode(tokens, affirmed)))  # type: ignore[return-value]

    @functools.cached_property
    def _responses(self) -> dict[str, Callable[..., jax.Array]]:
        temperature = self.config.objective.attmim.temperature

        def compute(apply: Any, *arrays: jax.Array, kind: str) -> jax.Array:
            return apply("response", *arrays, kind, temperature)

        return {kind: self._jit(functools.partial(compute, kind=kind)) for kind in RESPONSES}

    @functools.cached_property
    def _attmim(self) -> Callable[..., dict[str, jax.Array]]:
        patch_size = self.config.model.patch_size

        @jax.jit
        def compute(
            variables: Any, images: jax.Array, tokens: jax.Array, affirmed: jax.Array, seed: jax.Array
        ) -> dict[str, jax.Array]:
            unit = pixels(images)
            patches, _ = self._module.apply(variables, standardize(unit), method="encode_image")
            features = self._module.apply(variables, tokens, method="encode_text")
            # One key for all rows: what is drawn for an image does not depend on its company.
            key = jnp.broadcast_to(jax.random.key_data(jax.random.key(seed)), (len(images), 2))
            rows = {"tokens": tokens, "affirmed": affirmed, "key": key}
            at_random = jnp.bool_(False)
            made = attmim_rows(self._module, variables, unit, patches, features, rows, self.config.objective, at_random)
            hidden = masking.hidden_patches(made["masked"], patches.shape[1])
            true = patchify(unit, patch_size)
            # The decoder predicts normalised pixels: the true patch lends its mean and spread, for the eye only.
            place = jnp.maximum(jnp.cumsum(hidden, axis=1) - 1, 0)
            spread = masking.take_positions(made["predicted"], place)
            spread = spread * true.std(axis=-1, keepdims=True) + true.mean(axis=-1, keepdims=True)
            restored = unpatchify(jnp.where(hidden[:, :, None], spread, true), patch_size)[..., 0]
            return {
                "response": made["response"],
                "masked": hidden,
                "reconstruction": jnp.clip(restored, 0.0, 1.0) * 255.0,
            }

        return lambda *arrays: compute({"params": self._params}, *arrays)

    @functools.cached_property
    def _restore(self) -> Callable[..., jax.Array]:
        def compute(apply: Any, images: jax.Array, tokens: jax.Array) -> jax.Array:
            patches, _ = apply("encode_image", standardize(pixels(images)))
            slots = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
            features = apply("encode_text", tokens)
            logits = apply("restore", features, tokens != PAD_ID, patches, slots)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        return self._jit(compute)
