"""`mmclip_jax.load`: one answer for every form of input, equal to a computation by hand from the parameters."""

import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import mmclip_jax
from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.models import inputs, similarity
from mmclip_jax.text import entities, prompts
from mmclip_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.compiles

Array = np.ndarray
REPORT = "There is a large left pleural effusion. No pneumothorax. The heart is enlarged."


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny.save_run(tmp_path_factory.mktemp("run"), (3, 7))


@pytest.fixture(scope="module")
def model(workdir: pathlib.Path) -> Any:
    return mmclip_jax.load(workdir)


@pytest.fixture(scope="module")
def images() -> list[Array]:
    """Three grey images of other sizes and shapes than the model's."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((64, 64), (97, 61), (31, 83))]


def apply(model: Any, method: str, *arguments: Any) -> Any:
    """A method of the module with the average of checkpoint 7, from scratch."""
    module = tiny.build_model(model.config.model)
    params = tiny.random_params(module, model.config, 107)
    return tiny.jit(lambda p, *a: module.apply({"params": p}, *a, method=method))(params, *arguments)


def pixels(images: list[Array], size: int = 64) -> jax.Array:
    return inputs.standardize(inputs.pixels(jnp.asarray(np.stack([transforms.fit_image(x, size) for x in images]))))


def png(image: Image.Image, path: pathlib.Path) -> pathlib.Path:
    image.save(path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def test_a_workdir_a_step_and_a_step_directory_load(workdir: pathlib.Path, model: Any) -> None:
    newest = model.encode_text([REPORT])
    assert model.step == 7
    earlier = mmclip_jax.load(workdir, 3)
    assert earlier.step == 3
    assert np.abs(earlier.encode_text([REPORT]) - newest).max() > 1e-3
    directory = mmclip_jax.load(str(workdir / "checkpoints" / "7"))
    assert directory.step == 7
    np.testing.assert_array_equal(directory.encode_text([REPORT]), newest)
    assert directory.manifest == {"exposure": {"sources": {}}}
    assert directory.tokenizer.vocab_size == load_tokenizer().vocab_size


@pytest.mark.parametrize(("path", "number"), [("nowhere", None), (".", None), ("run", 5)])
def test_what_is_missing_is_one_clear_line(
    workdir: pathlib.Path, tmp_path: pathlib.Path, path: str, number: int | None
) -> None:
    with pytest.raises(UserError) as error:
        mmclip_jax.load(workdir if path == "run" else tmp_path / path, number)
    assert "\n" not in str(error.value)
    assert str(number or tmp_path) in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings and scores


def test_embeddings_are_those_of_the_averaged_parameters(model: Any, images: list[Array]) -> None:
    _, expected = apply(model, "encode_image", pixels(images))
    got = model.encode_image(images)
    assert got.dtype == np.float32
    assert got.shape == (3, 32)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
    ids = load_tokenizer().encode(REPORT)[0]
    tokens = np.zeros((1, 48), np.int32)
    tokens[0, : len(ids)] = ids
    features = apply(model, "encode_text", tokens)
    np.testing.assert_allclose(
        model.encode_text([REPORT]), apply(model, "embed_text", features, tokens != 0), atol=1e-5
    )
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_answer_does_not_depend_on_the_company(model: Any, images: list[Array]) -> None:
    together = model.encode_image(images)
    for number, image in enumerate(images):
        np.testing.assert_allclose(model.encode_image([image])[0], together[number], atol=1e-6)
    many = model.encode_image([images[n % 3] for n in range(67)])  # more than one batch
    np.testing.assert_allclose(many, together[np.arange(67) % 3], atol=1e-6)
    assert model.encode_image([]).shape == (0, 32)
    assert model.encode_text([]).shape == (0, 32)


def test_grey_images_may_be_paths_pil_images_or_arrays(model: Any, images: list[Array], tmp_path: pathlib.Path) -> None:
    expected = model.encode_image(images)
    as_pil = [Image.fromarray(image) for image in images]
    as_path = [png(image, tmp_path / f"{n}.png") for n, image in enumerate(as_pil)]
    forms = {
        "PIL": as_pil,
        "path": as_path,
        "string": [str(path) for path in as_path],
        "[H,W,1]": [image[:, :, None] for image in images],
        "mixed": [as_path[0], as_pil[1], images[2]],
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(model.encode_image(form), expected, err_msg=name)


def test_a_jpeg_is_what_it_decodes_to(model: Any, images: list[Array], tmp_path: pathlib.Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(images[1]).save(stream, "JPEG", quality=80)
    path = tmp_path / "x.jpg"
    path.write_bytes(stream.getvalue())
    decoded = np.asarray(Image.open(path))
    np.testing.assert_array_equal(model.encode_image([path]), model.encode_image([decoded]))


def test_a_colour_file_is_the_same_as_its_pil_image(model: Any, images: list[Array], tmp_path: pathlib.Path) -> None:
    colour = Image.fromarray(np.stack([images[0]] * 3, axis=-1))
    path = png(colour, tmp_path / "colour.png")
    expected = model.encode_image([images[0]])
    np.testing.assert_array_equal(model.encode_image([colour]), expected)
    np.testing.assert_array_equal(model.encode_image([path]), expected)


def test_a_16_bit_pil_image_is_scaled_as_its_file_is(model: Any, images: list[Array], tmp_path: pathlib.Path) -> None:
    # Pillow's own conversion saturates at 255: nearly every pixel of a radiograph would be white.
    deep = Image.fromarray(images[0].astype(np.uint16) * 257)
    path = png(deep, tmp_path / "deep.png")
    from_file, from_image = model.encode_image([path]), model.encode_image([Image.open(path)])
    np.testing.assert_allclose(from_file, model.encode_image([images[0]]), atol=0.05)
    np.testing.assert_allclose(from_image, from_file, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [np.full((5, 5), 33, np.float32), np.zeros((3, 5, 5), np.uint8), "missing.png", pathlib.Path("missing.png"), None],
)
def test_input_that_is_no_grey_image_is_refused(model: Any, bad: Any) -> None:
    with pytest.raises(UserError, match=r"missing\.png|float32|\[3, 5, 5\]|None"):
        model.encode_image([bad])


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("encode_image", ("chest.png",)),
        ("encode_image", (pathlib.Path("chest.png"),)),
        ("encode_image", (Image.new("L", (5, 5)),)),
        ("encode_text", ("No pneumothorax.",)),
        ("zero_shot", ([], "pneumothorax")),
    ],
)
def test_one_alone_is_not_taken_for_a_list_of_letters(model: Any, method: str, arguments: Any) -> None:
    with pytest.raises(UserError, match=r"must be a list: give \["):
        getattr(model, method)(*arguments)


def test_zero_shot_is_the_softmax_over_averaged_prompts(model: Any, images: list[Array]) -> None:
    findings = ["pleural_effusion", "Pneumothorax", "no_finding"]
    scores = model.zero_shot(images, findings)
    assert list(scores) == findings
    v = np.float64(model.encode_image(images))
    for finding in findings:
        ends = []
        for texts in prompts.zero_shot_prompts(finding):
            mean = np.float64(model.encode_text(texts)).mean(axis=0)
            ends.append(v @ (mean / np.linalg.norm(mean)) / 0.07)
        expected = np.exp(ends[0]) / (np.exp(ends[0]) + np.exp(ends[1]))
        assert scores[finding].shape == (3,)
        np.testing.assert_allclose(scores[finding], expected, atol=1e-4)
        assert np.all((scores[finding] > 0) & (scores[finding] < 1))
    with pytest.raises(UserError, match="gout"):
        model.zero_shot(images, ["gout"])


# ---------------------------------------------------------------------------------------------------------------------
# Looking inside


@pytest.mark.parametrize("response", ["similarity", "cross_attention"])
def test_response_maps_are_the_methods_response(model: Any, images: list[Array], response: str) -> None:
    tokenizer = load_tokenizer()
    ids, spans = tokenizer.encode(REPORT)
    affirmed = [
        any(
            e.label in ("observation", "device") and not e.negated and e.start < end and start < e.end
            for e in entities.find_entities(REPORT)
        )
        for start, end in spans
    ]
    assert any(affirmed)
    assert not all(affirmed)
    tokens, chosen = np.zeros((1, 48), np.int32), np.zeros((1, 48), bool)
    tokens[0, : len(ids)], chosen[0, : len(ids)] = ids, affirmed
    patches, _ = apply(model, "encode_image", pixels(images[1:2]))
    features = apply(model, "encode_text", tokens)
    names = {"similarity": ("project_patches", "project_tokens")}
    if response == "similarity":
        v, u = (apply(model, name, x) for name, x in zip(names[response], (patches, features), strict=True))
    else:
        params = tiny.random_params(tiny.build_model(model.config.model), model.config, 107)
        v, u = patches @ params["response_query"]["kernel"], features @ params["response_key"]["kernel"]
    expected = similarity.text_response(v, u, jnp.asarray(chosen), model.config.objective.attmim.temperature)
    got = model.response_map(images[1], REPORT, response)
    assert got.shape == (8, 8)
    assert got.dtype == np.float32
    assert got.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(got.reshape(1, 64), expected, rtol=1e-3, atol=1e-6)


def test_response_maps_go_with_their_image_and_text(model: Any, images: list[Array]) -> None:
    texts = [REPORT, "Normal chest.", REPORT]
    maps = model.response_maps([images[0], images[0], images[2]], texts)
    assert maps.shape == (3, 8, 8)
    for number, (image, text) in enumerate(zip([images[0], images[0], images[2]], texts, strict=True)):
        np.testing.assert_allclose(maps[number], model.response_map(image, text), atol=1e-6)
    assert np.abs(maps[0] - maps[1]).max() > 1e-6
    assert model.response_map(images[0], "the of and").sum() == pytest.approx(1.0, abs=1e-5)  # no entity
    with pytest.raises(UserError, match="gaze"):
        model.response_map(images[0], REPORT, "gaze")


def test_response_maps_take_one_stacked_array_of_images(model: Any, images: list[Array]) -> None:
    stacked = np.stack([images[0], 255 - images[0], images[0]])
    expected = model.response_maps(list(stacked), [REPORT] * 3)
    np.testing.assert_array_equal(model.response_maps(stacked, [REPORT] * 3), expected)


def test_attmim_shows_the_mask_and_leaves_the_visible_patches_alone(model: Any, images: list[Array]) -> None:
    shown = model.attmim(images, [REPORT] * 3, seed=1)
    assert shown["masked"].shape == shown["response"].shape == (3, 8, 8)
    assert np.all(shown["masked"].sum(axis=(1, 2)) == 32)
    np.testing.assert_array_equal(shown["image"], np.stack([transforms.fit_image(x, 64)[..., 0] for x in images]))
    hidden = np.repeat(np.repeat(shown["masked"], 8, axis=1), 8, axis=2)
    difference = np.abs(shown["reconstruction"] - shown["image"])
    assert difference[~hidden].max() < 1e-3
    assert difference[hidden].mean() > 1
    assert shown["reconstruction"].min() >= 0
    assert shown["reconstruction"].max() <= 255
    # 29 of the 32 most responsive patches (hint 0.1 reveals three).
    for row in range(3):
        top = np.argsort(-shown["response"][row].reshape(-1))[:32]
        assert shown["masked"][row].reshape(-1)[top].sum() == 29
    again, other = model.attmim(images, [REPORT] * 3, seed=1), model.attmim(images, [REPORT] * 3, seed=2)
    np.testing.assert_array_equal(again["masked"], shown["masked"])
    assert not np.array_equal(other["masked"], shown["masked"])


def test_restoring_masks_exactly_the_tokens_of_the_entities(
    model: Any, images: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = entities.find_entities(REPORT)
    ids, spans = load_tokenizer().encode(REPORT)
    assert len(found) >= 3
    choices = [[0], list(range(len(found))), []]
    results = model.restore(images, [REPORT] * 3, choices)
    seen: list[Array] = []
    compute = model._restore

    def spy(images: Array, tokens: Array) -> Any:
        seen.append(tokens)
        return compute(images, tokens)

    monkeypatch.setitem(model.__dict__, "_restore", spy)
    again = model.restore(images, [REPORT] * 3, choices)
    for row, chosen in enumerate(choices):
        hit = np.array(
            [any(start < found[n].end and found[n].start < end for n in chosen) for start, end in spans], bool
        )
        true, restored = results[row]
        np.testing.assert_array_equal(true, np.array(ids)[hit])
        assert restored.shape == true.shape
        np.testing.assert_array_equal(seen[0][row, : len(ids)] == model.tokenizer.mask_id, hit)
        np.testing.assert_array_equal(seen[0][row, : len(ids)][~hit], np.array(ids)[~hit])
        assert not np.any(seen[0][row, len(ids) :])
        np.testing.assert_array_equal(again[row][1], restored)


def test_restored_words_use_the_image(model: Any, images: list[Array]) -> None:
    everything = [list(range(len(entities.find_entities(REPORT))))]
    restored = [model.restore([image], [REPORT], everything)[0][1] for image in images]
    assert any(not np.array_equal(restored[0], other) for other in restored[1:])


def test_arguments_that_do_not_go_together_are_refused_in_one_line(model: Any, images: list[Array]) -> None:
    for call in (
        lambda: model.response_maps(images, [REPORT]),
        lambda: model.attmim(images[:1], [REPORT] * 2),
        lambda: model.restore(images[:2], [REPORT] * 2, [[0]]),
        lambda: model.encode_image(None),
        lambda: model.encode_text(None),
        lambda: model.encode_text([None]),
        lambda: model.zero_shot(images, None),
        lambda: model.zero_shot(None, ["edema"]),
        lambda: model.response_map(images[0], None),
        lambda: model.restore(images[:1], [REPORT], [[999]]),
        lambda: model.restore(images[:1], [REPORT], [None]),
    ):
        with pytest.raises(UserError, match=r"as many of each|must be a|which is no entity's number"):
            call()
    for seed in (None, -1, 2**40, "x", 1.5):
        with pytest.raises(UserError, match=r"^seed="):
            model.attmim(images[:1], [REPORT], seed)
    assert model.attmim([], [])["masked"].shape == (0, 8, 8)
    assert model.restore([], [], []) == []
    assert model.response_maps([], []).shape == (0, 8, 8)


# ---------------------------------------------------------------------------------------------------------------------
# In a user's hands


def test_similarity_is_the_cosine_of_the_embeddings(model: Any, images: list[Array]) -> None:
    texts = [REPORT, "no acute disease"]
    v, u = np.float64(model.encode_image(images)), np.float64(model.encode_text(texts))
    expected = (v[:, None] * u[None]).sum(axis=-1) / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(u, axis=1)
    found = model.similarity(images, texts)
    assert found.shape == (3, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.similarity([], texts).shape == (0, 2)


def test_findings_in_any_words_are_scored_like_those_of_the_vocabulary(model: Any, images: list[Array]) -> None:
    own = (["A swallowed coin.", "A round metallic foreign body."], "No foreign body.")
    scores = model.zero_shot(images, {"coin": own, "edema": None, "as edema": prompts.zero_shot_prompts("edema")})
    assert list(scores) == ["coin", "edema", "as edema"]
    v = np.float64(model.encode_image(images))
    mean = np.float64(model.encode_text(own[0])).mean(axis=0)
    logits = v @ (mean / np.linalg.norm(mean)) - v @ np.float64(model.encode_text([own[1]]))[0]
    np.testing.assert_allclose(scores["coin"], 1 / (1 + np.exp(-logits / 0.07)), atol=1e-4)
    np.testing.assert_allclose(scores["edema"], model.zero_shot(images, ["edema"])["edema"], atol=1e-6)
    np.testing.assert_allclose(scores["edema"], scores["as edema"], atol=1e-6)


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ({"coin": "A coin."}, r"findings\['coin'\] must be \(texts that affirm"),
        ({"coin": (["A coin."],)}, r"findings\['coin'\] must be \(texts that affirm"),
        ({"coin": (["A coin."], [])}, "a text that denies it is needed"),
        ({"coin": (["A coin.", " "], ["No coin."])}, "a text that affirms it is needed, and none may be blank"),
        ({"coin": ([3], ["No coin."])}, "what affirms it must be a list of strings"),
        ({"": (["A coin."], ["No coin."])}, "the name of a finding is a string"),
        ({3: (["A coin."], ["No coin."])}, "the name of a finding is a string, not 3"),
        ({"gout": None}, "unknown finding 'gout'"),
    ],
)
def test_words_that_are_no_pair_of_texts_are_refused(
    model: Any, images: list[Array], findings: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        model.zero_shot(images, findings)
    assert "\n" not in str(raised.value)


def test_every_size_of_batch_gives_the_same(model: Any, images: list[Array]) -> None:
    """What is computed, by its own count of rows: 1, 2, 4, 8 … 64."""
    seen, compute = [], model._encode_image

    def spy(rows: Array) -> Any:
        seen.append(len(rows))
        return compute(rows)

    one_by_one = np.concatenate([model.encode_image([image]) for image in images])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.__dict__, "_encode_image", spy)
        for count, sizes in ((1, [1]), (2, [2]), (3, [4]), (9, [16]), (33, [64]), (66, [64, 64])):
            seen.clear()
            found = model.encode_image([images[n % 3] for n in range(count)])
            np.testing.assert_allclose(found, one_by_one[np.arange(count) % 3], atol=1e-6)
            assert seen == sizes


def test_the_figure_holds_image_map_and_words(model: Any, images: list[Array]) -> None:
    figure = model.explain(images[0], "left pleural effusion")
    assert (figure.mode, figure.width) == ("RGB", 1048)
    shown = np.asarray(figure)
    plain, mapped = shown[8:520, 8:520], shown[8:520, 528:1040]
    np.testing.assert_array_equal(plain[..., 0], transforms.fit_image(images[0], 512)[..., 0])
    assert (plain[..., 0] == plain[..., 2]).all()
    # Orange lies where the response is, and most of it at its highest patch.
    answer = model.response_map(images[0], "left pleural effusion")
    orange = (mapped[..., 0].astype(int) - mapped[..., 2]).reshape(8, 64, 8, 64).mean(axis=(1, 3))
    assert np.corrcoef(orange.ravel(), answer.ravel())[0, 1] > 0.8
    words = shown[520:]
    assert (words < 100).any()
    assert (words[-4:] > 200).all(), "the last line is whole"
    longer = model.explain(images[0], "left pleural effusion " * 40)
    assert longer.height > figure.height
    assert model.explain(images[0], "x" * 500).height > figure.height


def test_repr_and_stamp_say_what_it_is(model: Any) -> None:
    assert "\n" not in repr(model)
    for words in ("step 7", "64 px in patches of 8", "parameters", "learnt from not recorded"):
        assert words in repr(model)
