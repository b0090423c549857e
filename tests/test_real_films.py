"""The benchmark of real films: which rows are compared, and how much of a patch is lung."""

import io
from types import ModuleType

import numpy as np
import pytest
from conftest import load_benchmark
from PIL import Image

from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError


@pytest.fixture(scope="module")
def films() -> ModuleType:
    return load_benchmark("real_films")


def film(name: str, **labels: LabelState) -> Example:
    return Example(
        id=name, image=b"", source="site", split="test", patient=name, study=name, findings="", impression="",
        entities=(), labels=labels,
    )  # fmt: skip


def test_rows_of_a_task_are_labelled_on_one_side(films):
    present, absent = LabelState.PRESENT, LabelState.ABSENT
    examples = [
        film("a", viral_pneumonia=present, bacterial_pneumonia=absent),
        film("b", viral_pneumonia=absent, bacterial_pneumonia=present),
        film("c", viral_pneumonia=absent, no_finding=present),
        film("d", viral_pneumonia=LabelState.UNCERTAIN),
    ]
    rows = films.Rows(examples, [], np.zeros((4, 1)))
    for task, numbers, labels in (
        (films.Task("viral_pneumonia", ""), [0, 1, 2], [1, 0, 0]),
        (films.Task("viral_pneumonia", "bacterial_pneumonia"), [0, 1], [1, 0]),
        (films.Task("viral_pneumonia", "no_finding"), [0, 2], [1, 0]),
    ):
        found = rows.of(task)
        assert [part.tolist() for part in found] == [numbers, labels]


def test_a_finding_needs_rows_on_both_sides(films):
    sick = [film(f"s{i}", pneumonia=LabelState.PRESENT, mass=LabelState.ABSENT) for i in range(films.FEWEST)]
    well = [film(f"w{i}", pneumonia=LabelState.ABSENT, mass=LabelState.ABSENT) for i in range(films.FEWEST)]
    rows = films.Rows(sick + well, [], np.zeros((40, 1)))
    fewer = films.Rows(sick + well[1:], [], np.zeros((39, 1)))
    assert list(films.tasks_of(films.Site("site", rows, rows), ())) == [films.Task("pneumonia", "")]
    assert not list(films.tasks_of(films.Site("site", rows, fewer), ()))


def test_shares_of_lung_are_of_the_padded_square(films, tmp_path):
    white = np.zeros((40, 80), np.uint8)
    white[:, :40] = 255  # the left half of a wide film: the padded square has 20 black rows above and below
    picture = io.BytesIO()
    Image.fromarray(white).save(picture, "PNG")
    (tmp_path / "a.png").write_bytes(picture.getvalue())
    numbers, shares = films.lung_shares([film("b.jpg"), film("a.jpg")], tmp_path, 4)
    assert numbers == [1]
    assert shares.reshape(4, 4).tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(UserError, match="no lung mask"):
        films.lung_shares([film("b.jpg")], tmp_path, 4)
