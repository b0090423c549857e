import pathlib

import pytest

from mmclip_jax.data.builders import registry
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.text import prompts

NAMES = ("chestxray14", "chexpert-5", "chexpert-14", "padchest", "rsna", "siim", "covidx", "vindr", "phantom", "table")
MINE = """
mine:
  title: My reading room
  findings: [Pleural Effusion, cardiomegaly]
  uncertain: {cardiomegaly: absent}
  prompts:
    templates: {present: ["{present}"], absent: ["no {absent}"]}
    phrases: false
    texts: {cardiomegaly: {present: [big heart], absent: [normal heart, small heart]}}
  score: cosine
  ensemble: scores
  threshold: youden
  groups: {heart: [cardiomegaly]}
"""


def _write(tmp_path: pathlib.Path, text: str) -> str:
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


def test_the_packaged_protocols() -> None:
    for name in NAMES:
        protocol = protocols.load(name)
        assert protocol.name == name
        assert set(protocol.findings or ()) <= set(prompts.KINDS)
        for kind in protocol.findings or ("nodule",):
            assert all(protocol.prompts_of(kind))
            assert protocol.prompts_of(kind) == prompts.zero_shot_prompts(kind)
    assert len(protocols.load("chestxray14").findings or ()) == 14
    assert len(protocols.load("chexpert-14").findings or ()) == 14
    assert protocols.load("chexpert-5").findings == protocols.load("chexpert-14").groups["the five of the competition"]


def test_the_protocol_of_a_data_set_is_found_by_its_name() -> None:
    found = {name: protocols.for_data([name]).name for name in (*registry.COLLECTIONS, "phantom", "my_table")}
    assert found == {
        "mimic_cxr": "chexpert-14", "padchest": "padchest", "openi": "table", "chestxray14": "chestxray14",
        "chexpert": "chexpert-14", "rsna": "rsna", "siim": "siim", "covidx": "covidx", "vindr": "vindr",
        "phantom": "phantom", "my_table": "table",
    }  # fmt: skip
    assert protocols.for_data(["rsna", "rsna"]).name == "rsna"
    assert protocols.for_data(["rsna", "siim"]).name == "table"


def test_a_file_of_the_users_own(tmp_path: pathlib.Path) -> None:
    mine = protocols.load(_write(tmp_path, MINE))
    assert (mine.title, mine.findings) == ("My reading room", ("pleural_effusion", "cardiomegaly"))
    assert mine.prompts_of("pleural_effusion") == (["Pleural effusion"], ["No pleural effusion"])
    assert mine.prompts_of("cardiomegaly") == (["big heart"], ["normal heart", "small heart"])
    assert mine.single_prompts_of("cardiomegaly") == [("big heart", "normal heart"), ("big heart", "small heart")]
    assert (mine.score, mine.ensemble, mine.threshold) == ("cosine", "scores", "youden")
    assert mine.uncertain_text == "absent for cardiomegaly; else left out"
    assert protocols.load(_write(tmp_path, MINE) + ":mine").digest == mine.digest
    several = _write(tmp_path, MINE + "other:\n  findings: labelled\n")
    assert protocols.load(f"{several}:other").findings is None
    with pytest.raises(UserError, match=r"holds mine, other: say which one with .*mine\.yaml:NAME"):
        protocols.load(several)
    with pytest.raises(UserError, match=r"no protocol 'third'; it holds mine, other"):
        protocols.load(f"{several}:third")


def test_the_digest_changes_with_whatever_changes_a_number(tmp_path: pathlib.Path) -> None:
    digest = protocols.load(_write(tmp_path, MINE)).digest
    for old, new in (("cosine", "softmax"), ("no {absent}", "without {absent}"), ("absent}\n  p", "present}\n  p"),
                     ("big heart", "large heart"), (", cardiomegaly]\n  u", ", cardiomegaly, mass]\n  u")):  # fmt: skip
        changed = MINE.replace(old, new)
        assert changed != MINE
        assert protocols.load(_write(tmp_path, changed)).digest != digest, new
    assert protocols.load(_write(tmp_path, MINE.replace("My reading room", "Ours"))).digest == digest


def test_the_digest_holds_the_words_of_no_finding_where_they_count(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests() -> list[str]:
        scores = ("softmax", "softmax_no_finding")
        return [protocols.load(_write(tmp_path, f"mine: {{findings: [nodule], score: {s}}}")).digest for s in scores]

    before, usual = digests(), prompts.zero_shot_prompts
    monkeypatch.setattr(
        prompts, "zero_shot_prompts", lambda kind, *words: usual("edema" if kind == "no_finding" else kind, *words)
    )
    after = digests()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_single_prompts_have_one_wording_each() -> None:
    pairs = protocols.load("table").single_prompts_of("nodule")
    assert pairs[0] == ("Nodule.", "No nodule.")
    assert len(pairs) == 4
    assert all("nodule" in text.lower() and "lung" not in text.lower() for pair in pairs for text in pair)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: [nodule]", "not followed by fields"),
        ("mine: {title: x}", "needs findings"),
        ("mine: {findings: []}", "findings is empty"),
        ("mine: {findings: [nodule, xyz]}", "'xyz' of findings is no finding"),
        ("mine: {findings: [nodule, lung nodule]}", "names a finding twice"),
        ("mine: {findings: labelled, uncertain: maybe}", "uncertain is one of ignore, present, absent, not 'maybe'"),
        ("mine: {findings: labelled, finding: x}", "unknown field 'finding'"),
        ("mine: {findings: labelled, score: dot}", "score is one of softmax, softmax_no_finding, cosine"),
        ("mine: {findings: [nodule], score: softmax_no_finding, ensemble: scores}", "needs ensemble: embeddings"),
        ("mine: {findings: labelled, split: dev}", "split is one of train"),
        ("mine: {findings: labelled, prompts: {words: x}}", "prompts has the unknown field 'words'"),
        ("mine: {findings: labelled, prompts: {templates: {present: [x], absent: [x]}}}", "must hold {present} once"),
        ("mine: {findings: labelled, prompts: {texts: {nodule: {present: [x]}}}}", "two lists present and absent"),
        ("mine: {findings: [nodule], groups: {a: [mass]}}", "mass of group 'a' is not among the findings"),
        ("a: {findings: labelled, data: [x]}\nb: {findings: labelled, data: [x]}", "data x belongs to both a and b"),
        ("[1, 2]", "expected a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocols.load(_write(tmp_path, text))


def test_an_unknown_protocol_names_those_that_there_are(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"no protocol 'chestxray'; known are chestxray14, chexpert-5"):
        protocols.load("chestxray")
    with pytest.raises(UserError, match="no such protocol file"):
        protocols.load(str(tmp_path / "missing.yaml"))
