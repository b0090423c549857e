"""The mmclip command: its errors, its help, configs and overrides, and one small run from end to end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from mmclip_jax import cli, settings
from mmclip_jax import config as config_lib
from mmclip_jax.errors import LostProcessError, PreemptedError, TrainingError, UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from mmclip_jax.config import default_config
def get_config(arg="plain"):
    config = default_config()
    config.data.update({"tokenizer": arg, "train": ("a",), "paired_weights": (0.5, 0.5)})
    config.train.update({"steps": 7, "spike": 1.5})
    config.model.remat = True
    config.init.image = None
    return config
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes are one line on stderr and exit status 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "which command? data, tokenizer, config"),
        ("trian", "there is no command 'trian'; did you mean train?"),
        ("data", "which command? build, inspect, info"),
        ("data biuld", "there is no command 'biuld'; did you mean build?"),
        ("data build tabel", "there is no command 'tabel'; did you mean table?"),
        ("data build phantom --data-dri x", "there is no option --data-dri; did you mean --data-dir?"),
        ("data build phantom --data-dir x --seed one", "--seed: invalid int value: 'one'"),
        ("data build phantom", "the following arguments are required: --data-dir"),
        ("data build table --data-dir x --report-colum findings", "did you mean --report-column?"),
        ("data info /no/such/place", "/no/such/place does not exist"),
        ("tokenizer train --data /no/such --out t.model", "/no/such does not exist"),
        ("train --confg x --workdir w", "there is no option --confg; did you mean --config?"),
        ("train --config demo", "the following arguments are required: --workdir"),
        ("train --workdir {empty}", "empty holds no run to go on with: begin one with --config NAME, such as"),
        ("plan --topology v5e:16x16", "the following arguments are required: --config"),
        ("train --config configs/nothing.py --workdir w", "there is no file configs/nothing.py"),
        ("train --config demmo --workdir w", "there is no config demmo; did you mean demo?"),
        ("plan --config vitb16 --topology v5e:16x16", "no config vitb16; did you mean mmclip_vitb16?"),
        ("ablate --config zebra:runlocal --study s --workdir w", "The package has demo, mmclip_vitb16, real_small"),
        ("demo --config other/demo.py --workdir w", "there is no file other/demo.py; did you mean demo?"),
        ("train --config {config} --workdir w more", "unrecognized arguments: more"),
        ("train --config {config} --workdir s3://bucket/run", "s3://bucket/run: of all addresses only gs://BUCKET"),
        ("data build phantom --data-dir gs://bucket/data", "gs://bucket/data is an address"),
        ("demo --scale=--", "argument --scale: '--' is no value"),
        ("train --config {config} --workdir w --config.train.stpes=3", "did you mean train.steps?"),
        ("train --config {config} --workdir w --config.seeed 3", "there is no setting seeed; did you mean seed?"),
        ("train --config {config} --workdir w --config.zebra=3", "no setting zebra; mmclip config demo lists them"),
        ("train --config {config} --workdir w --config.optimizer.lr=3", "did you mean optimizer.peak_lr?"),
        ("config demo --config.batch_size=3", "did you mean data.batch_paired or data.batch_unpaired?"),
        ("config demmo", "there is no config demmo; did you mean demo?"),
        ("config nothing.yaml", "there is no file nothing.yaml"),
        ("config --config.seed=3", "--config.seed=3 changes a configuration: say which"),
        ("train --config {config} --workdir w --config.init.image=3", "init.image is None, which tells no type"),
        ("train --config {config} --workdir w --config.train=3", "train is a group of settings"),
        ("train --config {config} --workdir w --config.train.steps=1.5", "expected a whole number, such as 7"),
        ("train --config {config} --workdir w --config.train.spike fast", "expected a number, such as 1.5"),
        ("train --config {config} --workdir w --config.model.remat=maybe", "expected true or false, such as True"),
        ("train --config {config} --workdir w --config.train.steps", "Missing value for flag --config.train.steps"),
        ("train --config {config} --workdir w --process 1", "--coordinator, --processes and --process belong together"),
        ("train --config {config} --workdir w --pod --process 1", "--pod finds the other processes by itself"),
        ("evaluate --model /no/such --data /", "/no/such does not exist"),
        ("evaluate --model / --data / --split tset", "invalid choice: 'tset'"),
        ("compare /", "/ has no results.json"),
        ("evaluate --model {empty} --data {empty}", "holds no checkpoints"),
        ("predict /no/image.png --model /", "/no/image.png does not exist"),
        ("predict {config} --model / --findings pneumonia,plague", "plague"),
        ("predict {config} --model {empty}", "holds no checkpoints"),
        ("ablate --config {config} --study masking --seeds 0,x --workdir w", "is not a list of whole numbers"),
        ("evaluate --model w --config.train.steps=3", "there is no option --config.train.steps"),
    ],
)
def test_mistakes(line, message, config, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main(line.format(config=config, empty=empty).split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("mmclip")
    assert out == ""


@pytest.mark.parametrize(
    ("line", "old", "said"),
    [
        ("evaluate --workdir {} --data {}", "--workdir", "evaluate --model {} --data {}"),
        ("evaluate --data {} --workdir={}", "--workdir", "evaluate --data {} --model={}"),
        ("predict --workdir {} --step 3 {}", "--workdir", "predict --model {} --step 3 {}"),
        ("evaluate --referee none --checkpoint {} --data {} --out x", "--referee",
         "evaluate --external none --checkpoint {} --data {} --out x"),
        ("finetune --checkpoint {} --data {} --workdir w", "--checkpoint", "finetune --model {} --data {} --workdir w"),
    ],
)  # fmt: skip
def test_former_names_of_options_work_and_say_the_new_one(line, old, said, tmp_path, monkeypatch, capsys):
    given: list[Any] = []
    for command in ("evaluate", "predict", "finetune"):
        monkeypatch.setattr(getattr(cli, command), f"_{command}", given.append)
    words, new = line.format(tmp_path, tmp_path), said.format(tmp_path, tmp_path)
    assert cli.main(words.split()) == 0
    command = words.split()[0]
    name = next(word.partition("=")[0] for word in new.split() if word.startswith(("--model", "--external")))
    assert capsys.readouterr().err == f"mmclip {command}: {old} is now {name}: mmclip {new}\n"
    assert cli.main(new.split()) == 0
    assert capsys.readouterr().err == ""
    assert vars(given[0]) == vars(given[1])  # the same arguments to the letter


@pytest.mark.parametrize(
    ("command", "first", "option"),
    [
        ("evaluate", "{} --data {}", "--data {} --model {}"),
        ("finetune", "{} --data {} --workdir w", "--workdir w --data {} --model={}"),
        ("serve", "{} --port 0 --beside {}", "--port 0 --model {} --beside {}"),
        ("serve", "--port 0 {}", "--port 0 --model={}"),
        ("export", "{} --to numpy out", "--to numpy out --model {}"),
        ("export", "{} out --to numpy", "--model {} --to numpy out"),
    ],
)
def test_a_run_is_named_first_or_by_model(command, first, option, tmp_path, monkeypatch, capsys):
    given: list[Any] = []
    monkeypatch.setattr(getattr(cli, command), f"_{command}", given.append)
    for words in (first, option):
        assert cli.main([command, *words.format(tmp_path, tmp_path).split()]) == 0, capsys.readouterr().err
    one, two = ({k: v for k, v in vars(each).items() if k != "parser"} for each in given)
    assert one == two
    assert str(tmp_path) in (str(one.get("model")), str(one.get("checkpoint")))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict a.png b.png --model . --csv {}/a.png", "argument --csv: {}/a.png ends like an image"),
        ("predict a.png --model . --json {}", "argument --json: {} is a folder: name the file"),
        ("embed a.png --model . --out {}", "argument --out: {} is a folder: name the file"),
        ("data info {} --html {}/a.JPEG", "argument --html: {}/a.JPEG ends like an image"),
        ("data audit {} --out {}/a.dcm", "argument --out: {}/a.dcm ends like an image"),
        ("tokenizer train --data {} --out {}", "argument --out: {} is a folder: name the file"),
        ("predict {}/film --model . --csv {}/film", "{}/film is one of the images: name another file"),
        ("predict {}/film --model . --heatmaps {}/film", "--heatmaps {}/film is a file: name a folder"),
        ("predict a.png --model . --csv {}/" + 300 * "x", "File name too long"),
    ],
)  # fmt: skip
def test_outputs_never_overwrite_images(line, said, tmp_path, capsys):
    film = tmp_path / "film"
    film.write_bytes(b"not read yet")
    assert cli.main(line.replace("{}", str(tmp_path)).split()) == 2
    err = capsys.readouterr().err
    assert said.replace("{}", str(tmp_path)) in err
    assert err.count("\n") == 1
    assert film.read_bytes() == b"not read yet"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("serve --model", "mmclip serve: argument --model: expected one argument"),
        ("serve --model --port 0", "mmclip serve: argument --model: expected one argument"),
        ("serve --model=", "mmclip serve: argument --model: expected one argument"),
        ("serve --model {} --model {}", "the run is named twice by --model"),
        ("serve {} --model {}", "unrecognized arguments: {}"),
        ("evaluate {} --model {}", "the run is named twice, as {} and by --model"),
        ("finetune {} --checkpoint {} --data {} --workdir w", "the run is named twice, as {} and by --model"),
        ("predict a.png --model . --format json", "there is no option --format: write --csv FILE, --json FILE or"),
    ],
)  # fmt: skip
def test_a_run_is_named_once(line, said, tmp_path, capsys):
    assert cli.main(line.replace("{}", str(tmp_path)).split()) == 2
    err = capsys.readouterr().err
    assert said.replace("{}", str(tmp_path)) in err.splitlines()[-1]


def test_a_former_name_behind_two_dashes_is_no_option(tmp_path, capsys):
    assert cli.main(["predict", "--model", str(tmp_path), "--", "--workdir"]) == 2
    assert capsys.readouterr().err == ("mmclip: --workdir does not exist\n")


def test_a_process_number_that_cannot_be_is_one_line(config, tmp_path):
    """In a process of its own: JAX says something else where its devices are in use already, as in a test process."""
    line = f"train --config {config} --workdir {tmp_path} --coordinator h:1 --processes 2 --process 2"
    run = subprocess.run(
        [sys.executable, "-m", "mmclip_jax.cli", *line.split()], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 2
    assert run.stderr.startswith("mmclip: --process 2 is none of --processes 2")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x =\n", "bad.py, line 1: invalid syntax"),
        ("x = 1", "defines get_config(argument)"),
        ("def get_config(arg=''): return {}", "returned a dict instead of a ConfigDict"),
        (
            "from mmclip_jax.errors import UserError\ndef get_config(arg=''): raise UserError('no variant ' + arg)",
            "no variant big",
        ),
    ],
)
def test_config_files_that_are_none(content, message, tmp_path, capsys):
    file = tmp_path / "bad.py"
    file.write_text(content)
    assert cli.main(["train", "--config", f"{file}:big", "--workdir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_mistake_as_a_process_has_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mmclip_jax.cli", "data", "info", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mmclip: ")
    assert done.stderr.count("\n") == 1
    assert "mmclip data build" in done.stderr  # the remedy


# ---------------------------------------------------------------------------------------------------------------------
# Other ways to end


def _run_as(monkeypatch, error: BaseException | None) -> None:
    """Makes `mmclip data info` end in this way."""

    def run(args):
        if error is not None:
            raise error

    monkeypatch.setattr(cli.data, "_info", run)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("two\nlines"), 2, "mmclip: two lines\n"),
        (TrainingError("not finite"), 1, "mmclip: not finite\n"),
        (PreemptedError("saved"), 75, "mmclip: saved\n"),
        (KeyboardInterrupt(), 130, "mmclip: interrupted\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "mmclip: /x: Permission denied\n"),
        (None, 0, ""),
    ],
)
def test_exit_statuses(monkeypatch, capsys, error, status, line, tmp_path):
    _run_as(monkeypatch, error)
    assert cli.main(["data", "info", str(tmp_path)]) == status
    assert capsys.readouterr().err == line


def test_a_process_that_lost_another_ends_at_once_without_what_waits_for_it(monkeypatch, capsys, tmp_path):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    _run_as(monkeypatch, LostProcessError("lost"))
    cli.main(["data", "info", str(tmp_path)])
    assert ended == [75]
    assert capsys.readouterr().err == "mmclip: lost\n"


@pytest.mark.parametrize("bug", [ValueError("a bug"), FileNotFoundError(2, "No such file", "inside")])
def test_bugs_are_one_line_and_keep_their_traceback_in_a_file(monkeypatch, bug, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _run_as(monkeypatch, bug)
    assert cli.main(["data", "info", str(tmp_path)]) == 1
    (file,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert said.startswith(f"mmclip: unexpected {type(bug).__name__}: ")
    assert f"{file} has the traceback" in said
    assert said.count("\n") == 1
    assert "in run\n    raise error\n" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0  # a traceback may quote what the data hold
    monkeypatch.setenv("MMCLIP_TRACEBACK", "0")
    assert cli.main(["data", "info", str(tmp_path), "--debug"]) == 1
    assert "in run\n    raise error\n" in capsys.readouterr().err


def test_a_terminal_without_the_characters_is_no_reason_to_fail():
    code = """
        import sys
        from mmclip_jax import cli
        cli.data._info = lambda args: print("\\u00b1 \\u65e5")
        sys.exit(cli.main(["data", "info", "."]))
    """
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\\xb1 \\u65e5\n"), done.stderr


def test_a_long_message_of_a_bug_is_cut(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _run_as(monkeypatch, KeyError("report " * 1000))
    assert cli.main(["data", "info", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err) < 400


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files", "x.so"),
        ImportError("libx.so: cannot open shared object file: Too many open files"),
        ValueError("[os_error_code='24'] Too many open files"),
    ],
)
def test_too_many_open_files_are_called_so_whoever_says_it(monkeypatch, tmp_path, capsys, error):
    wrapped = RuntimeError("the pool broke")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        _run_as(monkeypatch, each)
        assert cli.main(["data", "info", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert (
            said
            == "mmclip: too many files are open at once: raise the limit (ulimit -n 4096) and run the command again\n"
        )


def test_forty_file_descriptors_are_refused_in_one_line(tmp_path):
    command = f"ulimit -n 40; exec {sys.executable} -m mmclip_jax.cli data info {tmp_path}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mmclip: only 40 files may be open at once here")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["swallowed", "in native code"])
def test_an_interrupt_that_is_swallowed_ends_the_process_all_the_same(how):
    """As in a compilation: no instruction of Python's for a while, or a callback of a library that drops errors."""
    code = """
        import ctypes, sys, time
        from mmclip_jax import cli, ends
        ends.GRACE_SECONDS = 0.5
        def wait(args):
            print("waiting", flush=True)
            if sys.argv[1] == "in native code":
                mutex = (ctypes.c_char * 64)()
                for _ in range(2):  # the second never returns, and no signal wakes it
                    ctypes.CDLL(None).pthread_mutex_lock(mutex)
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    pass
        cli.data._info = wait
        sys.exit(cli.main(["data", "info", "."]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "mmclip: interrupted\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--coordinator 127.0.0.1 --processes 2 --process 0", "give HOST:PORT"),
        ("--coordinator :8476 --processes 2 --process 0", "give HOST:PORT"),
        ("--coordinator host:99999 --processes 2 --process 0", "give HOST:PORT"),
        ("--coordinator http://host:1 --processes 2 --process 0", "give HOST:PORT"),
        ("--coordinator host:8476 --processes 2 --process 2", "--process 2 is none of --processes 2"),
        ("--coordinator host:8476 --processes 0 --process 0", "0 is not at least 1"),
    ],
)
def test_other_processes_that_cannot_be_are_refused_before_they_are_waited_for(words, said, config, capsys):
    assert cli.main(["train", "--config", config, "--workdir", "w", *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [KeyError("SLURM_NTASKS"), ValueError("no coordinator."), IndexError("n1["), TypeError()]
)
def test_half_a_cluster_is_one_line(monkeypatch, config, capsys, error):
    """What JAX's readers of SLURM's and Open MPI's variables raise where some of them are not set."""
    from mmclip_jax import sharding

    def join(*told):
        raise error

    monkeypatch.setattr(sharding, "join_processes", join)
    assert cli.main(["train", "--config", config, "--workdir", "w", "--pod"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mmclip: --pod finds no cluster around it (")
    assert err.count("\n") == 1


def test_what_an_interrupt_leaves_behind_is_not_freed_first(tmp_path):
    """As the deep tree of a compilation, at which a library crashes when the traceback goes."""
    code = """
        import os, sys, time
        from mmclip_jax import cli
        class Crashes:
            def __del__(self):
                os._exit(139)
        def wait(args):
            kept = Crashes()
            print("waiting", flush=True)
            time.sleep(60)
        cli.data._info = wait
        sys.exit(cli.main(["data", "info", "."]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "mmclip: interrupted\n")


def test_interrupt_of_a_process_is_130_and_one_line(tmp_path):
    code = """
        import sys, time
        from mmclip_jax import cli
        def wait(args):
            print("waiting", flush=True)
            time.sleep(60)
        cli.data._info = wait
        sys.exit(cli.main(["data", "info", "."]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "mmclip: interrupted\n")


def test_a_reader_that_goes_away_gives_no_traceback():
    code = """
        import sys
        from mmclip_jax import cli
        cli.data._info = lambda args: [print("x" * 1000) for _ in range(10000)]
        sys.exit(cli.main(["data", "info", "."]))
    """
    script = f"{sys.executable} - <<'END' | head -n 1\n{textwrap.dedent(code)}\nEND\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "x" * 1000 + "\n"
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# Help


@pytest.mark.parametrize(
    "command",
    ["", "data", "data build", "data build phantom", "data build table", "data info", "tokenizer", "tokenizer train",
     "train", "config", "completion", "evaluate", "compare", "predict", "embed", "export", "ablate", "demo"],
)  # fmt: skip
def test_every_command_has_help(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: mmclip {command}".rstrip())
    assert "None" not in out


def test_help_is_quick():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mmclip_jax.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - start < 1.0


def test_version(capsys):
    import mmclip_jax

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmclip-jax {mmclip_jax.__version__}\n"


def test_every_option_of_the_table_builder_is_a_flag(monkeypatch, tmp_path, capsys):
    import dataclasses

    from mmclip_jax.data.builders import table
    from mmclip_jax.data.builders.table_options import TableOptions

    seen: dict[str, Any] = {}

    def build_table(options, data_dir, *, overwrite, progress, make):
        seen.update(options=options, data_dir=data_dir, overwrite=overwrite)
        return "built"

    monkeypatch.setattr(table, "build_table", build_table)
    line = [
        "data",
        "build",
        "table",
        "--data-dir",
        str(tmp_path),
        "--table",
        "t.csv",
        "--images",
        "i",
        "--name",
        "mine",
    ]
    assert cli.main(line) == 0
    assert capsys.readouterr().out == "built\n"
    assert seen["options"] == TableOptions(table="t.csv", images="i", name="mine")  # the flags' defaults are its own
    assert not seen["overwrite"]
    more = ["--shares", "0.5,0.25,0.25", "--views", "PA, AP", "--no-absent-if-unlisted", "--shorter-side", "128",
            "--max-reject-share", "0.5", "--overwrite"]  # fmt: skip
    assert cli.main([*line, *more]) == 0
    expected = TableOptions(table="t.csv", images="i", name="mine", shares=(0.5, 0.25, 0.25), views=("PA", "AP"),
                                  absent_if_unlisted=False, shorter_side=128, max_reject_share=0.5)  # fmt: skip
    assert seen["options"] == expected
    assert seen["overwrite"]
    assert cli.main(["data", "build", "table", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in text for field in dataclasses.fields(TableOptions))


# ---------------------------------------------------------------------------------------------------------------------
# Configs


@pytest.mark.parametrize("name", ["demo", "demo:runlocal", "mmclip_vitb16", "real_small:some/folder"])
def test_configs_of_the_package_are_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    stem, _, argument = name.partition(":")
    by_path = settings.read_config(f"{ROOT}/configs/{stem}.py:{argument}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a user's folder, which is no config
    assert settings.read_config(name) == by_path


def test_the_packages_configs_are_those_beside_it_or_inside(tmp_path, monkeypatch):
    """As in a checkout, and as a wheel lays them; a folder that an environment has of others is not looked at then."""
    assert {path.name for path in settings.packaged_configs().values()} == {
        path.name for path in (ROOT / "configs").glob("*.py")
    }
    package = tmp_path / "mmclip_jax"
    for folder, name in ((package / "configs", "ours"), (tmp_path / "configs", "others")):
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(CONFIG)
    monkeypatch.setattr(settings, "_PACKAGE", package)
    assert list(settings.packaged_configs()) == ["ours"]
    assert settings.read_config("ours").data.tokenizer == "plain"


def test_config_with_argument_and_overrides(config):
    plain = settings.read_config(config)
    assert (plain.data.tokenizer, plain.train.steps, plain.is_locked) == ("plain", 7, True)
    changed = settings.read_config(
        f"{config}:big",
        ["--config.train.steps=9", "--config.train.spike=2", "--noconfig.model.remat", "--config.data.train=x/y",
         "--config.data.train=z", "--config.data.paired_weights=(0.25, 0.75)"],
    )  # fmt: skip
    assert changed.data.tokenizer == "big"
    assert (changed.train.steps, changed.train.spike, changed.model.remat) == (9, 2.0, False)
    assert type(changed.train.spike) is float
    assert changed.data.train == ("x/y", "z")
    assert changed.data.paired_weights == (0.25, 0.75)
    assert settings.read_config(config).train.steps == 7


@pytest.mark.parametrize(
    ("words", "rest", "overrides"),
    [
        ("--config c --config.a.b=1 --workdir w", "--config c --workdir w", ["--config.a.b=1"]),
        ("--config.a.b 1 --workdir w", "--workdir w", ["--config.a.b=1"]),
        ("--config.a.b -1 --workdir w", "--workdir w", ["--config.a.b=-1"]),
        ("--config.a.b --workdir w", "--workdir w", ["--config.a.b"]),
        ("--noconfig.a.b --config.c=", "", ["--noconfig.a.b", "--config.c="]),
    ],
)
def test_overrides_are_told_from_other_arguments(words, rest, overrides):
    assert cli.entry._split_overrides(words.split()) == (rest.split(), overrides)


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "configs").glob("*.py")))
def test_every_config_takes_an_override_of_every_number(file):
    path = str(ROOT / "configs" / file)
    keys = config_lib.flat(settings.read_config(path))
    numbers = {key: value for key, value in keys.items() if type(value) in (int, float)}
    assert numbers
    changed = config_lib.flat(
        settings.read_config(path, [f"--config.{key}={value + 1}" for key, value in numbers.items()])
    )
    assert {key: changed[key] for key in numbers} == {key: value + 1 for key, value in numbers.items()}


# ---------------------------------------------------------------------------------------------------------------------
# From end to end


def _mmclip(*words: object, cwd: Path, status: int = 0) -> str:
    """Runs the command as a user does; returns its standard output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "mmclip_jax.cli", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_small_run_from_build_to_prediction(tmp_path):
    built = Path(_mmclip("data", "build", "phantom", "--data-dir", "data", "--scale", "0.02", cwd=tmp_path).strip())
    assert "phantom" in _mmclip("data", "info", built, cwd=tmp_path)
    out = _mmclip("tokenizer", "train", "--data", built, "--vocab-size", 400, "--out", "t.model", cwd=tmp_path)
    assert out == "t.model: 400 pieces\n"
    config = f"{ROOT}/configs/demo.py:runlocal"
    settings = {"data.train": built, "data.tokenizer": "t.model", "train.steps": 4, "train.log_every": 2}
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    _mmclip("train", "--config", config, "--workdir", "run", *overrides, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (70, 53), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise[:64, :41]).save(tmp_path / "b.jpg")
    said = json.loads(_mmclip("predict", "a.png", "b.jpg", "--model", "run", "--findings", "pleural effusion,edema",
                              "--json", "-", cwd=tmp_path))  # fmt: skip
    assert said["step"] == 4
    assert [image["image"] for image in said["images"]] == ["a.png", "b.jpg"]
    assert all(set(image["findings"]) == {"pleural effusion", "edema"} for image in said["images"])
    assert all(0 < p["probability"] < 1 for image in said["images"] for p in image["findings"].values())
    assert "artificial X-rays alone" in said["domain"]
    table = _mmclip("predict", "a.png", "--model", "run", cwd=tmp_path)
    assert table.startswith("a.png\n")
    assert "pneumothorax" in table
    out = _mmclip("evaluate", "--model", "run", "--data", built, "--split", "validation", cwd=tmp_path)
    assert "report.html" in out
    assert (tmp_path / "run" / "evaluation" / "4-validation" / "report.html").exists()
    _mmclip("evaluate", "--model", "run", "--data", built, "--step", 3, cwd=tmp_path, status=2)


def test_the_demo_says_which_settings_were_given(tmp_path, monkeypatch):
    """Weights that a run starts from do not change them."""
    from mmclip_jax.cli import demo
    from mmclip_jax.evaluate import run as evaluation
    from mmclip_jax.train import run as training

    said = {}
    monkeypatch.setattr(demo, "build_phantom", lambda *args: tmp_path / "phantom")
    monkeypatch.setattr(training, "train", lambda config, workdir, **more: said.update(more))
    monkeypatch.setattr(evaluation, "run", lambda *args, **more: "")
    words = ["--config", f"{ROOT}/configs/demo.py", "--workdir", str(tmp_path / "run"), "--config.model.image.depth=5"]
    assert cli.main(["demo", *words]) == 0
    assert said == {"given": {"model.image.depth"}}
