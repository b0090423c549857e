"""Any Python object with encode_image and encode_text can be evaluated; what is none is refused in a line."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny

from mmclip_jax import cli
from mmclip_jax.errors import UserError
from mmclip_jax.external import own


class Colours:
    """Embeds an image by its mean and its size, a text by its length: enough to see what goes where."""

    logit_scale = 7.5

    def encode_image(self, images: Sequence[np.ndarray]) -> list[list[float]]:
        return [[float(image.mean()), float(image.shape[0]), 1.0] for image in images]

    def encode_text(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text)), 3.0, 2.0] for text in texts]


def test_embeddings_are_normalised_and_its_scale_is_taken() -> None:
    model = own.OwnModel(Colours(), "mine.py:make")  # type: ignore[arg-type]
    grey = [np.full((5, 7), 40, np.uint8), np.full((11, 3), 0, np.uint8)]
    wanted = np.array([[40, 5, 1], [0, 11, 1]]) / np.sqrt([[40**2 + 26], [122]])
    np.testing.assert_allclose(model.encode_image(grey), wanted, rtol=1e-6)
    assert (model.logit_scale, model.embed_dim, model.members) == (7.5, 3, [(slice(0, 3), 7.5)])
    assert model.encode_image(grey).dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encode_image": None}, "without encode_image"),
        (
            {"encode_text": lambda texts: np.ones(3)},
            r"encode_text of 1 gave an array of float64 \[3\], not",
        ),
        ({"encode_text": lambda texts: [["a"]]}, "not numbers"),
        ({"encode_text": lambda texts: [[np.nan, 1.0]]}, "not finite, or of length 0"),
        ({"encode_text": lambda texts: [[0.0, 0.0]]}, "not finite, or of length 0"),
        ({"logit_scale": "x"}, "its logit_scale is no number"),
    ],
)
def test_objects_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    thing: Any = Colours()
    for name, value in changes.items():
        setattr(thing, name, value)
    with pytest.raises(UserError, match=message):
        own.OwnModel(thing, "mine.py:make")


def test_images_of_another_length_than_texts() -> None:
    thing: Any = Colours()
    thing.encode_image = lambda images: np.ones((len(images), 2))
    with pytest.raises(UserError, match=r"encode_image of 2 gave an array of float64 \[2, 2\], not numbers \[2, 3\]"):
        own.OwnModel(thing, "mine.py:make").encode_image([np.zeros((2, 2), np.uint8)] * 2)


def test_files_that_give_no_model(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    for content, spec, message in [
        (None, f"{file}:make", "there is no such file"),
        ("x = 1", str(file), "needs the function that gives the model"),
        ("x = 1", f"{file}:make", "has no function make"),
        ("def make(:", f"{file}:make", "line 1: "),
        ("def make(): return 3", f"{file}:make", "gives a int without encode_image"),
    ]:
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            own.open_own(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.compiles
def test_our_own_model_as_an_object_scores_the_same(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.save_run(tmp_path / "run", [3])
    (tmp_path / "mine.py").write_text(f"import mmclip_jax\ndef make(): return mmclip_jax.load({str(run)!r})\n")
    data = ["--data", str(phantom_dir)]
    assert cli.main(["evaluate", "--model", str(run), *data, "--out", str(tmp_path / "ours")]) == 0
    external = ["evaluate", "--external", f"{tmp_path / 'mine.py'}:make", *data]
    assert cli.main([*external, "--out", str(tmp_path / "theirs")]) == 0
    assert "Another program's model: mine.py:make" in capsys.readouterr().out
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("ours", "theirs"))
    assert ours["headline"]["macro_auroc"] == pytest.approx(theirs["headline"]["macro_auroc"], abs=1e-9)
    assert theirs["checkpoint"]["external"]["spec"].endswith("mine.py:make")
    assert "unknown: not trained by this software" in (tmp_path / "theirs" / "report.html").read_text()
    assert cli.main([*external, "--checkpoint", str(run), "--out", str(tmp_path / "no")]) == 2
    assert "an object of a Python file brings its own" in capsys.readouterr().err


def test_results_from_before_have_their_old_name() -> None:
    from mmclip_jax.evaluate.report import comparison

    assert comparison._external({"referee": {"spec": "chexzero"}}) == {"spec": "chexzero"}
    assert comparison._external({"external": None}) is None
