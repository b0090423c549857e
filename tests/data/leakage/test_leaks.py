"""Leaks that are planted under random spellings are found or asked about; where none is planted, nothing is said."""

import pathlib
import random
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audit import build, make, pixels_of

from mmclip_jax import cli
from mmclip_jax.config import default_config
from mmclip_jax.data.leakage import audit, numbering, overlaps
from mmclip_jax.data.leakage import likeness as likeness_lib
from mmclip_jax.data.leakage.audit import AuditSet, IdStatements, Row
from mmclip_jax.errors import LeakageError, UserError
from mmclip_jax.train import run as train_lib
from mmclip_jax.train.manifest import audit_validation

Spelling = Any


def other_case(id: str, rng: random.Random) -> str:
    return "".join(rng.choice((c.upper(), c.lower())) if c.isascii() else c for c in id)


def other_padding(id: str, rng: random.Random) -> str:
    start = next((n for n, c in enumerate(id) if c.isdigit()), None)
    if start is None:
        return f" {id}\t"
    return id[:start] + "0" * rng.randint(0, 6) + id[start:]


SPELLINGS: dict[str, Spelling] = {
    "as it is": lambda id, rng: id,
    "case": other_case,
    "padding": other_padding,
    "blanks": lambda id, rng: f"  {id}{rng.choice((' ', chr(0xA0), ''))}",
    "suffix": lambda id, rng: id + rng.choice((".png", ".JPG", ".dcm", ".nii.gz")),
    "float": lambda id, rng: f"{id}.0" if id.isdigit() else id,
    "decomposed": lambda id, rng: unicodedata.normalize("NFD", id),
    "wide": lambda id, rng: "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in id),
    "folder": lambda id, rng: rng.choice(("", "images/", "a/b/", "./")) + id,
}
OF_FILES = ("suffix", "folder")


@st.composite
def ids(draw: st.DrawFn, count: int) -> list[str]:
    """Different ids, as hospitals write them, that differ in more than spelling."""
    stems = draw(
        st.lists(
            st.integers(1, 10**8).map(str)
            | st.text("abcdefghijkmnpqrstuvwxyz", min_size=2, max_size=6).map(lambda word: f"{word}7")
            | st.sampled_from("äéñøßç").flatmap(lambda c: st.integers(10, 10**5).map(lambda n: f"Zo{c}-{n}")),
            min_size=count, max_size=count, unique_by=lambda id: numbering.loose_id(id),
        )
    )  # fmt: skip
    return stems


def found(train: list[Row], test: list[Row], stated_ids: IdStatements = audit.NOTHING_STATED) -> dict[str, set[int]]:
    sets = [AuditSet("a", train, place="a"), AuditSet("b", test, place="b")]
    return {each.kind: {b for _, b in each.pairs} for each in audit.audit([sets[0]], [sets[1]], stated_ids)}


@settings(max_examples=300)
@given(
    ids(12), st.sampled_from(sorted(SPELLINGS)), st.sampled_from(["patient", "study", "image id"]),
    st.sampled_from([("mine", "mine"), ("mine", "ours"), ("ours", "chexpert"), ("padchest", "table")]),
    st.integers(0, 6), st.randoms(),
)  # fmt: skip
def test_ids_that_are_written_in_another_way(
    names: list[str], spelling: str, kind: str, sources: tuple[str, str], planted: int, rng: random.Random
) -> None:
    if spelling in OF_FILES and kind != "image id":
        planted = 0
    fields = {"patient": "patient", "study": "study", "image id": "id"}

    def row(number: int, side: str, source: str) -> dict[str, str]:
        return {"id": f"i{side}-{number}q", "source": source, "patient": f"p{side}-{number}q",
                "study": f"s{side}-{number}q"}  # fmt: skip

    train = [Row(**row(n, "a", sources[0]) | {fields[kind]: name}) for n, name in enumerate(names[:6])]
    test = []
    for n, name in enumerate(names[6:]):
        id = SPELLINGS[spelling](names[n], rng) if n < planted else name
        test.append(Row(**row(n, "b", sources[1]) | {fields[kind]: id}))
    said = found(train, test)
    assert said.get(kind, set()) | said.get(f"{kind}?", set()) == set(range(planted))
    assert not said.keys() - {kind, f"{kind}?"}
    for direction in (sources, sources[::-1]):
        pair = ",".join(direction)
        assert found(train, test, IdStatements.read(same=[pair])).get(kind, set()) == set(range(planted))
        if sources[0] != sources[1]:
            assert found(train, test, IdStatements.read(other=[pair])) == {}


@settings(max_examples=100)
@given(ids(10), st.sampled_from([("mine", "ours"), ("mine", "mine")]), st.randoms())
def test_different_ids_are_clean(names: list[str], sources: tuple[str, str], rng: random.Random) -> None:
    train = [Row(f"{n}.png", sources[0], f"p{n}", f"s{n}") for n in names[:5]]
    test = [Row(f"{n}.png", sources[1], f"p{n}", f"s{n}") for n in names[5:]]
    sets = [AuditSet("a", train, place="a"), AuditSet("b", test, place="b")]
    assert audit.judge(sets[:1], sets[1:])["status"] == "clean"


@settings(max_examples=100)
@given(ids(6), st.sampled_from(["id", "patient", "study", "pixels"]), st.integers(0, 5))
def test_what_is_the_same_of_one_source_is_a_leak(names: list[str], field: str, row: int) -> None:
    def rows(side: str) -> list[dict[str, str]]:
        return [{"id": f"{n}-{side}.png", "source": "s", "patient": f"p{n}-{side}", "study": f"t{n}-{side}",
                 "pixels": f"x{n}{side}"} for n in names]  # fmt: skip

    train, test = rows("a"), rows("b")
    test[2][field] = train[row][field]
    with pytest.raises(LeakageError, match="1 of 6 images of b in a"):
        audit.judge([AuditSet("a", [Row(**r) for r in train])], [AuditSet("b", [Row(**r) for r in test])])


def test_two_tables_of_one_hospital_under_two_names(tmp_path: pathlib.Path) -> None:
    """Patients 1 to 9 of two sources: nobody but a person can tell whether they are the same people."""
    train = build(
        tmp_path, "a", [make(n, "train", "ours", patient=f"{n}", id=f"a{n}", study=f"x{n}") for n in range(9)]
    )
    more = {"findings": "Other words."}
    test = build(
        tmp_path, "b",
        [make(n, "test", "theirs", patient=f"{n:04d}", id=f"b{n}", study=f"y{n}", pixels=pixels_of(n + 50), **more)
         for n in range(6, 12)],
    )  # fmt: skip
    with pytest.raises(
        LeakageError, match=r"patient: 3 of 6 images of b:test in a:train\)\. Say .*: do equal ids of ours and"
    ):
        audit.check([train], [test], "test")
    with pytest.raises(LeakageError, match="--same-ids ours,theirs or --other-ids ours,theirs"):
        audit.check([train], [test], "test")
    accepted = audit.check([train], [test], "test", "a drill")
    assert (accepted["status"], accepted["allowed"]) == ("to be looked at", "a drill")
    assert "nobody has said whether they mean the same" in audit.text(accepted)
    with pytest.raises(LeakageError, match="test images are known from training"):
        audit.check([train], [test], "test", "", IdStatements.read(same=["theirs,ours"]))
    other = audit.check([train], [test], "test", "", IdStatements.read(other=["ours,theirs"]))
    assert other["status"] == "clean"
    assert other["told"] == {"same": [], "other": [["ours", "theirs"]]}
    assert "the user said that equal ids differ in meaning: ours and theirs" in audit.text(other)


def test_ids_of_one_source_that_differ_in_spelling_alone(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train", id=f"a{n}", patient=f"0{n}") for n in range(1, 9)])
    test = build(tmp_path, "b", [make(n + 50, "test", id=f"b{n}", patient=f"{n}") for n in range(7, 12)])
    with pytest.raises(LeakageError, match="--same-ids mine,mine or --other-ids mine,mine"):
        audit.check([train], [test], "test")
    assert audit.check([train], [test], "test", "", IdStatements.read(other=["mine,mine"]))["status"] == "clean"
    same = build(tmp_path, "c", [make(n + 50, "test", patient="01") for n in range(3)])
    with pytest.raises(LeakageError, match="known from training"):  # the very same id of the very same source
        audit.check([train], [same], "test", "", IdStatements.read(other=["mine,mine"]))


def test_files_of_one_data_set_in_folders_of_their_own_are_others() -> None:
    train = AuditSet("a:train", [Row(f"train/{n}.png", "s", f"p{n}") for n in range(4)], place="a")
    test = AuditSet("a:test", [Row(f"test/{n}.png", "s", f"q{n}") for n in range(4)], place="a")
    assert audit.judge([train], [test])["status"] == "clean"
    elsewhere = AuditSet("b:test", test.rows, place="b")
    assert audit.judge([train], [elsewhere], allowed="a drill")["status"] == "to be looked at"


def test_patients_that_nobody_knows_are_not_called_compared() -> None:
    train = AuditSet("a", [Row(f"{n}.png", "s", f"{n}.png") for n in range(4)], place="a")
    test = AuditSet("b", [Row(f"{n}.png", "s", f"{n}.png") for n in range(10, 14)], place="b")
    result = audit.judge([train], [test])
    assert result["status"] == "not comparable"
    assert "no patient" not in audit.text(result)
    assert "the patients of s are unknown: every image has a patient of its own" in audit.text(result)


@pytest.mark.parametrize(
    ("same", "other", "message"),
    [(["a"], [], "write two sources"), (["a,b,c"], [], "write two sources"), ([","], [], "write two sources"),
     (["a,b"], ["b,a"], "--same-ids and --other-ids both name a and b")],
)  # fmt: skip
def test_what_is_told_must_be_clear(same: list[str], other: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        IdStatements.read(same, other)


def test_the_command_asks_and_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = build(tmp_path, "a", [make(n, "train", "ours") for n in range(5)])
    test = build(tmp_path, "b", [make(n, "test", "theirs", pixels=pixels_of(n + 60)) for n in range(3, 7)])
    command = ["data", "audit", train, "--against", f"{test}:test"]
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "LOOK  patient?" in said.out
    assert "equal ids are still to be decided" in said.out
    assert "--same-ids or --other-ids" in said.err
    assert cli.main([*command, "--same-ids", "ours,theirs"]) == 1
    assert "LEAK  patient" in capsys.readouterr().out
    assert cli.main([*command, "--other-ids", "ours,theirs"]) == 0
    assert cli.main([*command, "--other-ids", "ours"]) == 2


def test_training_takes_the_same_flags(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(train_lib, "train", lambda config, *_, **__: asked.append(config.data))
    config = str(pathlib.Path(__file__).resolve().parents[3] / "configs" / "demo.py")
    told = ["--allow-leakage", "a drill", "--same-ids", "a,b", "--other-ids", "c,d", "--other-ids", "e,e"]
    assert cli.main(["train", "--config", config, "--workdir", str(tmp_path / "w"), *told]) == 0
    (data,) = asked
    assert (data.allow_leakage, data.same_ids, data.other_ids) == ("a drill", ("a,b",), ("c,d", "e,e"))
    learnt = build(tmp_path, "a", [make(n, "train", "c") for n in range(5)])
    scored = build(tmp_path, "b", [make(n, "validation", "d", pixels=pixels_of(n + 60)) for n in range(5)])
    data.train, data.evaluate = (learnt,), (scored,)
    assert audit_validation(config_of(data))["status"] == "clean"
    data.other_ids, data.allow_leakage = (), ""
    with pytest.raises(LeakageError, match="--same-ids c,d or --other-ids c,d"):
        audit_validation(config_of(data))


def config_of(data: Any) -> Any:
    config = default_config()
    config.data = data
    return config


def test_data_that_were_built_anew_since_are_not_what_was_learnt(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train") for n in range(5)])
    test = build(tmp_path, "b", [make(n, "test") for n in range(50, 53)])
    expected = audit._identity(train)[1]
    assert audit.check({train: {"fingerprint": expected}}, [test], "test")["status"] == "clean"
    told = audit.check({train: {"fingerprint": "another"}}, [test], "test")
    assert (told["status"], told["missing"]) == ("not audited", ["a (built anew since)"])
    gone = audit.check({"/gone/a/1.0.0": {"fingerprint": expected}}, [train, test], "test")
    assert gone["status"] == "clean", "the data set was moved, and is here under another path"


def test_rows_of_a_fraction_are_judged_by_themselves(tmp_path: pathlib.Path) -> None:
    one = build(
        tmp_path, "a",
        [make(n, "train", patient=f"p{n}") for n in range(6)]
        + [make(n + 50, "test", id=f"t{n}.png") for n in range(3)]
        + [make(n + 80, "test", "other", id=f"u{n}.png", pixels=pixels_of(n)) for n in (4, 5)],
    )  # fmt: skip
    assert audit.check_rows([one], {"half": [0, 1, 2], "none": []}, "test", "a drill")["none"]["status"] == "clean"
    rows = audit.read_built(one, "train").rows
    twins = [number for number, row in enumerate(rows) if row.patient in ("p4", "p5")]
    apart = [number for number in range(6) if number not in twins]
    results = audit.check_rows([one], {"with": twins, "without": apart}, "test", "a drill")
    assert {name: result["status"] for name, result in results.items()} == {"with": "leaks", "without": "clean"}
    assert audit.combine(results)["status"] == "leaks"
    assert audit.combine(results)["parts"] == {"with": "leaks", "without": "clean"}
    with pytest.raises(LeakageError, match="pixels: 2 of 5 images of a:test in a:train, with"):
        audit.check_rows([one], {"with": twins}, "test")


def test_looking_is_automatic_while_it_is_cheap(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = build(tmp_path, "a", [make(n, "train") for n in range(5)])
    half = pixels_of(3)[::2, ::2]
    test = build(tmp_path, "b", [make(70, "test", pixels=half)])
    monkeypatch.setattr(audit, "_DONE", {})
    monkeypatch.setattr(audit, "AUTOMATIC_LOOKS", 5)
    told = audit.check([train], [test], "test")
    assert told["status"] == "clean"
    assert told["alike"] == "6 images have no stored looks, more than 5"
    assert "alike not run: 6 images" in audit.text(told)
    audit.read_set(train, ("train",))  # as `mmclip data audit` does: stored for all later audits
    monkeypatch.setattr(audit, "_DONE", {})
    with pytest.raises(LeakageError, match="alike: 1 of 1 images of b:test in a:train"):
        audit.check([train], [test], "test")
    monkeypatch.setattr(audit, "_DONE", {})
    monkeypatch.setattr(audit, "AUTOMATIC_PAIRS", 4)
    assert "pairs of images are more than" in audit.check([train], [test], "test")["alike"]


def test_a_damaged_image_is_counted_and_like_no_other(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_DONE", {})
    train = build(tmp_path, "a", [make(n, "train", image=b"\xff\xd8 no picture") for n in range(2)])
    test = build(tmp_path, "b", [make(n, "test", image=b"\xff\xd8 neither") for n in range(60, 63)])
    result = audit.check([train], [test], "test")
    assert result["status"] == "clean"
    assert result["problems"] == [
        "a:train: 2 of its images cannot be read", "b:test: 3 of its images cannot be read",
    ]  # fmt: skip
    assert "cannot be read" in audit.text(result)
    seen = audit.read_set(train, ("train",)).looks
    assert seen is not None
    assert likeness_lib.unreadable(seen) == 2


def test_every_kind_has_its_weight() -> None:
    kinds = {*overlaps.LEAKS, *overlaps.LOOKS, *overlaps.NOTES}
    assert len(kinds) == len(overlaps.LEAKS) + len(overlaps.LOOKS) + len(overlaps.NOTES)
    assert audit.STATUSES == ("clean", "not comparable", "not audited", "to be looked at", "leaks")
