"""A checkpoint gives back what was saved, to the bit; damage falls back to the one before."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from mmclip_jax import sharding
from mmclip_jax.checkpoints import (
    Checkpoints,
    abstract_like,
    bit_sums,
    check_same_settings,
    find_checkpoint,
    run_record,
)
from mmclip_jax.checkpoints.digests import _digest
from mmclip_jax.errors import DamagedCheckpointError, TrainingError, UserError
from mmclip_jax.state import TrainState
from mmclip_jax.train import optim, step

pytestmark = pytest.mark.compiles

TOKENIZER = bytes(range(256))


def make_state(number: int, ema: float = 0.999, **changes: Any) -> TrainState:
    """A state with other values in every leaf, as after `number` steps."""
    config = tiny.config(optimizer__ema=ema, **changes)
    model = tiny.build_model(config.model)
    optimizer = optim.make_optimizer(config.optimizer, 10)
    shapes = jax.eval_shape(lambda: step.init_state(model, config, optimizer))
    rng = np.random.default_rng(number)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 100, x.dtype), shapes)
    return TrainState(jnp.int32(number), state.params, state.opt_state, state.ema, state.guard)


def iterator(position: int = 0) -> Any:
    out = iter(grain.MapDataset.range(100).to_iter_dataset())
    for _ in range(position):
        next(out)
    return out


def abstract(state: TrainState) -> Any:
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    return abstract_like(state, sharding.tree_shardings(state, mesh))


def run() -> dict[str, Any]:
    return run_record(tiny.config(), TOKENIZER, {"exposure": {"sources": {}}, "seed": 3})


def save(workdir: pathlib.Path, *numbers: int, keep: int = 5, **changes: Any) -> None:
    checkpoints = Checkpoints(workdir, keep)
    for number in numbers:
        checkpoints.save(make_state(number, **changes), iterator(number), run())
    checkpoints.close()


def resealed(said: dict[str, Any]) -> dict[str, Any]:
    """The item "sums" with other sums of arrays, and digests that agree with them."""
    sums = {name: value ^ 4 for name, value in said.items() if isinstance(value, int)}
    rest = sums | {"digests": said["digests"]}
    return rest | {"all": _digest(rest)}


def damage(directory: pathlib.Path) -> None:
    """Cuts every file of the parameters to half its size, as a full disk or a bad copy does."""
    files = [path for path in (directory / "params").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("ema", [0.0, 0.999])
def test_state_and_iterator_come_back_to_the_bit(tmp_path: pathlib.Path, ema: float) -> None:
    saved = make_state(7, ema)
    save(tmp_path, 3, 7, ema=ema)
    checkpoints, data = Checkpoints(tmp_path, 5), iterator()
    restored = checkpoints.restore_latest(abstract(saved), data)
    checkpoints.close()
    assert restored is not None
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(saved))
    for old, new in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)
    assert (restored.ema is None) == (ema == 0)
    assert next(data) == 7


def test_a_state_may_move_to_another_mesh(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 4)
    saved, mesh = make_state(4), sharding.make_mesh(2)
    shardings = sharding.tree_shardings(saved, mesh)
    checkpoints = Checkpoints(tmp_path, 5)
    restored = checkpoints.restore_latest(abstract_like(saved, shardings), iterator())
    checkpoints.close()
    assert restored is not None
    assert tiny.largest_difference(saved, restored) == 0
    for leaf, place in zip(jax.tree.leaves(restored), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_nothing_saved_is_none(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new", 5)
    assert checkpoints.restore_latest(abstract(make_state(0)), iterator()) is None
    checkpoints.close()


def test_only_the_newest_are_kept(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 1, 2, 3, 5, keep=2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 5]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 3, 7)
    damage(tmp_path / "checkpoints" / "7")
    checkpoints, data = Checkpoints(tmp_path, 5), iterator()
    restored = checkpoints.restore_latest(abstract(make_state(0)), data)
    assert restored is not None
    assert int(restored.step) == 3
    assert tiny.largest_difference(restored, make_state(3)) == 0
    assert next(data) == 3
    assert "checkpoint 7" in caplog.text
    checkpoints.close()


def flip_bits(directory: pathlib.Path, place: float) -> None:
    """One in every 997 bytes of the parameter data: which of them are read differs from run to run."""
    for file in (directory / "params").rglob("d/*"):
        content = bytearray(file.read_bytes())
        if len(content) > 10_000:
            for number in range(int(place * 997), len(content), 997):
                content[number] ^= 4
            file.write_bytes(content)


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8])
def test_a_flipped_bit_is_no_checkpoint_either(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], place: float
) -> None:
    save(tmp_path, 3, 7)
    flip_bits(tmp_path / "checkpoints" / "7", place)
    checkpoints, data = Checkpoints(tmp_path, 5), iterator()
    capfd.readouterr()
    restored = checkpoints.restore_latest(abstract(make_state(0)), data)
    assert restored is not None
    assert tiny.largest_difference(restored, make_state(3)) == 0
    assert next(data) == 3
    assert "checkpoint 7 cannot be read" in caplog.text
    assert len(capfd.readouterr().err.splitlines()) < 5  # Orbax alone writes thousands of lines on damage
    checkpoints.close()


@pytest.mark.parametrize(
    "how", ["flipped", "cut off", "other bits", "no record of the run", "half a record of the run"]
)
def test_a_damaged_checkpoint_is_not_evaluated_and_the_others_are_named(tmp_path: pathlib.Path, how: str) -> None:
    save(tmp_path, 3, 7, ema=0.0)
    newest = tmp_path / "checkpoints" / "7"
    if how == "flipped":
        flip_bits(newest, 0.4)
    elif how == "cut off":
        damage(newest)
    elif how == "other bits":  # than those that were saved, in files that are whole
        file = newest / "sums" / "metadata"
        file.write_text(json.dumps(resealed(json.loads(file.read_text()))))
    elif how == "no record of the run":
        shutil.rmtree(newest / "run")
    else:
        (newest / "run" / "metadata").write_text('{"config": ')
    shapes = abstract(make_state(0, 0.0)).params
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/7 is damaged .*--step \(there: \[3\]\)"):
        find_checkpoint(tmp_path).restore_params(shapes)
    expected = make_state(3, 0.0).params
    assert tiny.largest_difference(find_checkpoint(tmp_path, 3).restore_params(shapes), expected) == 0


def test_the_sum_of_the_bits_is_numpys_on_any_mesh() -> None:
    state = make_state(3)

    def expected(tree: Any) -> int:
        words = [np.asarray(x).view(np.uint32).astype(object).sum() for x in jax.tree.leaves(tree)]
        return int(sum(word * (2 * n + 1) for n, word in enumerate(words)) % 2**32)

    trees = {"params": state.params, "optimizer": state.opt_state}
    mesh = sharding.make_mesh(2)
    placed = jax.device_put(trees, sharding.tree_shardings(trees, mesh))
    for where in (trees, placed):
        assert {name: int(value) for name, value in bit_sums(where).items()} == {
            name: expected(tree) for name, tree in trees.items()
        }


WRITE_TOO_MUCH = """
import resource, sys
import test_checkpoints as t
from mmclip_jax import errors, writers
writers.configure_logging()
checkpoints = t.Checkpoints(sys.argv[1], 5)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, -1))  # fails with EFBIG where a full disk gives ENOSPC
try:
    checkpoints.save(t.make_state(7), t.iterator(7), t.run())
    checkpoints.close()
except errors.StorageError as error:
    print(error)
"""


def test_a_disk_that_is_full_is_one_line_and_the_last_checkpoint_stands(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert re.search(r"checkpoints cannot be written \(File too large\); checkpoint 3 is whole and stays", done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stderr.splitlines()) < 5, done.stderr
    checkpoints, data = Checkpoints(tmp_path, 5), iterator()
    restored = checkpoints.restore_latest(abstract(make_state(0)), data)
    assert restored is not None
    assert tiny.largest_difference(restored, make_state(3)) == 0
    assert next(data) == 3
    checkpoints.save(make_state(7), iterator(7), run())  # there is room again
    checkpoints.close()
    assert find_checkpoint(tmp_path).step == 7


def test_a_run_that_fell_back_can_save_over_the_damaged_step(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3, 7)
    damage(tmp_path / "checkpoints" / "7")
    checkpoints = Checkpoints(tmp_path, 5)
    assert int(checkpoints.restore_latest(abstract(make_state(0)), iterator()).step) == 3  # type: ignore[union-attr]
    checkpoints.save(make_state(7), iterator(7), run())
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 5)
    restored = checkpoints.restore_latest(abstract(make_state(0)), iterator())
    checkpoints.close()
    assert restored is not None
    assert int(restored.step) == 7
    assert tiny.largest_difference(restored, make_state(7)) == 0


def test_when_none_can_be_read_the_message_lists_them(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3, 7)
    for number in ("3", "7"):
        damage(tmp_path / "checkpoints" / number)
    checkpoints = Checkpoints(tmp_path, 5)
    with pytest.raises(UserError, match=r"3.*7|7.*3"):
        checkpoints.restore_latest(abstract(make_state(0)), iterator())
    checkpoints.close()


def test_another_model_size_is_refused(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3)
    wider = make_state(0, model__embed_dim=13)
    checkpoints = Checkpoints(tmp_path, 5)
    with pytest.raises(UserError, match="workdir"):
        checkpoints.restore_latest(abstract(wider), iterator())
    checkpoints.close()


def test_a_write_that_was_cut_off_is_not_a_checkpoint(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp")
    assert find_checkpoint(tmp_path).step == 3
    checkpoints = Checkpoints(tmp_path, 5)
    restored = checkpoints.restore_latest(abstract(make_state(0)), iterator())
    checkpoints.close()
    assert restored is not None
    assert int(restored.step) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Finding one


def test_a_checkpoint_says_all_about_its_run(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3, 7)
    for found, number in (
        (find_checkpoint(tmp_path), 7),
        (find_checkpoint(tmp_path, 3), 3),
        (find_checkpoint(tmp_path / "checkpoints" / "3"), 3),
        (find_checkpoint(str(tmp_path)), 7),
    ):
        assert found.step == number
        assert json.loads(found.config.to_json()) == json.loads(tiny.config().to_json())
        assert found.tokenizer_model == TOKENIZER
        assert found.manifest == {"exposure": {"sources": {}}, "seed": 3}
        expected = make_state(number)
        restored = found.restore_params(abstract(expected).ema)
        assert tiny.largest_difference(restored, expected.ema) == 0
        assert tiny.largest_difference(restored, expected.params) > 0


def test_a_setting_that_is_newer_than_the_checkpoint_has_its_default(tmp_path: pathlib.Path) -> None:
    older = run()
    del older["config"]["train"]["profile"]
    older["config"]["data"]["augment"] = {"rotate": 7.5}
    model = older["config"]["model"]
    for part in ("image", "text"):
        del model[f"{part}_head"]
        model[part] = {name: model[part][name] for name in ("width", "depth", "heads", "mlp_dim")} | {
            name: model[part][name] for name in ("length", "vocab_size") if part == "text"
        }
    checkpoints = Checkpoints(tmp_path, 5)
    checkpoints.save(make_state(3), iterator(3), older)
    checkpoints.close()
    saved, expected = find_checkpoint(tmp_path), tiny.config()
    found = saved.config
    assert tiny.build_model(found.model) == tiny.build_model(expected.model)
    assert json.loads(found.model.to_json()) == json.loads(expected.model.to_json())
    assert found.train == expected.train
    assert found.data.augment.to_dict() == expected.data.augment.to_dict() | {"rotate": 7.5}


def test_a_step_directory_is_enough_wherever_it_is_copied(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "run", 7, ema=0.0)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "7", tmp_path / "released")
    found = find_checkpoint(tmp_path / "released")
    expected = make_state(7, 0.0)
    assert tiny.largest_difference(found.restore_params(abstract(expected).params), expected.params) == 0


def test_what_another_version_saved_is_refused(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path, 5)
    checkpoints.save(make_state(3), iterator(3), run() | {"schema": 0})
    checkpoints.close()
    with pytest.raises(UserError, match=r"schema 0, .*reads 3.*manifest\.json"):
        find_checkpoint(tmp_path)


# Going on


def test_another_number_of_steps_needs_a_flag_and_says_what_stretches(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 3)
    for steps in (50, 200):
        with pytest.raises(UserError, match=rf"run of 100 steps, not {steps}: .*random masks would stretch.*--stretch"):
            check_same_settings(tmp_path, tiny.config(train__steps=steps))
    assert "instead of" not in caplog.text
    check_same_settings(tmp_path, tiny.config(train__steps=200), stretch=True)
    assert "200 steps instead of 100" in caplog.text


def test_what_was_cut_off_before_the_first_checkpoint_does_not_block_a_run(tmp_path: pathlib.Path) -> None:
    """Neither the settings nor the state of something unfinished count; the leftover goes when the run saves."""
    save(tmp_path, 3)
    whole = tmp_path / "checkpoints" / "3"
    shutil.rmtree(whole / "optimizer")
    whole.rename(tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp")
    check_same_settings(tmp_path, tiny.config(optimizer__peak_lr=0.5))
    checkpoints, data = Checkpoints(tmp_path, 5), iterator(2)
    assert checkpoints.restore_latest(abstract(make_state(3)), data) is None
    checkpoints.save(make_state(3), data, run())
    checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert find_checkpoint(tmp_path).step == 3


def test_whatever_fails_where_the_workdir_is_gone_is_called_so(tmp_path: pathlib.Path) -> None:
    gone = False

    def guard() -> None:
        if gone:
            raise TrainingError("the workdir was moved or removed")

    checkpoints = Checkpoints(tmp_path / "run", 5, guard)
    checkpoints.save(make_state(3), iterator(3), run())
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "run", 5, guard)
    gone = True
    for call in (lambda: checkpoints.save(make_state(4), iterator(4), run()), checkpoints.close):
        with pytest.raises(TrainingError, match="moved or removed"):
            call()


def test_a_missing_average_is_an_error_and_not_the_parameters(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "ema")
    with pytest.raises(DamagedCheckpointError):
        find_checkpoint(tmp_path).restore_params(abstract(make_state(3)).params)


def test_a_checkpoint_of_the_schema_before_is_read(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path, 5)
    checkpoints.save(make_state(3), iterator(3), run() | {"schema": 2})
    checkpoints.close()
    file = tmp_path / "checkpoints" / "3" / "sums" / "metadata"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({name: said[name] for name in ("params", "ema", "optimizer")}))
    found, expected = find_checkpoint(tmp_path), make_state(3)
    assert tiny.largest_difference(found.restore_params(abstract(expected).params), expected.ema) == 0
    checkpoints = Checkpoints(tmp_path, 5)
    assert checkpoints.restore_latest(abstract(expected), iterator()) is not None
    checkpoints.close()


@pytest.mark.parametrize("item", ["run", "data"])
@pytest.mark.parametrize("how", ["another value", "cut off", "another type"])
def test_settings_tokenizer_manifest_and_position_are_those_that_were_saved(
    tmp_path: pathlib.Path, item: str, how: str
) -> None:
    save(tmp_path, 3, 7)
    file = tmp_path / "checkpoints" / "7" / item / "metadata"
    text = file.read_text()
    place = text.index("AAECAwQF") + 8 if item == "run" else next(i for i, c in enumerate(text) if c.isdigit())
    one = "9" if text[place] != "9" else "8"
    changed = {"another value": text[:place] + one + text[place + 1 :], "cut off": text[:-5], "another type": "[7]"}
    file.write_text(changed[how])
    checkpoints, data = Checkpoints(tmp_path, 5), iterator()
    restored = checkpoints.restore_latest(abstract(make_state(7)), data)
    checkpoints.close()
    assert restored is not None
    assert (int(restored.step), next(data)) == (3, 3)
    if item == "run":
        with pytest.raises(DamagedCheckpointError, match=r"there: \[3\]"):
            find_checkpoint(tmp_path)


def test_a_new_run_may_have_any_settings(tmp_path: pathlib.Path) -> None:
    check_same_settings(tmp_path, tiny.config())


def test_settings_that_change_the_experiment_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3)
    check_same_settings(tmp_path, tiny.config())
    harmless = {"train__steps": 200, "optimizer__accumulate": 2, "data__threads": 3, "model__remat": True}
    check_same_settings(tmp_path, tiny.config(**harmless, train__log_every=7), stretch=True)
    changes = {"optimizer__peak_lr": 0.5, "objective__attmim__hint": 0.3, "model__embed_dim": 11}
    with pytest.raises(UserError) as error:
        check_same_settings(tmp_path, tiny.config(**harmless, **changes), stretch=True)
    assert "optimizer.peak_lr=0.5 (was 0.0001)" in str(error.value)
    assert "objective.attmim.hint=0.3 (was 0.1)" in str(error.value)
    assert "model.embed_dim=11 (was 7)" in str(error.value)
    assert str(error.value).count("(was") == 3


@pytest.mark.parametrize("what", ["missing", "empty", "no steps", "other step"])
def test_what_is_missing_is_said(tmp_path: pathlib.Path, what: str) -> None:
    number = None
    if what == "missing":
        tmp_path = tmp_path / "nowhere"
    elif what == "no steps":
        (tmp_path / "checkpoints").mkdir()
    elif what == "other step":
        save(tmp_path, 3)
        number = 4
    with pytest.raises(UserError, match="3" if number else str(tmp_path)):
        find_checkpoint(tmp_path, number)
