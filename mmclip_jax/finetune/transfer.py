"""The runs of a transfer: one classifier for a fraction and a seed, on the loop of pre-training."""

import dataclasses
import functools
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mmclip_jax import files, sharding, writers
from mmclip_jax.checkpoints import (
    FOLDER,
    Checkpoints,
    Saved,
    abstract_like,
    check_same_settings,
    find_checkpoint,
    run_record,
    save_alone,
    with_defaults,
)
from mmclip_jax.data import pipeline
from mmclip_jax.data.images import transforms
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.rows import Progress, Split
from mmclip_jax.finetune import head as head_lib
from mmclip_jax.finetune import keep
from mmclip_jax.finetune import scores as scores_lib
from mmclip_jax.finetune.task import DEFAULTS, Settings, Task
from mmclip_jax.finetune.training_rows import Features, ImageRow, Images, Source, as_it_is
from mmclip_jax.inference import classifier as classifier_lib
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.state import TrainState
from mmclip_jax.train import flags, loop, optim
from mmclip_jax.train import step as step_lib

_RESULT, _SCORES = "result.json", "scores.npz"


@dataclasses.dataclass(frozen=True)
class Made:
    """A finished run: its summary for results.json, and the scores [n, K] of the scored split."""

    summary: dict[str, Any]
    scores: np.ndarray


class Transfer:
    """Runs of one checkpoint on one task; what they share is computed once."""

    def __init__(
        self,
        saved: Saved,
        tokenizer_model: bytes,
        task: Task,
        mesh: jax.sharding.Mesh,
        settings: Settings,
        workdir: epath.Path,
        progress: Progress,
        check_folder: Callable[[], None] = lambda: None,
    ):
        self._check_folder = check_folder
        self._saved, self._tokenizer_model, self._task, self._mesh = saved, tokenizer_model, task, mesh
        self._settings, self._workdir, self._progress = settings, workdir, progress
        self._model = build_model(saved.config.model)
        shapes = jax.eval_shape(lambda: init_params(self._model, saved.config.model, 0))
        params = saved.restore_params(abstract_like(shapes, sharding.tree_shardings(shapes, mesh)))
        self._encoder = classifier_lib.encoder_of(params)
        self._features: dict[str, np.ndarray] = {}
        self._compiled: tuple[Any, ...] = ()

    def run(self, fraction: float, rows: np.ndarray, seed: int) -> Made:
        """Trains on these training rows, or takes over what is finished.

        Raises:
          UserError: the folder holds a run with other settings.
        """
        folder = self._workdir / self._settings.mode / f"fraction_{fraction:g}" / f"seed_{seed}"
        config = self._config(fraction, rows, seed)
        key = json.loads(config.to_json())
        if (folder / _RESULT).exists():
            again = "delete it, and the run is made again"
            result = files.read_json(folder / _RESULT, again, ("config", "summary"))
            made_with = result["config"]
            if not isinstance(made_with, dict) or json.loads(with_defaults(made_with).to_json()) != key:
                raise UserError(
                    f"{folder} holds a finished run with other settings: give another --workdir, or delete it"
                )
            try:
                scores = np.load(io.BytesIO((folder / _SCORES).read_bytes()), allow_pickle=False)["scores"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{folder / _SCORES} is damaged ({error}): delete {_RESULT} beside it, too") from error
            return Made(result["summary"], scores)
        logging.info("%s on %g %% (%d images), seed %d", self._settings.mode, 100 * fraction, len(rows), seed)
        summary, scores = self._train(config, fraction, rows, seed, folder)
        self._check_folder()
        if jax.process_index() == 0:
            stream = io.BytesIO()
            scored = self._task.scored.examples
            ids, sources = (np.array([getattr(each, name) for each in scored]) for name in ("id", "source"))
            np.savez(stream, scores=scores, labels=self._task.scored_labels, ids=ids, sources=sources)
            files.write_whole(folder / _SCORES, stream.getvalue())
            files.write_whole(folder / _RESULT, json.dumps({"config": key, "summary": summary}, indent=1) + "\n")
            if not self._settings.keep_checkpoints:
                (folder / FOLDER).rmtree()
        return Made(summary, scores)

    def _config(self, fraction: float, rows: np.ndarray, seed: int) -> ConfigDict:
        """The run's settings: those of the checkpoint's model, with an optimizer and a length of its own."""
        settings, config = self._settings, ConfigDict(json.loads(self._saved.config.to_json()))
        defaults = DEFAULTS[settings.mode]
        epochs = settings.epochs or defaults["epochs"]
        steps = settings.steps or max(settings.least_steps, round(epochs * len(rows) / settings.batch))
        config.seed = seed
        config.data.batch_paired, config.data.batch_unpaired = settings.batch, 0
        config.data.workers = settings.workers
        config.optimizer.update({"b1": 0.9, "b2": 0.999, "eps": 1e-8, "warmup_share": 0.1, "ema": 0.0, "accumulate": 1})
        config.optimizer.peak_lr = settings.peak_lr or defaults["peak_lr"]
        config.optimizer.weight_decay = defaults["weight_decay"] if settings.weight_decay < 0 else settings.weight_decay
        every = max(1, steps // settings.evaluations)
        config.train.update(
            {
                "steps": steps,
                "log_every": every,
                "evaluate_every": every,
                "checkpoint_every": -1,
                "keep": 1,
                "profile": 0,
                "compiler_options": "",  # those of pre-training may be of another platform
            }
        )
        config.finetune = ConfigDict(
            {
                "mode": settings.mode,
                "task": settings.task,
                "fraction": float(fraction),
                "images": len(rows),
                "findings": list(self._task.findings),
                "uncertain": settings.uncertain,
                "layer_decay": settings.layer_decay if settings.mode == "full" else 1.0,
                "head_rate": settings.head_rate if settings.mode == "full" else 1.0,
                "patience": settings.patience,
                "checkpoint": {"step": self._saved.step, "seed": self._saved.config.seed, "data": _prints(self._saved)},
                "data": [str(data["fingerprint"]) for data in self._task.train.sets],
                "scored": [self._task.scored.name, len(self._task.scored)],
            }
        )
        return config

    def _train(
        self, config: ConfigDict, fraction: float, rows: np.ndarray, seed: int, folder: epath.Path
    ) -> tuple[dict[str, Any], np.ndarray]:
        task, mesh, settings = self._task, self._mesh, self._settings
        source, make_row, inputs = self._inputs(config, rows)
        iterator = self._iterator(source, make_row, rows, config)
        initial, shardings, shapes, train_step, predict = self._programs(config)

        # Resume: state, data order and the history of validation scores.
        check_same_settings(folder, config)
        checkpoints = Checkpoints(folder, config.train.keep, self._check_folder)
        state = checkpoints.restore_latest(abstract_like(shapes, shardings), iterator)
        history: list[list[float]] = []
        if state is None:
            state = initial(self._encoder if settings.mode == "full" else {}, jnp.uint32(seed))
        else:
            history += [entry for entry in find_checkpoint(folder).manifest["history"] if entry[0] <= int(state.step)]
        manifest = {"history": history, "pretraining": self._saved.manifest}
        run = run_record(config, self._tokenizer_model, manifest)
        labels, sources = task.validation_labels, [example.source for example in task.validation.examples]

        def enough() -> bool:
            best = _best(history)
            return best is not None and len(history) - 1 - history.index(best) >= settings.patience

        def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float], bool]:
            scores = predict(state.params, inputs["validation"], len(labels))
            value, best = scores_lib.macro_auroc(labels, scores, sources), _best(history)
            if best is None or value > best[1]:
                state = dataclasses.replace(state, ema=_copy(state.params))  # type: ignore[type-var]
            history.append([int(state.step), value])
            writer.flush()
            checkpoints.save(state, iterator, run)
            return state, {"evaluation/macro_auroc": value}, enough()

        if enough():  # it was cut off after its last step
            config.train.steps = int(state.step)
        writer = writers.create_writer(str(folder), step=int(state.step), primary=jax.process_index() == 0)
        writer.write_hparams(run["config"])
        state, _ = loop.fit(
            train_step, state, iterator, mesh, config, str(folder), run, checkpoints, writer, evaluate
        )  # fmt: skip
        best = _best(history)
        assert best is not None
        summary = {
            "seed": seed,
            "steps": int(state.step),
            "planned_steps": int(run["config"]["train"]["steps"]),
            "best_step": int(best[0]),
            "validation_macro_auroc": best[1],
        }
        if not settings.discard_classifiers:
            scores = predict(state.ema, inputs["validation"], len(labels))
            self._keep(config, fraction, rows, summary, state.ema, scores, folder)
        return summary, predict(state.ema, inputs["scored"], len(task.scored)).astype(np.float64)

    def _keep(
        self,
        config: ConfigDict,
        fraction: float,
        rows: np.ndarray,
        summary: dict[str, Any],
        params: Any,
        scores: np.ndarray,
        folder: epath.Path,
    ) -> None:
        """Writes the classifier of the best parameters; scores: theirs [n, K] of the validation rows."""
        task, settings = self._task, self._settings
        if settings.mode == "probe":
            mean, sd = self._standards(rows)
            head = keep.fold(sharding.on_host(params["head"]), mean.astype(np.float64), sd.astype(np.float64))
            params = self._encoder | {"head": jax.device_put(head, sharding.replicated(self._mesh))}
        z = np.asarray(scores, np.float64)
        chances = z if settings.task == "multi-class" else np.exp(-np.logaddexp(0.0, -z))
        table = keep.choose_thresholds(task.validation_labels, chances, task.validation.patients, task.findings)
        if refused := keep.refused_text(table):
            logging.warning("%s", refused)
        manifest = keep.manifest_of(self._saved, task, settings, fraction, rows, summary, table)
        self._check_folder()
        run = run_record(config, self._tokenizer_model, manifest)
        save_alone(folder / classifier_lib.FOLDER, params, run)

    def _standards(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [D] of the features of these training rows."""
        features = self._all_features()["train"][rows]
        return features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)

    def _iterator(self, source: Source, make_row: Any, rows: np.ndarray, config: ConfigDict) -> pipeline.TrainIterator:
        """The batches of a run, in the order of its seed."""
        settings, examples = self._settings, self._task.train.examples
        return pipeline.make_row_iterator(
            source,
            make_row,
            [examples[row].id for row in rows],
            batch=settings.batch,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads if settings.mode == "full" else 1,
            workers=settings.workers if settings.mode == "full" else 0,
        )

    def _inputs(self, config: ConfigDict, rows: np.ndarray) -> tuple[Source, Any, dict[str, Any]]:
        """(source of training rows, what makes rows of it, {split: row numbers -> input of the classifier})."""
        task = self._task
        if self._settings.mode == "full":
            size = config.model.image_size

            def images(split: Split, numbers: np.ndarray) -> dict[str, np.ndarray]:
                return {"image": np.stack([transforms.fit_image(pixels, size) for pixels in split.pixels(numbers)])}

            made = Images(task.train, rows, task.targets[rows])
            inputs = {
                name: functools.partial(images, split)
                for name, split in (("validation", task.validation), ("scored", task.scored))
            }
            augment = pipeline.plain(config.data.augment)
            return Source(made.at, len(rows)), ImageRow(size, augment), inputs
        features = self._all_features()
        mean, sd = self._standards(rows)

        def standardized(name: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
            return {"features": (features[name][numbers] - mean) / sd}

        held = Features(standardized("train", rows)["features"], task.targets[rows])
        inputs = {name: functools.partial(standardized, name) for name in ("validation", "scored")}
        return Source(held.at, len(rows)), as_it_is, inputs

    def _all_features(self) -> dict[str, np.ndarray]:
        """Features [n, D] of the frozen encoder for every split; of training rows that nobody asks for, zeros."""
        if not self._features:
            largest = self._task.fraction(max(self._settings.fractions))[0]
            size = self._saved.config.model.image_size
            forward = jax.jit(functools.partial(head_lib.pool, self._model))
            for name, split, rows in (
                ("train", self._task.train, largest),
                ("validation", self._task.validation, np.arange(len(self._task.validation))),
                ("scored", self._task.scored, np.arange(len(self._task.scored))),
            ):

                def images(numbers: np.ndarray, split: Split = split, rows: np.ndarray = rows) -> dict[str, np.ndarray]:
                    return {"image": np.stack([transforms.fit_image(p, size) for p in split.pixels(rows[numbers])])}

                def compute(batch: dict[str, jax.Array]) -> jax.Array:
                    return forward(self._encoder, batch["image"])

                with self._progress.bar(f"features of {name} images", len(rows)) as done:
                    found = sharding.map_rows(compute, images, len(rows), self._mesh, self._settings.batch, done)
                self._features[name] = np.zeros((len(split), found.shape[1]), np.float32)
                self._features[name][rows] = found
        return self._features

    def _programs(self, config: ConfigDict) -> tuple[Any, ...]:
        """(initial state, shardings, shapes, train step, predict), compiled once for all seeds of a fraction."""
        asked = json.dumps(json.loads(config.to_json()) | {"seed": 0}, sort_keys=True)
        if self._compiled and self._compiled[0] == asked:
            return self._compiled[1:]
        encoder = self._encoder if self._settings.mode == "full" else {}
        width, findings = config.model.image.width, len(self._task.findings)
        head = {"kernel": jnp.zeros((width, findings)), "bias": jnp.zeros(findings)}
        optimizer = head_lib.make_optimizer(config, jax.eval_shape(lambda: encoder | {"head": head}))
        start = functools.partial(head_lib.make_state, width=width, findings=findings, optimizer=optimizer)
        shapes = jax.eval_shape(start, encoder, jnp.uint32(0))
        shardings = sharding.tree_shardings(shapes, self._mesh)
        loss = functools.partial(head_lib.loss_of, self._settings.task, self._model)
        schedule = optim.learning_rate(config.optimizer, config.train.steps)
        train_step = jax.jit(
            step_lib.make_update(loss, optimizer, schedule),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(self._mesh)),
            compiler_options=flags.step_options(config.train, self._mesh),
        )
        forward = jax.jit(functools.partial(head_lib.scores_of, self._settings.task, self._model))

        def initial(encoder: Any, seed: jax.Array) -> TrainState:
            with jax.set_mesh(self._mesh):
                return jax.jit(start, out_shardings=shardings)(encoder, seed)

        def predict(params: Any, make: Callable[[np.ndarray], Any], count: int) -> np.ndarray:
            return sharding.map_rows(lambda rows: forward(params, rows), make, count, self._mesh, self._settings.batch)

        self._compiled = (asked, initial, shardings, shapes, train_step, predict)
        return self._compiled[1:]


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _best(history: Sequence[list[float]]) -> list[float] | None:
    """The first entry of the highest score."""
    return max(history, key=lambda entry: entry[1]) if history else None


def _prints(saved: Saved) -> list[str]:
    return sorted(str(data["fingerprint"]) for data in saved.manifest.get("data", {}).values())
