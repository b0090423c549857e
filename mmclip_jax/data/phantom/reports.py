"""Reports: varied prose that says what the plan of a study says, if not all of it."""

import re
from collections.abc import Sequence

from mmclip_jax.data.phantom import words
from mmclip_jax.data.phantom.dice import Dice
from mmclip_jax.data.phantom.findings import DISEASES, Finding, Patient, draw_findings

# Chances of what makes reports less than the truth.
OMITTED = 0.05  # a mild finding is not mentioned
HEDGED = 0.12  # a mild finding is mentioned with a hedge
FALSE_HEDGE = 0.03  # a study whose report hedges about a finding that is not there
NO_IMPRESSION = 0.12
NO_FINDINGS_SECTION = 0.10
REPEATED = 0.6  # a finding is named again in the impression
WORDS = 48  # sentences that say nothing of findings are left out beyond this
_LUNG_KINDS = frozenset(DISEASES) - {"cardiomegaly", "hernia"}
_PLURALS = {"is": "are", "has": "have"}
_PLURAL = re.compile(r"\b(is|has)\b")
_DEVICE_SIDE = {"pacemaker": "left", "central venous catheter": "right"}


def write_report(patient: Patient, study: int, findings: Sequence[Finding], view: str) -> tuple[str, str]:
    """The sections (findings, impression) of a study's report; one of them may be empty, never both."""
    dice = Dice(*patient.key, study, 4)
    before = {finding.kind: finding for finding in draw_findings(patient, study - 1)} if study > 1 else {}
    told = [finding for finding in findings if not (finding.grade == "mild" and dice.chance(OMITTED))]
    told = dice.shuffled(told)
    if told and dice.chance(NO_FINDINGS_SECTION):
        return "", _join(dice, _positives(dice, told, before, study, findings) + _negatives(dice, findings, 2))
    body = _positives(dice, told, before, study, findings)
    present = {finding.kind for finding in findings}
    if study > 1:
        for kind in sorted(set(before) - present):
            if dice.chance(0.4):
                body.append(_fill(dice.choice(words.GONE), bare=dice.choice(_terms(before[kind]))[0]))
    if dice.chance(FALSE_HEDGE):
        kind = dice.choice([kind for kind in DISEASES if kind not in present and kind != "hernia"] or ["edema"])
        if kind not in present:
            body.append(_sentence(dice, dice.choice(words.HEDGED), Finding(kind, 0.0, ())))
    body += _negatives(dice, findings, 3)
    body = body or [dice.choice(words.NORMAL_MEDIASTINUM)]
    text = _join(dice, body, _filler(dice, patient, study, findings, view))
    return text, "" if dice.chance(NO_IMPRESSION) else _impression(dice, told, findings)


def _positives(
    dice: Dice, told: Sequence[Finding], before: dict[str, Finding], study: int, findings: Sequence[Finding]
) -> list[str]:
    """Sentences that name the findings."""
    sentences: list[str] = []
    left = list(told)
    while left:
        finding = left.pop()
        old = before.get(finding.kind)
        if finding.grade == "mild" and finding.kind != "support_device" and dice.chance(HEDGED):
            template = dice.choice(words.HEDGED)
        elif study > 1 and dice.chance(0.5):
            if old is None:
                template = dice.choice(words.NEW)
            elif abs(old.severity - finding.severity) < 0.2 or finding.kind == "support_device":
                template = dice.choice(words.SAME)
            else:
                template = dice.choice(words.MORE if finding.severity > old.severity else words.LESS)
        elif left and dice.chance(0.25):
            other = left.pop()
            sentences.append(_sentence(dice, dice.choice(words.PRESENT_TWO), finding, other))
            continue
        elif dice.chance(0.1):
            absent = _absent_terms(dice, findings, 1)
            sentences.append(_sentence(dice, dice.choice(words.PRESENT_WITHOUT), finding, absent=absent[0]))
            continue
        else:
            template = dice.choice(words.PRESENT)
        sentences.append(_sentence(dice, template, finding))
    return sentences


def _negatives(dice: Dice, findings: Sequence[Finding], most: int) -> list[str]:
    """Sentences that deny some of what is absent."""
    terms = _absent_terms(dice, findings, int(dice.random() * (most + 1)) + (0 if findings else 1))
    sentences = []
    while terms:
        number = min(len(terms), 1 + dice.chance(0.6) + dice.chance(0.2))
        pool = (words.ABSENT_ONE, words.ABSENT_TWO, words.ABSENT_THREE)[number - 1]
        sentences.append(_fill(dice.choice(pool), **dict(zip("abc", terms[:number], strict=False))))
        terms = terms[number:]
    return sentences


def _absent_terms(dice: Dice, findings: Sequence[Finding], number: int) -> list[str]:
    """Names of absent diseases, the commonly denied ones first."""
    present = {finding.kind for finding in findings}
    ranked = sorted(
        (dice.random() ** (1.0 / words.ABSENT_WEIGHTS.get(kind, 0.06)), kind)
        for kind in DISEASES
        if kind not in present
    )
    return [dice.choice(words.TERMS[kind])[0] for _, kind in ranked[::-1][:number]]


def _filler(dice: Dice, patient: Patient, study: int, findings: Sequence[Finding], view: str) -> list[str]:
    """True sentences that tell nothing about the diseases, or little."""
    present = {finding.kind for finding in findings}
    pool = [words.NORMAL_MEDIASTINUM, words.TECHNIQUE, words.BONES, words.COMPARISON if study > 1 else ()]
    chances = [0.4, 0.35, 0.35, 0.15]
    if study == 1:
        pool[3] = words.NO_COMPARISON
        chances[3] = 0.06
    if patient.anatomy.age > 55:
        pool.append(words.OLD_BONES)
        chances.append(0.12)
    if "cardiomegaly" not in present:
        pool.append(words.NORMAL_HEART)
        chances.append(0.4)
    if not present & _LUNG_KINDS:
        pool.append(words.CLEAR_LUNGS)
        chances.append(0.5)
    sentences = [dice.choice(options) for options, chance in zip(pool, chances, strict=True) if dice.chance(chance)]
    return [sentence.replace("{view}", view) for sentence in sentences]


def _impression(dice: Dice, told: Sequence[Finding], findings: Sequence[Finding]) -> str:
    if not {finding.kind for finding in findings} & set(DISEASES):
        return dice.choice(words.NORMAL_IMPRESSION)
    repeated = [finding for finding in told if finding.grade != "mild" or dice.chance(0.5)]
    sentences = [_sentence(dice, dice.choice(words.PRESENT), finding) for finding in repeated if dice.chance(REPEATED)]
    if not sentences:
        return dice.choice(words.VAGUE_IMPRESSION) if dice.chance(0.6) else ""
    return _join(dice, sentences[:3])


def _join(dice: Dice, sentences: Sequence[str], filler: Sequence[str] = ()) -> str:
    """The sentences in random order, with filler as far as there is room."""
    room = WORDS - sum(len(sentence.split()) for sentence in sentences)
    chosen = list(sentences)
    for sentence in filler:
        room -= len(sentence.split())
        if room < 0 and chosen:
            break
        chosen.append(sentence)
    return " ".join(dice.shuffled(chosen))


def _terms(finding: Finding) -> tuple[tuple[str, bool], ...]:
    return words.DEVICE_TERMS[finding.device] if finding.device else words.TERMS[finding.kind]


def _sentence(dice: Dice, template: str, finding: Finding, other: Finding | None = None, absent: str = "") -> str:
    """Fills a template with noun phrases and places of one or two findings."""
    phrase, bare, place = _phrase(dice, finding)
    if bare.startswith("bilateral") and bare.endswith("s"):
        template = _PLURAL.sub(lambda match: _PLURALS[match[0]], template)
    values = {"np": phrase, "bare": bare, "loc": place, "absent": absent}
    if other is not None:
        values["np2"], _, values["loc2"] = _phrase(dice, other)
    return _fill(template, **values)


def _fill(template: str, **values: str) -> str:
    sentence = template.format(**values)
    return sentence[0].upper() + sentence[1:]


def _phrase(dice: Dice, finding: Finding) -> tuple[str, str, str]:
    """(noun phrase with its article, the same without article and degree, place with a leading space or "")."""
    term, article = dice.choice(_terms(finding))
    sides = finding.sides
    if finding.device in _DEVICE_SIDE:
        sides = (_DEVICE_SIDE[finding.device],)
    prefix = place = ""
    if len(sides) == 1:
        named = finding.zone if finding.kind != "pneumothorax" or finding.grade == "mild" else ""
        if dice.chance(0.8):
            if dice.chance(0.3):
                prefix = dice.choice((*_prefixes(finding.kind, named), "{side}"))
            else:
                place = dice.choice((*_places(finding.kind, named), *words.SIDE_PLACES))
    elif sides and dice.chance(0.7):
        if article or dice.chance(0.4):
            prefix = "bilateral"
        else:
            place = dice.choice((*words.BOTH_PLACES, *words.BOTH_ZONE_PLACES.get(finding.zone, ())))
    side = sides[0] if sides else ""
    noun = term
    if prefix == "bilateral" and article:
        noun, article = term + "s", False
        grade = dice.choice(words.GRADES[True][finding.grade])
    else:
        grade = dice.choice(words.GRADES[article][finding.grade])
    if finding.device or dice.chance(0.35) or term.startswith("enlarged"):
        grade = ""
    bare = " ".join(part for part in (prefix.format(side=side), noun) if part)
    phrase = f"{grade} {bare}" if grade else bare
    if article:
        phrase = ("an " if phrase[0] in "aeiou" else "a ") + phrase
    return phrase, bare, " " + place.format(side=side) if place else ""


def _places(kind: str, zone: str) -> tuple[str, ...]:
    """Places by zone that are said of this kind: fluid and air of the pleura are not in a lobe."""
    places = words.PLACES.get(zone, ())
    return places if kind not in ("pleural_effusion", "pneumothorax") else tuple(p for p in places if "at the" in p)


def _prefixes(kind: str, zone: str) -> tuple[str, ...]:
    prefixes = words.PREFIXES.get(zone, ())
    return prefixes if kind not in ("pleural_effusion", "pneumothorax") else prefixes[1:]
