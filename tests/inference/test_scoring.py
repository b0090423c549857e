import numpy as np
import pytest
import toy

from mmclip_jax.errors import UserError
from mmclip_jax.inference import scoring


def test_prompts_are_averaged_and_normalised() -> None:
    model = toy.ToyModel()
    positive, negative = scoring.prompt_embeddings(model, toy.KINDS[:3])
    np.testing.assert_allclose(np.linalg.norm(positive, axis=1), 1.0)
    images = model.encode_image([toy.plant([9999, 0, 5000, 7, 9])])
    scores = scoring.score_images(images, positive, negative)
    np.testing.assert_allclose(scores["difference"], images @ (positive - negative).T, atol=1e-7)
    assert scores["difference"][0, 0] > scores["difference"][0, 2] > scores["difference"][0, 1]


def test_the_mean_of_prompts_that_point_elsewhere_is_normalised() -> None:
    """Templates of other directions: their mean is shorter than 1, and by a different length for each finding."""

    class Scattered(toy.ToyModel):
        def encode_text(self, texts):  # type: ignore[no-untyped-def]
            rng = [np.random.default_rng(list(text.encode())) for text in texts]
            made = np.stack([draw.normal(size=7) for draw in rng])
            return made / np.linalg.norm(made, axis=1, keepdims=True)

    model = Scattered()
    embedded = scoring.embed_prompts(model, toy.KINDS[:3])
    for polarity, got in enumerate(scoring.prompt_embeddings(model, toy.KINDS[:3])):
        means = np.stack([texts[polarity].mean(axis=0) for texts in embedded])
        lengths = np.linalg.norm(means, axis=1)
        assert (lengths < 0.95).all()
        assert np.ptp(lengths) > 1e-3
        np.testing.assert_allclose(got, means / lengths[:, np.newaxis], atol=1e-12)


def test_a_finding_beside_its_denial_and_no_finding_is_a_softmax_of_three() -> None:
    model = toy.ToyModel()
    images = model.encode_image([toy.plant([9999, 0, 5000, 7, 9]), toy.plant([0, 200, 5000, 9999, 9])])
    positive, negative = scoring.prompt_embeddings(model, [*toy.KINDS[:2], "no_finding"])
    scores = scoring.score_beside_normal(model, images, toy.KINDS[:2])
    for row, image in enumerate(images.astype(np.float64)):
        for k in range(2):
            weights = np.exp(
                model.logit_scale * np.array([image @ positive[k], image @ negative[k], image @ positive[2]])
            )
            chance = weights[0] / weights.sum()
            assert scores[row, k] == pytest.approx(np.log(chance / (1 - chance)) / model.logit_scale, abs=1e-6)
    with pytest.raises(UserError, match="compares with"):
        scoring.score_beside_normal(model, images, ["edema", "no finding"])
