"""What is installed: versions, pins, package data, the entry point, and what must not be imported."""

import ast
import graphlib
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import mmclip_jax
from mmclip_jax import errors

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def _pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith(("#", "-r"))]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in requirements), "every line is an exact pin"
    return {_name(line): line.split("==")[1] for line in requirements}


def test_every_dependency_is_pinned_and_the_pins_are_what_runs():
    pins = _pins("requirements.txt")
    assert {_name(r) for r in PROJECT["project"]["dependencies"]} <= pins.keys()
    assert {name: metadata.version(name) for name in pins} == pins
    assert {_name(r) for r in PROJECT["project"]["optional-dependencies"]["dev"]} <= _pins(
        "requirements-dev.txt"
    ).keys()
    for extra in ("interop", "torch"):
        wanted = {_name(r) for r in PROJECT["project"]["optional-dependencies"][extra]}
        assert wanted <= _pins("requirements-interop.txt").keys()


def test_messages_name_the_packages_of_the_extras():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {extra: {_name(r) for r in extras[extra]} for extra in errors.EXTRAS} == {
        extra: set(packages) for extra, packages in errors.EXTRAS.items()
    }
    assert errors.extra("interop") == "the extra [interop] (pip install safetensors tokenizers)"


def test_pins_are_closed_over_what_the_packages_require():
    from packaging.requirements import Requirement

    pins = _pins("requirements.txt")
    for name, version in pins.items():
        for text in metadata.distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = _name(requirement.name)
                assert needed in pins, f"{name} {version} needs {text}"
                assert requirement.specifier.contains(pins[needed]), f"{name} {version} needs {text}"


def test_nothing_is_pinned_that_no_dependency_needs():
    """From the declared dependencies on, with the extras that each asks for."""
    from packaging.requirements import Requirement

    needed: set[tuple[str, str]] = set()
    open_ends = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    while open_ends:
        requirement = open_ends.pop()
        for extra in ("", *requirement.extras):
            name = _name(requirement.name)
            if (name, extra) not in needed:
                needed.add((name, extra))
                each = map(Requirement, metadata.distribution(name).requires or [])
                pythons = [{"extra": extra, "python_version": version} for version in ("3.11", "3.12")]
                open_ends += [r for r in each if r.marker is None or any(map(r.marker.evaluate, pythons))]
    assert not _pins("requirements.txt").keys() - {name for name, _ in needed}


@pytest.mark.parametrize(("extra", "module"), [("gcs", "gcsfs"), ("mlflow", "mlflow")])
def test_pins_of_an_extra_are_closed_and_fit_those_of_the_base(extra, module):
    """Against what the pinned packages say of themselves, where they are installed (make test-gcs)."""
    from packaging.requirements import Requirement

    added, pins = _pins(f"requirements-{extra}.txt"), _pins("requirements.txt")
    assert not added.keys() & pins.keys()
    pins |= added
    wanted = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"][extra]]
    assert all(requirement.specifier.contains(pins[_name(requirement.name)]) for requirement in wanted)
    pytest.importorskip(module)
    for name, version in added.items():
        assert metadata.version(name) == version
        for requirement in map(Requirement, metadata.distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                found = pins.get(_name(requirement.name), "not pinned")
                assert requirement.specifier.contains(found), f"{name} {version} needs {requirement}, not {found}"


def test_pins_of_the_serve_extra_are_closed_and_are_what_runs():
    from packaging.requirements import Requirement

    added, pins = _pins("requirements-serve.txt"), _pins("requirements.txt")
    assert not added.keys() & (pins.keys() | _pins("requirements-dev.txt").keys())
    assert "-r requirements-serve.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()
    pins |= added
    needed = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"]["serve"]]
    pytest.importorskip("starlette")
    for name, version in added.items():
        assert metadata.version(name) == version
        needed += map(Requirement, metadata.distribution(name).requires or [])
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = pins.get(_name(requirement.name), "not pinned")
            assert requirement.specifier.contains(found), f"{requirement}, not {found}"


def test_the_tpu_compiler_is_the_one_that_jax_asks_for():
    from packaging.requirements import Requirement

    (wanted,) = [
        requirement
        for requirement in map(Requirement, metadata.distribution("jax").requires or [])
        if requirement.name == "libtpu" and requirement.marker and requirement.marker.evaluate({"extra": "tpu"})
    ]
    assert wanted.specifier.contains(_pins("requirements-tpu.txt")["libtpu"])


def test_pins_for_newer_pythons_are_those_of_the_base_but_for_jax():
    base, newer = _pins("requirements.txt"), _pins("requirements-3.12.txt")
    assert newer.keys() == base.keys()
    assert {name for name in base if base[name] != newer[name]} == {"flax", "jax", "jaxlib"}


def test_no_tensorflow_and_no_torch_in_the_base():
    assert not _pins("requirements.txt").keys() & {"tensorflow", "tensorflow-cpu", "torch", "tensorboard"}


_PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "yaml": "pyyaml",
}
# Declared, and imported by none of our modules.
_NOT_IMPORTED = {
    "python-gdcm": "pydicom decodes compressed transfer syntaxes with it, where it is installed",
}


def _imported_modules() -> dict[str, str]:
    """The first names of all modules that the package imports anywhere, with a file that does."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "mmclip_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return found


def test_every_import_of_the_package_is_a_declared_dependency():
    """Third-party modules that mmclip_jax imports anywhere, against pyproject."""
    optional = {
        "python_calamine",
        "torch",
        "transformers",
        "onnxscript",
        "safetensors",
        "tokenizers",
        "spacy",
        "medspacy",
        "radgraph",
        "apache_beam",
        "fsspec",
        "mlflow",
        "starlette",
        "uvicorn",
    }
    declared = {_name(r) for r in PROJECT["project"]["dependencies"]}
    for module, file in _imported_modules().items():
        if module not in optional | {"mmclip_jax"} | sys.stdlib_module_names:
            assert _name(_PACKAGES.get(module, module)) in declared, f"{file} imports {module}"


def test_every_declared_dependency_is_imported_by_the_package():
    declared = {_name(r) for r in PROJECT["project"]["dependencies"]}
    imported = {_name(_PACKAGES.get(module, module)) for module in _imported_modules()}
    assert declared - imported == _NOT_IMPORTED.keys()


def test_one_version():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert re.search(rf"^## {re.escape(mmclip_jax.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {mmclip_jax.__version__}" in citation.replace('"', "")


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


# What takes long to import, or is large; some help is made of tables that need YAML and numbers.
_TABLES = {"PIL", "etils", "numpy", "yaml"}
_HEAVY = {"absl", "array_record", "clu", "flax", "google", "grain", "jax", "ml_collections", "mlflow", "optax", "orbax",
          "pandas", "pyarrow", "pydicom", "scipy", "shtab", "sklearn", "tensorboardX", "tensorflow_datasets", "torch",
          "tqdm"}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("--help", set()),
        ("--version", set()),
        ("train --help", set()),
        ("evaluate --help", set()),
        ("predict --help", set()),
        ("data build phantom --help", set()),
        ("finetune --help", _TABLES),
        ("data build table --help", _TABLES),
        ("config", {"absl"}),
        ("completion bash", _TABLES | {"absl", "shtab"}),
        ("", set()),  # import mmclip_jax alone
    ],
)
def test_help_imports_nothing_heavy(line, allowed):
    code = f"""
        import sys
        import mmclip_jax
        if {line!r}:
            from mmclip_jax import cli
            assert cli.main({line.split()!r}) == 0
        heavy = {_HEAVY | _TABLES!r} & set(sys.modules)
        assert heavy <= {allowed!r}, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_data_file(tmp_path):
    """Builds a wheel of a copy of the tree, without the network. The folder configs/ is in it as mmclip_jax/configs."""
    import shutil
    import zipfile

    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("mmclip_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, check=True, cwd=copy)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("mmclip_jax/")}
    expected = {str(p.relative_to(copy)) for p in (copy / "mmclip_jax").rglob("*") if p.is_file()}
    expected |= {f"mmclip_jax/configs/{file.name}" for file in (copy / "configs").iterdir()}
    assert inside == expected
    assert (
        "mmclip = mmclip_jax.cli:main"
        in zipfile.ZipFile(wheel)
        .read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("entry_points.txt")))
        .decode()
    )


# Pillow's and the system's `open`, `files.read_text`, and `open` of a ZIP archive: none of them takes an encoding.
_OWN_WORDS = ("Image", "PIL.Image", "os", "files", "archive", "_open_archive(archive)")


def test_text_files_are_utf_8_whatever_the_locale():
    """Every call that opens text says so: the locale's encoding would be taken otherwise."""
    found, bad = 0, []
    for file in sorted((ROOT / "mmclip_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
            if name not in ("open", "fdopen", "read_text", "write_text", "TextIOWrapper") or owner in _OWN_WORDS:
                continue
            # The builders' own reader, which decodes UTF-8; members of archives are bytes.
            if (name == "read_text" and owner in ("", "files")) or (name == "open" and "archive" in owner):
                continue
            found += 1
            place = 0 if owner and name == "open" and owner not in ("gzip", "bz2", "lzma", "io", "zip") else 1
            modes = [*node.args[place : place + 1], *(k.value for k in node.keywords if k.arg == "mode")]
            mode = next((each.value for each in modes if isinstance(each, ast.Constant)), "r")
            packed = owner in ("gzip", "bz2", "lzma") and "t" not in str(mode)
            said = any(keyword.arg == "encoding" for keyword in node.keywords)
            if name in ("open", "fdopen") and ("b" in str(mode) or packed):
                continue
            if not said:
                bad.append(f"{file.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:60]}")
    assert found > 20
    assert not bad, bad


# A room of the package -> the other rooms, and modules beside them, that it may import, wherever it does so.
_TOOLS = {"errors", "fields", "files", "locks", "processes", "python_files", "ranges", "setting_names", "spreadsheet"}
_MAY_IMPORT = {
    "checkpoints": {*_TOOLS, "config", "data", "models", "state", "text"},
    "train": {
        *_TOOLS,
        "check",
        "checkpoints",
        "config",
        "data",
        "evaluate",
        "flops",
        "inference",
        "models",
        "objectives",
        "sharding",
        "state",
        "text",
        "trackers",
        "writers",
    },
    "ablate": {*_TOOLS, "check", "config", "data", "evaluate", "models", "text", "train"},
    "plan": {*_TOOLS, "check", "data", "flops", "models", "objectives", "sharding", "state", "text", "train"},
    "cli": {
        *_TOOLS,
        "ablate",
        "data",
        "ends",
        "evaluate",
        "export",
        "external",
        "finetune",
        "inference",
        "memory",
        "plan",
        "serve",
        "settings",
        "sharding",
        "text",
        "train",
        "writers",
    },
    "export": {*_TOOLS, "checkpoints", "evaluate", "inference", "models", "text"},
    "serve": {"errors", "data", "inference", "text"},
    "text": _TOOLS,
    "data": {*_TOOLS, "text"},
    "models": {"errors", "fields", "sharding"},
    "objectives": {"errors", "models", "ranges", "sharding", "text"},
    "inference": {*_TOOLS, "checkpoints", "data", "models", "objectives", "sharding", "text"},
    "evaluate": {*_TOOLS, "checkpoints", "data", "inference", "text", "writers"},
    "external": {*_TOOLS, "config", "data", "evaluate", "inference", "models", "sharding", "text"},
    "finetune": {
        *_TOOLS,
        "checkpoints",
        "data",
        "evaluate",
        "inference",
        "models",
        "sharding",
        "state",
        "text",
        "train",
        "writers",
    },
}
_JAX = {"jax", "flax", "optax", "orbax"}


def _imports(tree: ast.AST) -> set[str]:
    """The modules that are imported, as dotted names; `from a import b` gives a.b."""
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", _MAY_IMPORT)
def test_imports_go_one_way(room: str) -> None:
    bad = []
    for file in sorted((ROOT / "mmclip_jax" / room).rglob("*.py")):
        for name in _imports(ast.parse(file.read_text(encoding="utf-8"))):
            top, *rest = name.split(".")
            inside = top == "mmclip_jax" and bool(rest) and rest[0] not in {room, "__version__", *_MAY_IMPORT[room]}
            if inside or (room in ("data", "text") and top in _JAX):
                bad.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not bad, bad


def test_no_module_needs_itself() -> None:
    """Imports at the top of modules have no circles; nothing else imports the command line."""
    modules = {}
    for file in sorted((ROOT / "mmclip_jax").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if not name.startswith("mmclip_jax.cli"):
            assert not any(each.startswith("mmclip_jax.cli") for each in _imports(tree)), file
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        modules[name] = _imports(top)
    needs = {
        name: {each if each in modules else each.rpartition(".")[0] for each in imported} & modules.keys() - {name}
        for name, imported in modules.items()
    }
    assert list(graphlib.TopologicalSorter(needs).static_order())


def test_the_list_of_rooms_is_that_of_the_tree() -> None:
    from mmclip_jax.data.builders.registry import COLLECTIONS

    rooms = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    named = set(re.findall(r"\w+\.py\b", rooms))
    there = {file.name for file in (ROOT / "mmclip_jax").rglob("*.py")}
    assert named <= there
    listed = [file for file in (ROOT / "mmclip_jax").rglob("*.py") if file.parent.name != "phantom"]
    assert {file.name for file in listed} - named == {
        "__init__.py",
        "__main__.py",
        *(f"{name}.py" for name in COLLECTIONS),
    }


def test_paths_that_the_documents_name_exist() -> None:
    """Files of the repository that README and docs/ name: with a folder, or with one of ours below the package.

    A user's runs and data, which .gitignore names with a slash in front, are none of the repository's folders.
    """
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    outputs = {line.strip("/") for line in ignored if line.startswith("/")}
    missing = []
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = document.read_text(encoding="utf-8")
        for path in re.findall(r"(?<![\w/.-])(?:\w[\w-]*/)+[\w.-]+\.(?:py|sh|yaml|csv|md|txt)\b", text):
            top = path.partition("/")[0]
            homes = (ROOT, document.parent, ROOT / "mmclip_jax") if (ROOT / "mmclip_jax" / top).is_dir() else (ROOT,)
            ours = (ROOT / "mmclip_jax" / top).is_dir() or ((ROOT / top).is_dir() and top not in outputs)
            if ours and not any((home / path).exists() for home in homes):
                missing.append(f"{document.name}: {path}")
    assert not missing, missing


def test_names_of_test_files_are_unique() -> None:
    """Folders of tests are no packages: pytest refuses two files of one name, and runs nothing at all."""
    names = [file.name for file in (ROOT / "tests").rglob("*.py")]
    assert not {name for name in names if names.count(name) > 1}


def test_no_document_or_message_installs_the_package_from_an_index() -> None:
    """It is in none."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "mmclip_jax").rglob("*.py")]
    told = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install[^#\n]*\bmmclip-jax\b", line)
    ]
    assert not told, told
