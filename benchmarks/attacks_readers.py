"""Kinds of attacks on what users hand over: specs, vocabularies, weights, tokenizers, lists, arguments."""

import copy
import functools
import gzip
import json
import math
import pathlib
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import yaml
from attacks import Attacker, Outcomes, change, clear, kind, of_tests, refused

RAW = (
    *(b"", b"\0", b"\n\n", b"null", b"7", b"true", b'"x"', b"[]", b"{}", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"\xe9\xe9"),
    *(b"[" * 50_000, b'{"a":' * 50_000, b"{" * 50_000, b"- " * 20_000, b"x" * 1_000_000, b"NaN", b"[NaN, Infinity]"),
    *(b"9" * 10_000, b'{"a": ' + b"9" * 10_000 + b"}", b'{"a": 1, "a": 2}', b"{a: 2001-99-99}"),
    b"a: !!python/object/apply:os.system [x]",
    *(b"a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]", b"a: &a\n  b: *a", b"? [x]\n: y", b"? {x: y}\n: z"),
    *(b"a: 1e999", b"a: .nan", b"a: 0x" + b"f" * 6000, b"a: 190:20:30.15", b"a: !!binary zzz=", b"a: !!int x"),
    *(b"%YAML 9", b"a: *no"),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        10**400,
        1.5,
        math.nan,
        math.inf,
        "",
        "x" * 500,
        "\0",
        "{",
        "{}",
        "{0}",
        "{present",
        "%s",
        [],
        {},
    ),
    *([None], [[]], [1, 2], {"a": 1}, {1: 2}, {None: None}, [{}], {"x": [{"y": []}]}),
)


def _places(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield from _places(value, (*way, key))


def _with_odd(attacker: Attacker, tree: Any) -> tuple[str, Any]:
    """A copy of a tree with an odd value somewhere, or without a key, or with one more."""
    tree, chance = copy.deepcopy(tree), attacker.chance
    way = chance.choice(list(_places(tree))[1:])
    holder = functools.reduce(lambda node, key: node[key], way[:-1], tree)
    how = chance.choice(("odd", "odd", "odd", "gone", "more"))
    value = chance.choice(ODD)
    if how == "gone":
        del holder[way[-1]]
    elif how == "more" and isinstance(holder, dict):
        holder[chance.choice(("x", "", 1, None, True, 2.5))] = value
    else:
        holder[way[-1]] = value
    return f"{'.'.join(map(str, way))[-40:]} {how} {value!r:.20}", tree


def _attack_file(
    attacker: Attacker,
    name: str,
    tree: Any,
    write: Callable[[Any], bytes],
    read: Callable[[pathlib.Path], Any],
    odd: int,
) -> Outcomes:
    """Raw texts, a folder and a missing file in place of a file, and its tree with odd values: `odd` of them."""
    folder = attacker.folder / f"{name}-{attacker.chance.randrange(10**9)}"
    cases: list[tuple[str, bytes | None]] = [(f"{raw[:16]!r}", raw) for raw in attacker.some(RAW, 3)]
    cases += [("a folder", None)]
    for _ in range(2 if attacker.short else odd):
        what, changed = _with_odd(attacker, tree)
        try:
            cases.append((what, write(changed)))
        except (TypeError, ValueError):
            continue
    for number, (what, content) in enumerate(cases):
        file = folder / str(number) / name
        if content is None:
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
        yield f"{name}: {what}", clear(functools.partial(read, file))
        shutil.rmtree(file.parent)


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


@kind("protocols and specs of users", "refused in one line that names the file, or read")
def specs(attacker: Attacker) -> Outcomes:
    """YAML files of protocols and specs: raw texts, and odd values in each field."""
    from mmclip_jax.evaluate import protocols
    from mmclip_jax.external import run as external

    for module in (protocols, external):
        whole = yaml.safe_load(module.PACKAGED.read_text(encoding="utf-8"))
        load: Any = module.load if module is protocols else module.load_spec

        def read(file: pathlib.Path, load: Any = load) -> Any:
            return load(str(file))

        for name in attacker.some(sorted(whole), 2):
            tree = {name: whole[name]}
            yield from _attack_file(attacker, "mine.yaml", tree, _yaml, read, 15)


@kind("vocabularies, prompts and cues of users", "refused in one line that names the file, or read")
def words(attacker: Attacker) -> Outcomes:
    """Each file of a folder of resources: raw texts, and odd values anywhere."""
    from mmclip_jax.text import vocabulary

    names = ("vocabulary.yaml", "unmapped.yaml", "lexicon.yaml", "negation.yaml", "words.yaml", "prompts.yaml")
    for name in attacker.some([name for name in names if (vocabulary.PACKAGED / name).is_file()], 3):
        tree = yaml.safe_load((vocabulary.PACKAGED / name).read_text(encoding="utf-8"))
        yield from _attack_file(attacker, name, tree, _yaml, lambda file: vocabulary.load(file.parent), 8)


@kind("phrases with boxes (MS-CXR)", "refused in one line, or read")
def phrases(attacker: Attacker) -> Outcomes:
    """Its JSON file and its table."""
    from mmclip_jax.evaluate.evaluations import ms_cxr

    tree = {
        "images": [{"id": 1, "file_name": "a/b.jpg", "width": 90, "height": 80}],
        "categories": [{"id": 3, "name": "Pneumonia"}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40], "label_text": "left base"}],
    }  # fmt: skip
    yield from _attack_file(attacker, "a.json", tree, _json, ms_cxr.read_phrases, 40)
    table = b"dicom_id,category_name,label_text,x,y,w,h,image_width,image_height\na,Pneumonia,left,1,2,3,4,90,80\n"
    cells = (b"", b"nan", b"inf", b"x", b"9" * 400, b"-1", b"\0", b"'", b'"', b"1,1", b"\xff")
    for cell in attacker.some(cells, 4):
        for column in attacker.some(range(9), 2):
            row = table.split(b"\n")[1].split(b",")
            row[column] = cell
            file = attacker.folder / "a.csv"
            file.write_bytes(table.split(b"\n")[0] + b"\n" + b",".join(row) + b"\n")
            yield f"column {column}: {cell[:9]!r}", clear(functools.partial(ms_cxr.read_phrases, file))


@kind("files beside checkpoints of others", "refused in one line that names the file, or read")
def beside(attacker: Attacker) -> Outcomes:
    """Configurations, preprocessing and vocabularies in the layouts of Hugging Face, open_clip and OpenAI."""
    from mmclip_jax import fields
    from mmclip_jax.external import preprocess
    from mmclip_jax.models.pretrained import dual as layouts
    from mmclip_jax.text import subwords

    hugging = {"do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
               "crop_size": {"height": 224, "width": 224}, "do_normalize": True, "do_rescale": True,
               "rescale_factor": 0.00392156862745098,
               "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}  # fmt: skip
    clip = {
        "preprocess_cfg": {
            "mean": [0.4, 0.4, 0.4],
            "std": [0.2, 0.2, 0.2],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
    }

    def hugging_rules(file: pathlib.Path) -> Any:
        return preprocess.of_huggingface(str(file), fields.read_json(file))

    def clip_rules(file: pathlib.Path) -> Any:
        told = fields.read_json(file).get("preprocess_cfg", {})
        return preprocess.of_open_clip(str(file), told if isinstance(told, dict) else {}, 224)

    yield from _attack_file(attacker, "preprocessor_config.json", hugging, _json, hugging_rules, 60)
    yield from _attack_file(attacker, "open_clip_config.json", clip, _json, clip_rules, 40)
    pieces = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b</w>": 3}
    for name in ("tokenizer.json", "vocab.json", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz"):
        read = functools.partial(_vocabulary, subwords)
        yield from _attack_file(attacker, name, pieces, _json, read, 10)
    for content in attacker.some(
        (b"", b"no gzip", gzip.compress(b"x\n" * 9)[:20], gzip.compress(b"\xff\n"), gzip.compress(b"0" * 10**8)), 2
    ):
        file = attacker.folder / "bpe_simple_vocab_16e6.txt.gz"
        file.write_bytes(content)
        yield f"merges {content[:9]!r}", clear(functools.partial(subwords.load, file))
    yield from _folders_of_others(attacker, layouts)


def _vocabulary(subwords: Any, file: pathlib.Path) -> Any:
    if file.name == "vocab.json":
        (file.parent / "merges.txt").write_text("#version\na b</w>\n", encoding="utf-8")
    return subwords.check_rows(subwords.load(file), 4, str(file))


def _folders_of_others(attacker: Attacker, layouts: Any) -> Outcomes:
    for layout in ("huggingface", "open_clip", "openai"):
        for name in ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"):
            folder = attacker.folder / f"{layout}-{name}"
            folder.mkdir()
            for raw in attacker.some(RAW, 1):
                for each in ("config.json", "open_clip_config.json", name):
                    (folder / each).write_bytes(raw)
                yield f"{layout}, {name}: {raw[:12]!r}", clear(functools.partial(layouts.load, folder, layout))


class _Danger:
    """Its pickle would call a function."""

    def __reduce__(self) -> Any:
        return (_Danger.ran.append, (1,))

    ran: ClassVar[list[int]] = []


def _safetensors(header: bytes, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@kind("weights of others", "refused in one line; no code of theirs is run")
def weights(attacker: Attacker) -> Outcomes:
    """Files for PyTorch and safetensors: of other things, cut off, of code, of other types and sizes."""
    from mmclip_jax.models.pretrained import weights as module

    pickled = pickle.dumps({"a": np.zeros(3)})
    files: dict[str, bytes] = {
        "empty.pt": b"", "text.pt": b"no weights", "pickle.pt": pickled, "code.pt": pickle.dumps(_Danger()),
        "deep.pt": b"(" * 100_000, "cut.pt": pickled[:20], "zip.pt": b"PK\3\4" + bytes(99),
        "list.bin": pickle.dumps([1]),
        "empty.safetensors": b"", "short.safetensors": b"\1", "text.safetensors": b"no weights at all, but long enough",
        "none.safetensors": _safetensors(b"{}"), "list.safetensors": _safetensors(b"[]"),
        "nan.safetensors": _safetensors(b"NaN"),
        "huge.safetensors": _safetensors(b"{}", length=2**63), "deep.safetensors": _safetensors(b'{"a":' * 9999),
    }  # fmt: skip
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    odd: dict[str, list[Any]] = {
        "dtype": ["F8", "BF16", "I64", "BOOL", None, 3, "X"],
        "shape": [[-1], [2**40, 2**40], "x", None, [2.5], [0], [], [3, 3]],
        "data_offsets": [[16, 0], [0, 2**62], [-1, 9], None, [0], "x", [0, 8]],
    }
    for key, values in odd.items():
        for value in values:
            files[f"{key} {value}.safetensors"] = _safetensors(json.dumps({"a": tensor | {key: value}}).encode())
    for number, name in enumerate(attacker.some(sorted(files), 14)):
        file = attacker.folder / f"{number}{pathlib.Path(name).suffix}"
        file.write_bytes(files[name])
        # Which types are weights is safetensors' to say; what is refused is so in one line.
        yield name, "code ran" if _Danger.ran else clear(functools.partial(module.read_weights, file))
    archive = attacker.folder / "script.pt"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("x/constants.pkl", pickle.dumps(_Danger()))
        stream.writestr("x/data.pkl", pickle.dumps(_Danger()))
    yield "TorchScript", "code ran" if _Danger.ran else refused(functools.partial(module.read_weights, archive))


@kind("tokenizers of users", "refused in one line, or read")
def tokenizers(attacker: Attacker) -> Outcomes:
    """A model file flipped, cut off, and of other things."""
    from mmclip_jax.text import vocabulary
    from mmclip_jax.text.tokenizer import load_tokenizer

    whole = pathlib.Path(vocabulary.default().tokenizer).read_bytes()

    def read(file: pathlib.Path) -> None:
        made = load_tokenizer(file)
        made.encode("No effusion.")

    file = attacker.folder / "t.model"
    for number in range(6 if attacker.short else 30):
        file.write_bytes(whole)
        how = attacker.chance.choice(("flipped", "cut off"))
        change(file, how, attacker.chance)
        yield f"{how} {number}", clear(functools.partial(read, file))
    for raw in attacker.some(RAW, 3):
        file.write_bytes(raw)
        yield f"{raw[:12]!r}", refused(functools.partial(read, file))
    yield "a folder", refused(functools.partial(read, attacker.folder))


@kind("lists of ids and of fractions", "refused in one line, or read")
def lists(attacker: Attacker) -> Outcomes:
    """Lists that an audit takes, files of fractions, spreadsheets of other things."""
    from mmclip_jax.data.builders import fractions
    from mmclip_jax.data.leakage import audit

    for raw in attacker.some(RAW, 6):
        for name, read in (
            ("a.txt", lambda file: audit.read_set(str(file), ("train",))),
            ("a.csv", lambda file: audit.read_set(f"{file}:id", ("train",))),
            ("pattern.txt", lambda file: audit.read_set(str(file), ("train",), patient_pattern="(")),
            ("fractions.csv", lambda file: fractions.read(file.parent, 0.1)),
        ):
            file = attacker.folder / name
            file.write_bytes(raw)
            yield f"{name}: {raw[:12]!r}", clear(functools.partial(read, file))


@kind("arguments of the API", "refused in one line that names the argument")
def arguments(attacker: Attacker) -> Outcomes:
    """None, bytes, numbers, sets, generators, unequal lengths, arrays of other shapes and types."""
    from mmclip_jax.inference import inputs

    rng = np.random.default_rng(0)
    good = rng.integers(0, 256, (40, 40)).astype(np.uint8)
    pictures: list[Any] = [
        *(None, 7, 2.5, True, "", "nowhere.png", b"", b"x", b"\x89PNG\r\n\x1a\n", {}, [], [[]]),
        *(object(), print, Ellipsis),
        *(np.zeros((0, 0), np.uint8), np.zeros(5), np.zeros((2, 2, 2, 2), np.uint8), np.full((9, 9), np.nan), good > 9),
        *(good.astype(np.complex64), good.astype(object), np.array(["a"])),
        *(np.zeros((9, 9), "M8[s]"), good.astype(np.float32)),
        *(good.astype(np.int64) * 10**9, -good.astype(np.int32), np.full((9, 9), np.inf)),
        *(good[:1], good[:, :0], "\0", "a\nb"),
        *([good, None], {"a": good}, memoryview(b"x"), np.zeros((9, 9, 5), np.uint8)),
        *(pathlib.Path("."), np.ma.masked_array(good)),
    ]  # fmt: skip
    for number, each in enumerate(attacker.some(pictures, 15)):
        yield f"as_pixels({each!r:.30}) {number}", clear(functools.partial(inputs.as_pixels, each))
    odd: list[Any] = [
        None,
        7,
        "x",
        b"x",
        {},
        {"a"},
        (n for n in range(2)),
        [None],
        [b"x"],
        [7],
        [["x"]],
        [""],
        ["x" * 10**6],
        np.array(3),
        ["\0"],
        ["\ud800"],
    ]
    for each in odd:
        yield f"check_several({each!r:.30})", clear(functools.partial(inputs.check_several, "texts", each))
    model = None if attacker.short else _model(attacker)
    if model is not None:
        yield from _odd_calls(attacker, model, good, odd)


def _model(attacker: Attacker) -> Any:
    import mmclip_jax

    return mmclip_jax.load(of_tests("tiny").save_run(attacker.folder / "run", (3,)))


def _odd_calls(attacker: Attacker, model: Any, good: Any, odd: list[Any]) -> Outcomes:
    report = "There is a large left pleural effusion."
    for each in odd:
        for name, call in {
            "encode_text": lambda each=each: model.encode_text(each),
            "encode_image": lambda each=each: model.encode_image(each),
            "zero_shot": lambda each=each: model.zero_shot([good], each),
            "response_maps": lambda each=each: model.response_maps([good], each),
            "response_map": lambda each=each: model.response_map(good, each),
            "attmim": lambda each=each: model.attmim([good, good], each),
            "restore": lambda each=each: model.restore([good], [report], each),
        }.items():
            yield f"{name}({each!r:.30})", clear(call)
    for response in (None, "", "x", 3):
        yield f"response={response!r}", refused(functools.partial(model.response_map, good, report, response))
    for seed in (None, -1, 2**40, "x", 1.5):
        yield f"seed={seed!r}", refused(functools.partial(model.attmim, [good], [report], seed))
