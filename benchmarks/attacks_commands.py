"""Kinds of attacks on whole commands: numbers, locales, signals, folders that two want, launch scripts."""

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attacks import ROOT, Attacker, Outcomes, as_test, clear, kind, of_tests, refused

NUMBERS = (
    "x",
    "-1",
    "1e400",
    "nan",
    "-inf",
    "1_000",
    "٣",
    "0x1",
    "08x",
    "1.5.2",
    "",
    " ",
    "9" * 5000,
    "1e9",
    "--",
    "²",
    "1,2",
    "True",
    "None",
)
REFUSED = (2,)


def _said(words: Sequence[str]) -> tuple[int, str]:
    """(exit status, what was printed) of a command, called in this process."""
    from mmclip_jax import cli

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = cli.main(list(words))
    return status, text.getvalue()


def _one_line(words: Sequence[str], statuses: Sequence[int] = REFUSED) -> str:
    """What went wrong: "" if a command ends with one of these, one line, and no traceback."""
    try:
        status, text = _said(words)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if status not in statuses:
        return f"status {status}: {text[-200:]}"
    if "Traceback" in text or "unexpected" in text or len(text.strip().splitlines()) > 1:
        return f"said {text[-200:]}"
    return ""


def _commands(parser: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, parser) of every command that does something."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield words, parser
    for action in inner:
        for name, each in action.choices.items():
            yield from _commands(each, (*words, name))


@kind("numbers of the command line", "refused in one line before anything is read")
def numbers(attacker: Attacker) -> Outcomes:
    """Every option that takes a number: words, signs, other digits, infinities, thousands of digits."""
    from mmclip_jax.cli import entry

    tried = []
    for words, parser in _commands(entry.make_parser()):
        for action in parser._actions:
            name = getattr(action.type, "__name__", type(action.type).__name__)
            if action.option_strings and (
                name in ("int", "float", "Number", "Numbers") or "whole" in repr(action.type)
            ):
                tried += [(words, action.option_strings[-1], value) for value in NUMBERS]
    for words, option, value in attacker.some(tried, 25):
        # "1e9" and "9" * 5000 are numbers to some; other arguments are missing then, which is one line, too.
        yield f"{' '.join(words)} {option} {value[:9]!r}", _one_line([*words, f"{option}={value}"])


@kind("overrides of settings", "refused in one line that names the setting")
def overrides(attacker: Attacker) -> Outcomes:
    """`--config.name=` with every kind of value for every number; names that are none."""
    from mmclip_jax import settings
    from mmclip_jax.config import default_config, flat

    config = str(ROOT / "configs" / "demo.py")
    names = [name for name, value in flat(default_config()).items() if isinstance(value, int | float)]
    tried = [
        (name, value) for name in names for value in ("x", "nan", "1e400", "-inf", "[1]", "None", "'", "1;2", "9" * 400)
    ]
    tried += [
        (name, "1")
        for name in ("", ".", "train", "train.", "x.y.z", "__class__", "train.steps.x", "model.image.__dict__")
    ]
    for name, value in attacker.some(tried, 25):

        def read(name: str = name, value: str = value) -> None:
            from mmclip_jax import ranges
            from mmclip_jax.check import setting_ranges

            ranges.check(flat(settings.read_config(config, [f"--config.{name}={value}"])), setting_ranges())

        yield f"{name}={value[:9]}", clear(read)


@kind("numbers of fine-tuning", "refused before anything is read; the message names the setting")
def finetuning(attacker: Attacker) -> Outcomes:
    """Every setting of `finetune` out of its range."""
    import dataclasses

    from mmclip_jax.finetune import task as task_lib

    make: Callable[..., Any] = task_lib.Settings
    for field in dataclasses.fields(task_lib.Settings):
        for value in (float("nan"), -1, -0.5, 10**12, "x", object(), float("inf"), [], (-1,), (float("nan"),), True):
            name = f"{field.name}={value!r:.20}"
            yield name, _checked(functools.partial(make, **{field.name: value}))


def _checked(make: Callable[[], Any]) -> str:
    """Settings are refused when they are made, or stand in their range; nothing else may be raised."""

    def call() -> None:
        made = make()
        check = getattr(made, "check", None)
        if check is not None:
            check()

    return clear(call)


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def _environment(**more: str) -> dict[str, str]:
    flags = "--xla_backend_optimization_level=0"
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | more


@kind("other locales", "everything is read and written as UTF-8")
def locales(attacker: Attacker) -> Outcomes:
    """Builds, describes and audits a table with names and reports in other letters under LANG=C and ISO 8859-1."""
    data = of_tests("attacks_data")
    data._pictures(attacker.folder / "images", 3)
    rows = [
        ["image", "patient_id", "report"],
        *([f"{n}.png", f"Zoë-日{n}", f"No effusion at 5 µm of Zoë {n}, café."] for n in range(3)),
    ]
    table = data._table(attacker.folder / "täble.csv", rows)
    code = """
        import sys
        from mmclip_jax import cli
        table, images, out, page, pairs = sys.argv[1:]  # names in bytes that the locale cannot read
        flags = ["--images", images, "--name", "mine", "--data-dir", out, "--workers", "1"]
        status = cli.main(["data", "build", "table", "--table", table, *flags])
        assert status == 0, status
        status = cli.main(["data", "info", out, "--html", page, "--show-text"])
        status = status or cli.main(
            ["data", "audit", out + ":train", "--against", out + ":validation", "--out", pairs]
        )
        from mmclip_jax.data import records
        from mmclip_jax.data.schema import SPLITS
        texts = {e.text for split in SPLITS for e in records.open_records(out, split, "paired")}
        assert all("5 µm of Zoë" in text for text in texts) and len(texts) == 3, texts
        assert "Zoë" in open(page, encoding="utf-8").read()
        sys.exit(status)
    """
    script = attacker.folder / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    for name in attacker.some(("C", "POSIX", "en_US.ISO-8859-1", "C.UTF-8", "nonsense", ""), 1):
        for more in ({}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
            out = attacker.folder / f"out-{name}-{len(more)}"
            env = {key: value for key, value in _environment(LANG=name, LC_ALL=name, **more).items() if value}
            words = [sys.executable, str(script), str(table), str(attacker.folder / "images"), str(out)]
            words += [f"{out}/é.html", f"{out}/ß.csv"]
            done = subprocess.run(words, env=env, capture_output=True, text=True, errors="replace", check=False)
            yield (
                f"LANG={name} {more}",
                "" if done.returncode == 0 else f"{done.returncode}: {(done.stderr.splitlines() or [''])[-1][-300:]}",
            )
    yield "the source", as_test(of_tests("test_package").test_text_files_are_utf_8_whatever_the_locale)


@kind("interrupts", "status 130 and one line, even if other code swallows the interrupt")
def interrupts(attacker: Attacker) -> Outcomes:
    """Ctrl-C in Python, in native code, in what swallows it, and several times."""
    tests = of_tests("test_cli")
    yield "waiting", as_test(tests.test_interrupt_of_a_process_is_130_and_one_line, attacker.folder)
    for how in ("swallowed", "in native code"):
        for number in range(1 if attacker.short else 3):
            yield (
                f"{how} {number}",
                as_test(tests.test_an_interrupt_that_is_swallowed_ends_the_process_all_the_same, how),
            )
    compiling = """
        import sys
        from mmclip_jax import cli
        from mmclip_jax.cli import data
        def compiles(args):
            import jax, jax.numpy as jnp
            def f(x):
                return [jnp.sin(x @ x + n) @ jnp.ones((9, 2 + n % 50)) for n in range(600)]
            traced = jax.jit(f).lower(jnp.ones((9, 9)))
            print("compiling", flush=True)
            traced.compile()
        data._info = compiles
        sys.exit(cli.main(["data", "info", "."]))
    """
    for number in range(1 if attacker.short else 3):
        yield f"compiling {number}", _interrupted(compiling, 0.2 * (number + 1))


def _interrupted(code: str, after: float) -> str:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        return "hangs"
    lines = [line for line in said.splitlines() if line]
    return (
        ""
        if process.returncode == 130 and lines[-1:] == ["mmclip: interrupted"]
        else f"{process.returncode}: {said[-200:]}"
    )


@kind("two processes in one folder", "the second is told which process is there; no work is lost or mixed")
def together(attacker: Attacker) -> Outcomes:
    """Locks of living and killed processes; two evaluations into one folder, and into folders of like names."""
    locks, each = of_tests("test_locks"), of_tests("test_files")
    for number in range(2 if attacker.short else 8):
        folder = attacker.folder / str(number)
        folder.mkdir()
        yield (
            f"kill {number}",
            as_test(locks.test_a_second_process_is_told_who_is_there_and_kill_leaves_no_block, folder),
        )
    from mmclip_jax import files

    for number, name in enumerate(("eval", "eval.b", ".eval", "eval.unfinished", "eval b", "Eval")):
        here, there = attacker.folder / "eval", attacker.folder / f"{name}"
        with contextlib.ExitStack() as stack:
            try:
                one = stack.enter_context(files.whole_folder(here, "results.json"))
                other = stack.enter_context(files.whole_folder(there, "results.json"))
                for folder, word in ((one, "one"), (other, "other")):
                    for file in ("a.csv", "results.json"):
                        (folder / file).write_text(word, encoding="utf-8")
                stack.close()
                content = {file.read_text(encoding="utf-8") for file in (here / "a.csv", here / "results.json")}
                found = "" if len(content) == 1 and (there / "results.json").exists() else f"mixed: {content}"
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
        yield f"eval and {name} {number}", found
    for test in (
        locks.test_two_writers_of_one_folder_both_finish_and_nothing_is_mixed,
        each.test_kill_leaves_the_old_results_and_the_next_run_clears_up,
    ):
        folder = attacker.folder / test.__name__
        folder.mkdir()
        yield test.__name__.removeprefix("test_").replace("_", " "), as_test(test, folder)


@kind("evaluations of another split or other data", "they get a folder of their own, or are refused")
def splits(attacker: Attacker) -> Outcomes:
    """Test results are not overwritten by those of another split, whatever stands in the file that says so."""
    from mmclip_jax.evaluate import run as evaluation

    sets = (("phantom",), ("openi",), ("phantom", "openi"), ())
    written = [(split, names) for split in ("train", "validation", "test") for names in sets]
    for split, names in written:
        for other, others in attacker.some(written, 2):
            out = attacker.folder / "out"
            out.mkdir(exist_ok=True)
            results = {"data": {"split": split, "sets": [{"name": name} for name in names]}}
            (out / "results.json").write_text(json.dumps(results), encoding="utf-8")
            check = functools.partial(evaluation.check_not_another, out, other, list(others))
            same = split == other and sorted(names) == sorted(others)
            yield (
                f"{other} of {others} over {split} of {names}",
                clear(check) if same else refused(check, "holds results of"),
            )


@kind(
    "leftovers of a first checkpoint, folders that go",
    "skipped, or the message says that the folder is gone; no run is blocked",
)
def leftovers(attacker: Attacker) -> Outcomes:
    """Cut off at every item; files and folders of other names; a workdir that is removed, moved or made read-only."""
    made = of_tests("test_checkpoints")
    for test in (
        made.test_what_was_cut_off_before_the_first_checkpoint_does_not_block_a_run,
        made.test_whatever_fails_where_the_workdir_is_gone_is_called_so,
    ):
        folder = attacker.folder / test.__name__
        folder.mkdir()
        yield test.__name__.removeprefix("test_").replace("_", " "), as_test(test, folder)
    whole = attacker.folder / "whole"
    made.save(whole, 3)
    items = sorted(path.name for path in (whole / "checkpoints" / "3").iterdir())
    names = ("3.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1234", "x", ".3", "3.unfinished", "-3", "03x")
    for name in names:
        for item in attacker.chance.sample(items, 1 if attacker.short else 2):
            copy = attacker.folder / "copy"
            shutil.copytree(whole, copy)
            place = copy / "checkpoints" / "3"
            shutil.rmtree(place / item) if (place / item).is_dir() else (place / item).unlink()
            place.rename(copy / "checkpoints" / name)
            yield f"{name} without {item}", _begins_anew(made, copy)
            shutil.rmtree(copy)


def _begins_anew(made: Any, workdir: pathlib.Path) -> str:
    from mmclip_jax.checkpoints import Checkpoints, check_same_settings, find_checkpoint

    def call() -> None:
        check_same_settings(workdir, made.tiny.config())
        kept, data = Checkpoints(workdir, 5), made.iterator(2)
        try:
            assert kept.restore_latest(made.abstract(made.make_state(3)), data) is None
            kept.save(made.make_state(3), data, made.run())
        finally:
            kept.close()
        assert find_checkpoint(workdir).step == 3

    return clear(call)


@kind("numbers of launch scripts", "read in base 10, or refused in one line")
def launch(attacker: Attacker) -> Outcomes:
    """08, 0x1, signs, blanks, expressions of the shell: in each option of each script that takes a number."""
    tests = of_tests("test_launch")
    values = (
        "0x1",
        "-1",
        "1.5",
        "",
        " ",
        "1e3",
        "$(touch ran)",
        "`touch ran`",
        "a[$(touch ran)]",
        "9" * 20,
        "x",
        "+1",
        "1;2",
        "٣",
    )
    options = {
        tests.POD: ("--attempts", "--poll"),
        tests.SLURM: ("--requeues",),
        tests.GKE: ("--hosts", "--attempts"),
        tests.LOCAL: ("--port", "--devices"),
    }
    for script, names in options.items():
        text = script.read_text(encoding="utf-8")
        for name in names:
            if f"{name})" not in text and f"{name} " not in text:
                continue
            base = {
                "tpu_pod.sh": ["down", "--name", "n", "--zone", "z", "--dry-run"],
                "local_multiprocess.sh": ["2", "--dry-run"],
            }.get(script.name, [])
            if script.name == "gke.sh":
                base = ["up", "--name", "n", "--image", "i", "--accelerator", "a", "--topology", "2x2", "--dry-run"]
                base += [] if name == "--hosts" else ["--hosts", "1"]
            rest = ["--", "--config", "x"] if script.name != "tpu_pod.sh" else []
            for value in attacker.some([value for value in values if value or name != "--port"], 3):  # "": a free port
                yield (
                    f"{script.name} {name} {value!r}",
                    _script(tests, script, [*base, name, value, *rest], attacker.folder),
                )


def _script(tests: Any, script: pathlib.Path, words: list[str], folder: pathlib.Path) -> str:
    done = subprocess.run([str(script), *words], capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    if (folder / "ran").exists():
        return "ran what stood in a number"
    return "" if done.returncode == 2 and done.stderr.count("\n") == 1 else f"{done.returncode}: {done.stderr[-200:]}"
