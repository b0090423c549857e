"""Disease kinds by name, and the sentences that prompts are made of; the words are in resources/*.yaml.

What a label means is answered from the resources in use (`vocabulary.default`). Only what writes or reads sentences
takes other ones as `resources=`.
"""

import difflib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.text import vocabulary as _resources
from mmclip_jax.text.vocabulary import NO_FINDING, Resources, default

KINDS: tuple[str, ...] = tuple(default().kinds)
"""All kinds of the vocabulary, in its order; `no_finding` is one of them."""


def kind_of(label: str) -> str | None:
    """The kind that a data set's label string, a synonym or a kind's own name stands for; None if unknown.

    Case, spaces, hyphens, underscores and other punctuation do not matter: "Pleural_Thickening", "COVID-19".
    """
    return default().names.get(_resources.squeeze(label)) if label.strip() else None


def is_unmapped(label: str) -> bool:
    """Whether a data set's label string deliberately stands for no kind (unmapped.yaml), or is blank."""
    return not label.strip() or _resources.squeeze(label) in default().unmapped


def display_name(kind: str) -> str:
    """What to call a kind in print: "pleural effusion" for "pleural_effusion"."""
    return _kind(kind, default()).display


def ancestors(kind: str) -> tuple[str, ...]:
    """The broader kinds that `kind` implies, nearest first: viral_pneumonia, pneumonia for covid_19."""
    words = default()
    return _resources.ancestors(words.kinds, _kind(kind, words).name)


def with_ancestors(kinds: Iterable[str]) -> set[str]:
    """The kinds and all broader kinds that they imply; a kind that the vocabulary does not know has none."""
    found = set(kinds)
    return found.union(*(ancestors(kind) for kind in found if kind in KINDS))


def implied(kinds: Iterable[str]) -> frozenset[str]:
    """The broader kinds that an image shows because it shows these: ("mass",) gives lung lesion and lung opacity.

    Less than `ancestors`: a label that a laboratory gave (COVID-19) says nothing of what the image shows.
    """
    words = default()
    found: set[str] = set()
    queue = list(kinds)
    while queue:
        kind = _kind(queue.pop(), words)
        new = set(kind.is_a) - found if kind.implies else set()
        found |= new
        queue.extend(new)
    return frozenset(found)


def left_open(kinds: Iterable[str], labels: Iterable[str] = ()) -> frozenset[str]:
    """The kinds of which a list that has these kinds and label strings says nothing, as far as it lacks them.

    They are the broader kinds, those that the vocabulary puts beside a kind or a broader one, what a label string
    leaves open in particular ("unchanged": everything), and the broader kinds of all these.
    """
    words = default()
    found: set[str] = set()
    for kind in {wider for name in kinds for wider in (name, *ancestors(name))}:
        found |= {*words.kinds[kind].is_a, *words.kinds[kind].beside}
    for label in labels:
        found |= words.left_open.get(_resources.squeeze(label), frozenset())
    return frozenset(found.union(*(ancestors(kind) for kind in found)))


def is_narrow(label: str) -> bool:
    """Whether a label string names a part of its kind, so that its absence does not deny it ("humeral fracture")."""
    return _resources.squeeze(label) in default().narrow


def denied_by(labels: Iterable[str]) -> set[str]:
    """The kinds that are absent where a source that uses these label strings lists none of a kind's."""
    return {kind for label in labels if not is_narrow(label) and (kind := kind_of(label)) is not None}


def beside_no_finding(present: Iterable[str]) -> list[str]:
    """The diseases that contradict "no finding" among kinds that are said to be present; [] where it is not among them.

    Devices do not contradict it. What to do is the caller's policy: believe the disease, or refuse the row.
    """
    return _diseases_beside(present, default())


def _diseases_beside(present: Iterable[str], words: Resources) -> list[str]:
    kinds = set(present)
    diseases = sorted(kind for kind in kinds - {NO_FINDING} if _kind(kind, words).category != "device")
    return diseases if NO_FINDING in kinds else []


def is_device(kind: str) -> bool:
    """Whether the kind is a device and no disease."""
    return _kind(kind, default()).category == "device"


def zero_shot_prompts(finding: str, resources: Resources | None = None) -> tuple[list[str], list[str]]:
    """Prompts that affirm and prompts that deny a finding, for averaging per polarity.

    Args:
        finding: a kind, a synonym or a data set's label string.
        resources: the words to use; None for `vocabulary.default()`.

    Raises:
        UserError: no finding of the vocabulary is called so.
    """
    words = resources or default()
    name = words.names.get(_resources.squeeze(finding)) if finding.strip() else None
    if name is None:
        near = difflib.get_close_matches(finding.lower(), [kind.display for kind in words.kinds.values()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known findings: {', '.join(words.kinds)}"
        raise UserError(f"unknown finding {finding!r}; {hint}")
    grammar = words.prompts["zero_shot"]
    if name == NO_FINDING:
        templates = grammar["no_finding"]
        return [_sentence(t) for t in templates["present"]], [_sentence(t) for t in templates["absent"]]
    kind = words.kinds[name]
    phrases = (kind.display, *(kind.phrases if grammar.get("phrases", True) else ()))
    phrases = tuple(dict.fromkeys(phrases))
    positives = [_fill(t, present=[(p, kind.count)]) for p in phrases for t in grammar["present"]]
    negatives = [_fill(t, absent=[(p, kind.count)]) for p in phrases for t in grammar["absent"]]
    return positives, negatives


def training_prompt(
    rng: np.random.Generator, present: Sequence[str], absent: Sequence[str], resources: Resources | None = None
) -> str:
    """A text that states exactly these kinds, in wording and order drawn from the grammar.

    `entities.find_entities` recovers the stated kinds with their polarity, except `no_finding`, which has no term.

    Args:
        rng: the source of all randomness.
        present: kinds that are there; may be empty, or hold "no_finding" alone or beside devices.
        absent: kinds that are not there; may be empty.
        resources: the words to use; None for `vocabulary.default()`.

    Raises:
        UserError: nothing to state, an unknown finding, or kinds that contradict each other.
    """
    words = resources or default()
    grammar = words.prompts
    positives, negatives = _checked(present, absent, words)

    def term(name: str) -> tuple[str, bool]:
        kind = words.kinds[name]
        choices = (kind.display, kind.display, *kind.phrases)  # the display name twice as often as any other
        return choices[int(rng.integers(len(choices)))], kind.count

    def draw(templates: Sequence[str]) -> str:
        return templates[int(rng.integers(len(templates)))]

    sentences: list[str] = []
    if NO_FINDING in positives:
        sentences.append(_sentence(draw(grammar["no_finding"]["present"])))
    if NO_FINDING in negatives:
        sentences.append(_sentence(draw(grammar["no_finding"]["absent"])))
    there = [term(name) for name in _shuffled(rng, positives) if name != NO_FINDING]
    gone = [term(name) for name in _shuffled(rng, negatives) if name != NO_FINDING]
    if there and gone and grammar["both"] and rng.random() < 0.25:
        sentences.append(_fill(draw(grammar["both"]), there, gone))
    else:
        parts = [_fill(draw(grammar["present"]), present=group) for group in _groups(rng, there)]
        denials = [_fill(draw(grammar["absent"]), absent=group) for group in _groups(rng, gone)]
        sentences += parts + denials if rng.random() < 0.75 else denials + parts
    return " ".join(sentences)


def meaning(present: Sequence[str], absent: Sequence[str], resources: Resources | None = None) -> str:
    """What a text states, as one canonical string: "+edema|-pneumothorax"; the order of the arguments' kinds is lost.

    "no_finding" implies the absence of every disease, so absences beside it say nothing new: "no_finding" alone.

    Raises:
        UserError: as `training_prompt`.
    """
    words = resources or default()
    positives, negatives = _checked(present, absent, words)
    if NO_FINDING in positives:
        negatives = [name for name in negatives if words.kinds[name].category == "device"]
    if positives == [NO_FINDING] and not negatives:
        return NO_FINDING
    signed = [(name, "+") for name in positives] + [(name, "-") for name in negatives]
    return "|".join(sign + name for name, sign in sorted(signed))


def _kind(name: str, words: Resources) -> _resources.Kind:
    if name not in words.kinds:
        raise UserError(f"unknown finding {name!r}; known findings: {', '.join(words.kinds)}")
    return words.kinds[name]


def _checked(present: Sequence[str], absent: Sequence[str], words: Resources) -> tuple[list[str], list[str]]:
    positives, negatives = sorted(set(present)), sorted(set(absent))
    kinds = {name: _kind(name, words) for name in (*positives, *negatives)}
    if not kinds:
        raise UserError("a prompt needs at least one finding that is present or absent")
    if both := set(positives) & set(negatives):
        raise UserError(f"{sorted(both)[0]} cannot be both present and absent")
    if diseases := _diseases_beside(positives, words):
        raise UserError(f"{NO_FINDING} and {diseases[0]} cannot both be present")
    return positives, negatives


def _shuffled(rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))]


def _groups(rng: np.random.Generator, terms: list[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """Cuts the list into one, two or three runs: a sentence each."""
    if len(terms) < 2:
        return [terms] if terms else []
    cuts = sorted(set(rng.integers(1, len(terms), size=rng.integers(0, 3)).tolist()))
    edges = [0, *cuts, len(terms)]
    return [terms[i:j] for i, j in itertools.pairwise(edges)]


def _fill(template: str, present: Sequence[tuple[str, bool]] = (), absent: Sequence[tuple[str, bool]] = ()) -> str:
    for slot, terms, joint in (("present", present, "and"), ("absent", absent, "or")):
        bare = _joined([term for term, _ in terms], joint)
        with_article = _joined([_article(term) if count else term for term, count in terms], joint)
        template = template.replace(f"{{{slot}}}", bare).replace(f"{{a {slot}}}", with_article)
    if len(present) > 1:
        template = _agree(template)
    return _sentence(template)


def _agree(template: str) -> str:
    """Several things "are" where one "is"."""
    return template.replace(" is present", " are present").replace(" is seen", " are seen")


def _joined(terms: Sequence[str], joint: str) -> str:
    if len(terms) < 3:
        return f" {joint} ".join(terms)
    return f"{', '.join(terms[:-1])}, {joint} {terms[-1]}"


def _article(term: str) -> str:
    return f"{'an' if term[0] in 'aeiou' else 'a'} {term}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
