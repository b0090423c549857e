"""Encoders by name: what each says of itself holds, and the model learns through each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mmclip_jax import check, sharding
from mmclip_jax.errors import UserError
from mmclip_jax.models import encoders
from mmclip_jax.models.encoders.convnext import ConvNeXt
from mmclip_jax.models.inputs import pixels, standardize
from mmclip_jax.models.mmclip import build_model, init_params

pytestmark = pytest.mark.compiles

CONVNEXT: dict[str, Any] = {
    "model__image__encoder": "convnext", "model__image__depths": (1, 2, 3), "model__image__width": 28,
    "model__image__heads": 7, "model__image_size": 80, "model__patch_size": 16,
}  # fmt: skip
IMAGE: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit, as others have it": {
        "model__image__first_norm": True, "model__image__layer_scale": True, "model__image__key_bias": True,
        "model__image__registers": 3, "model__pool": "cls", "model__image__norm": "post",
        "model__image__activation": "quick_gelu", "model__image__final_norm": False,
    },
    "convnext": CONVNEXT,
}  # fmt: skip
TEXT: dict[str, dict[str, Any]] = {
    "transformer": {},
    "bert": {"model__text__encoder": "bert", "model__text_pool": "first", "model__text__key_bias": True},
    "clip": {"model__text__encoder": "clip", "model__text_pool": "last", "model__text__activation": "quick_gelu"},
}


def shapes_of(config: ConfigDict) -> Any:
    model = build_model(config.model)
    return jax.eval_shape(lambda: init_params(model, config.model, 0))


def paths(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in jax.tree.leaves_with_path(tree)}


def test_every_encoder_is_tried_here() -> None:
    tried = {tiny.config(**changes).model.image.encoder for changes in IMAGE.values()}
    assert tried == encoders.IMAGE_ENCODERS.keys()
    assert TEXT.keys() == encoders.TEXT_ENCODERS.keys()


@pytest.mark.parametrize(("image", "text"), [*((name, "bert") for name in IMAGE), ("vit", "clip")])
def test_the_whole_step_has_gradients_for_every_parameter(image: str, text: str) -> None:
    config = tiny.config(**IMAGE[image], **TEXT[text], objective__local__weight=0.5)
    config.data.update({"batch_paired": 5, "batch_unpaired": 3})
    check.check_values(config)
    model = build_model(config.model)
    params = tiny.random_params(model, config)
    batch = tiny.batch(config)
    rng, size = np.random.default_rng(0), config.model.image_size
    for part in batch.values():
        part["image"] = rng.integers(0, 256, (len(part["tokens"]), size, size, 1)).astype(np.uint8)
    loss = tiny.loss_and_gradients(model, config)
    (value, metrics), gradients = tiny.jit(loss)(params, jnp.int32(3), batch)
    assert np.isfinite(value)
    assert metrics["attmim/masked_share"] == pytest.approx(12 / 25)
    for path, gradient in paths({name: gradients[name] for name in ("image_encoder", "text_encoder")}).items():
        assert np.all(np.isfinite(gradient)), path
        # Softmax cancels a bias of keys.
        assert np.any(gradient) or path.endswith("key/bias"), path


@pytest.mark.parametrize("changes", [*IMAGE.values(), *TEXT.values()], ids=[*IMAGE, *TEXT])
def test_each_parameter_has_its_layer(changes: dict[str, Any]) -> None:
    config = tiny.config(**changes)
    params = shapes_of(config)
    both: dict[str, Any] = {"image": encoders.image_encoder(config.model), "text": encoders.text_encoder(config.model)}
    for part, module in both.items():
        numbers: dict[str, np.ndarray] = {}
        for path, leaf in paths(params[f"{part}_encoder"]).items():
            numbers[path] = module.layer_numbers(path)
            assert numbers[path].shape in ((), leaf.shape[:1])
            assert bool(numbers[path].shape) == ("layers" in path), path
        depth = sum(config.model.image.depths) if isinstance(module, ConvNeXt) else 2
        assert module.layers == depth
        everything = np.concatenate([np.atleast_1d(each) for each in numbers.values()])
        final = config.model.image.final_norm if part == "image" else config.model.text.encoder != "bert"
        last = depth + final
        assert sorted(set(everything.tolist())) == list(range(last + 1))


def test_the_layers_of_a_convnext_by_hand() -> None:
    module = ConvNeXt((1, 2, 3), 28)
    assert module.layer_numbers("stem/kernel") == module.layer_numbers("stem_norm/scale") == 0
    assert module.layer_numbers("layers_0/norm/scale").tolist() == [1]
    assert module.layer_numbers("down_1/kernel") == module.layer_numbers("down_norm_1/bias") == 2
    assert module.layer_numbers("layers_1/mlp_in/kernel").tolist() == [2, 3]
    assert module.layer_numbers("layers_2/scale_mlp").tolist() == [4, 5, 6]
    assert module.layer_numbers("norm/scale") == 7


@pytest.mark.parametrize("changes", [*IMAGE.values(), *TEXT.values()], ids=[*IMAGE, *TEXT])
def test_parameters_are_sharded_over_fsdp(changes: dict[str, Any]) -> None:
    """By the rules that hold for all: what is left whole on every device is small."""
    config = tiny.config(**changes)
    if changes is CONVNEXT:  # a width of which two devices can share every stage
        config.model.image.update({"width": 32, "heads": 8})
    params = shapes_of(config)
    mesh = sharding.make_mesh(2, jax.devices()[:2])
    whole = total = 0
    for path, leaf in paths({name: params[name] for name in ("image_encoder", "text_encoder")}).items():
        total += leaf.size
        spec = sharding.parameter_spec(path, leaf.shape, mesh)
        whole += leaf.size * ("fsdp" not in spec)
        assert "fsdp" in spec or leaf.ndim < 2 or not path.endswith(("mlp_in/kernel", "mlp_out/kernel", "embedding"))
    assert whole < 0.3 * total


def test_the_work_of_a_convnext_by_hand() -> None:
    # 16 px: 4x4 places of 4 channels, one block; 2x2 places of 8 channels, two blocks.
    found = ConvNeXt((1, 2), 8).work(16, 4)
    stem, down = 2 * 16 * 16 * 4, 2 * 4 * (4 * 4) * 8
    first = 2 * 16 * 49 * 4 + 2 * (2 * 16 * 4 * 16)
    second = 2 * 4 * 49 * 8 + 2 * (2 * 4 * 8 * 32)
    assert found.forward == stem + down + first + 2 * second
    assert found.backward == stem + 2 * (down + first + 2 * second)
    again = ConvNeXt((1, 2), 8, remat=True).work(16, 4).again
    assert again == first - 2 * 16 * 4 * 16 + 2 * (second - 2 * 4 * 8 * 32)


def test_the_work_of_transformers_is_that_of_their_tokens() -> None:
    config = tiny.config(model__image__registers=3, model__image__class_token=True)
    module = encoders.image_encoder(config.model)
    plain = encoders.image_encoder(tiny.config().model)
    assert module.work(20, 7).forward == plain.work(20, 11).forward
    text = encoders.text_encoder(config.model)
    layer = 8 * tiny.LENGTH * 20 * 20 + 4 * tiny.LENGTH**2 * 20 + 4 * tiny.LENGTH * 20 * 36
    assert text.work().forward == 2 * layer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__image__encoder": "resnet"}, "model.image.encoder='resnet' is not one of vit, convnext"),
        ({"model__text__encoder": "gpt"}, "model.text.encoder='gpt' is not one of transformer, bert, clip"),
        ({"model__image__norm": "none"}, "model.image.norm='none' is not one of pre, post"),
        ({"model__text__activation": "relu"}, "model.text.activation='relu' is not one of gelu"),
        (CONVNEXT | {"model__patch_size": 8}, "patches of 16 pixels: set model.patch_size=16"),
        (CONVNEXT | {"model__image__depths": ()}, "needs model.image.depths, such as"),
        (CONVNEXT | {"model__image__width": 30}, "model.image.width=30 cannot be halved at each of 3 stages"),
        (CONVNEXT | {"model__pool": "cls"}, "model.pool='cls' needs a class token"),
        (
            CONVNEXT | {"model__pool": "map", "model__image__heads": 5},
            "is no multiple of heads=5, those of the pool",
        ),
        (CONVNEXT | {"model__stem": "conv"}, "model.stem='conv' is of model.image.encoder='vit'"),
        (CONVNEXT | {"model__image__norm": "post"}, "model.image.norm='post' is of model.image.encoder='vit'"),
        (CONVNEXT | {"model__image__key_bias": True}, "model.image.key_bias=True is of model.image.encoder='vit'"),
        (CONVNEXT | {"model__image__registers": 3}, "model.image.registers=3 is of model.image.encoder='vit'"),
    ],
)
def test_encoders_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(tiny.config(**changes).model)


@pytest.mark.parametrize("changes", [CONVNEXT, {"model__stem": "conv"}])
def test_what_cannot_leave_patches_out_is_not_asked_to(changes: dict[str, Any]) -> None:
    config = tiny.config(**changes, objective__attmim__mask_at="input")
    assert not encoders.image_encoder(config.model).can_drop_tokens
    with pytest.raises(UserError, match=r"objective\.attmim.mask_at='input' needs model.image.encoder='vit'"):
        check.check_values(config)
    config.objective.attmim.weight = 0.0
    check.check_values(config)
    assert encoders.image_encoder(tiny.config().model).can_drop_tokens


def test_a_convnext_refuses_to_leave_patches_out() -> None:
    module = ConvNeXt((1, 2), 8)
    with pytest.raises(ValueError, match="cannot leave patches out"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 2), jnp.int32))


def test_settings_that_a_config_lacks_are_ours() -> None:
    """Configs of checkpoints from before there were names."""
    config = tiny.config()
    older = ConfigDict(config.model.to_dict())
    for part in ("image", "text"):
        del older[f"{part}_head"]
        for name in set(older[part]) - {"width", "depth", "heads", "mlp_dim", "length", "vocab_size"}:
            del older[part][name]
    assert build_model(older) == build_model(config.model)
    fields = {field.name for field in dataclasses.fields(encoders.Variant)}
    assert fields & set(config.model.image) and not fields & set(older.image)  # noqa: PT018


@pytest.mark.parametrize("text_pool", ["first", "last"])
def test_texts_are_read_at_one_token_through_two_layers(text_pool: str) -> None:
    head = {"hidden": 13, "activation": "tanh", "hidden_bias": True, "bias": True}
    config = tiny.config(model__text_pool=text_pool, model__text_head=ConfigDict(head))
    config.model.image_head.update({"hidden": 17, "hidden_bias": False})
    model, params = tiny.model_and_params(config)
    rows = tiny.rows(5, 0)
    valid = rows["tokens"] != 0
    features = np.random.default_rng(1).normal(size=(5, tiny.LENGTH, 20)).astype(np.float32)
    got = model.apply({"params": params}, features, valid, method="embed_text")
    at = valid.sum(axis=1) - 1 if text_pool == "last" else np.zeros(5, int)
    assert len(set((valid.sum(axis=1)).tolist())) > 1
    params_64: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    hidden, last = params_64["text_hidden"], params_64["text_projection"]
    y = np.tanh(np.float64(features[np.arange(5), at]) @ hidden["kernel"] + hidden["bias"])
    y = y @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(got, y / np.linalg.norm(y, axis=1, keepdims=True), atol=1e-5)
    images = np.asarray(standardize(pixels(jnp.asarray(rows["image"]))))
    patches, v = model.apply({"params": params}, images, method="encode_image")
    assert set(params["image_hidden"]) == set(params["image_projection"]) == {"kernel"}
    pooled = np.float64(patches).mean(axis=1) @ params_64["image_hidden"]["kernel"]
    gelu = np.asarray(jax.nn.gelu(jnp.asarray(pooled), approximate=False), np.float64)
    z = gelu @ params_64["image_projection"]["kernel"]
    np.testing.assert_allclose(v, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-5)


def test_what_the_names_of_text_encoders_mean() -> None:
    found = {}
    for name, changes in TEXT.items():
        module: Any = encoders.text_encoder(tiny.config(**changes).model)
        style = module.variant
        found[name] = (module.embed_scale, style.norm, style.first_norm, style.final_norm, style.causal)
    assert found == {
        "transformer": (True, "pre", False, True, False),
        "bert": (False, "post", True, False, False),
        "clip": (False, "pre", False, True, True),
    }
