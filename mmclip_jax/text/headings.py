"""What the heading of a report's section says: whether findings, impression, or something else stands below it.

The reference is the parser that MIMIC-CXR's own table of sections was made with (`txt/section_parser.py` of
MIT-LCP/mimic-cxr). Its headings, the misspelt ones among them, are treated as it treats them, but for these: a heading
is also known in small letters, in other misspellings and in German, French and Spanish; "NDICATION", which that parser
takes for the impression, is an indication; an examination's name behind "REASON FOR" or "INDICATION FOR" is an
indication; "PRIOR FINDINGS" and "CLINICAL IMPRESSION" are not of this film; headings that name organs, lines or
findings are parts of the findings (that parser drops them).
"""

import difflib
import enum
import functools
import re
from collections.abc import Mapping

from mmclip_jax.text.cleaning import word_set
from mmclip_jax.text.entities import find_terms


class Section(enum.Enum):
    """What stands below a heading."""

    FINDINGS = "findings"
    IMPRESSION = "impression"
    VIEW = "view"  # the name of an examination or a view: findings, where no FINDINGS are elsewhere
    PART = "part"  # an organ, a device, a finding: part of the section it stands in, else findings
    LEFT_OUT = "left out"
    UNKNOWN = "unknown"  # of capitals, but with no word that is known


_MAIN = {
    Section.IMPRESSION: "impression impressions conclusion conclusions opinion interpretation summary assessment "
    "beurteilung zusammenfassung schlussfolgerung conclusión conclusion impresión",
    Section.FINDINGS: "finding findings befund befunde hallazgo hallazgos resultat résultat résultats constatations "
    "observations observation narrative description",
}
# The name under which what is left out is counted, and the words of headings that it goes by, strongest first.
_LEFT_OUT = {
    "RECOMMENDATIONS": "recommendation recommendations recommend recommended empfehlung recommandation recomendación "
    "plan",
    "NOTIFICATION": "notification notifications communication communications communicated notified "
    "discussed critical phone telephone",
    "INDICATION": "indication indications reason reasons request requested question complaint symptoms symptom "
    "indikation fragestellung motif indicación motivo",
    "HISTORY": "history hx clinical anamnese anamnesis pfi background admitting klinische klinik angaben "
    "antecedentes antécédents clinique",
    "COMPARISON": "comparison comparisons reference prior priors previous compared vergleich voraufnahme "
    "voruntersuchung "
    "comparaison comparación",
    "ADDENDUM": "addendum addenda addendums nachtrag",
    "WET READ": "wet wetread preliminary",
    "TECHNIQUE": "technique techniques protocol procedure contrast dose medication medications technik técnica",
    "EXAMINATION": "examination examinations exam exams study studies modality untersuchung examen estudio",
    "COMMENT": "comment comments note notes nb disclaimer",
    "DATE": "date time dated datum fecha dob birth",
    "SIGNATURE": "signed signature signatures dictated transcribed approved verified attending resident "
    "radiologist physician physicians reader readers interpreted reviewed by unterschrift arzt cc "
    "transcriptionist attestation dr md",
    "PATIENT": "patient name mrn sex gender age accession order ordering referring location facility department "
    "hospital "
    "id number account institution",
}  # fmt: skip
_VIEW_WORDS = word_set(
    """
    chest thorax cxr portable pa ap lateral lat frontal view views upright semi-upright supine decubitus erect
    film films radiograph radiographs radiography x-ray x-rays xray xrays rx röntgen ribs rib bone window windows
    one two three single 1 2 3 radiologic radiological plain bedside
    """
)
# What the official parser takes for the name of an examination, wherever it stands in a heading of capitals.
_VIEW = re.compile(
    r"chest|portable|pa and lat|lateral and pa|ap and lat|lateral and ap|frontal and|(?:two|one|frontal|pa|ap|lateral) "
    r"views?|bone window|frontal (?:semi-)?upright|ribs|chest|thorax|x-?rays?\b|\bcxr\b|radiograph"
)
_PART_WORDS = word_set(
    """
    lungs lung pleura pleural airway airways heart cardiac cardiomediastinal mediastinum hila hilum bones bone
    osseous skeleton soft tissue tissues lines line tubes tube devices device support hardware catheters catheter
    abdomen upper lower right left vasculature vascular vessels aorta diaphragm diaphragms spine ribs clavicles
    parenchyma spaces space trachea other structures contours silhouette volumes chest wall wires pacemaker neck
    size lunge lungen herz pleuren mediastinums skelett knochen zwerchfell coeur cœur poumons plèvre médiastin
    corazón pulmones pleuras mediastino and the of und et y de la
    """
)
_SMALL_WORDS = word_set(
    """
    and or of for the a an to on in with at s this these her his read ct cxr
    details detail und zur der die das frage de la le du des el y et
    pour para por other additional further incidental final radiographic radiological radiology diagnostic imaging
    report overall pertinent significant brief present exam examination study type information data exams chest
    current diagnóstica diagnostische
    """
)
# Clinical words make a heading no section of the film's own: "CLINICAL IMPRESSION", "PRIOR FINDINGS".
_NOT_OF_THE_FILM = word_set(
    """
    clinical prior previous admitting provisional critical preoperative klinische clinique
    """
)
# Listed by the official parser in another class than the rules below would give.
_LISTED = {
    "reference findings": (Section.FINDINGS, "FINDINGS"),
    # Of a whole report that has been entitled so; "FINAL REPORT" has no words of its own below it.
    **dict.fromkeys(
        ("report", "radiology report", "radiological report", "x ray report"), (Section.FINDINGS, "FINDINGS")
    ),
    # Behind findings it concludes, before them it is what the referrer believes: a part of what it stands in.
    "diagnosis": (Section.UNKNOWN, "DIAGNOSIS"),
    "wet read": (Section.LEFT_OUT, "WET READ"),
    "type of examination": (Section.LEFT_OUT, "EXAMINATION"),
    "patient history": (Section.LEFT_OUT, "HISTORY"),
}

LEFT_OUT_NAMES = frozenset(_LEFT_OUT)


def _class_of_words() -> Mapping[str, tuple[Section, str]]:
    classes: dict[str, tuple[Section, str]] = {}
    for section, words in _MAIN.items():
        classes |= dict.fromkeys(words.split(), (section, section.name))
    for name, words in _LEFT_OUT.items():
        for word in words.split():
            classes.setdefault(word, (Section.LEFT_OUT, name))
    return classes


_CLASSES = _class_of_words()
_ORDER = {name: place for place, name in enumerate(["IMPRESSION", "FINDINGS", *_LEFT_OUT])}
_MISSPELT = [word for word in _CLASSES if len(word) >= 7 and word.isascii()]


@functools.lru_cache(maxsize=65536)
def class_of(heading: str) -> tuple[Section, str]:
    """(what stands below this heading, the name it is counted under). Nothing else is known of it.

    Args:
      heading: the words before the colon, in any case.
    """
    words = _words(heading)
    plain = " ".join(words)
    if plain in _LISTED:
        return _LISTED[plain]
    known = [_class_of_word(word) for word in words]
    best = min((found for found in known if found), key=lambda found: _ORDER[found[1]], default=None)
    if best and best[0] != Section.LEFT_OUT and _NOT_OF_THE_FILM.intersection(words):
        best = min((f for f in known if f and f[0] == Section.LEFT_OUT), key=lambda f: _ORDER[f[1]], default=best)
    if best:
        return best
    if (_VIEW.search(plain) or (words and _VIEW_WORDS.issuperset(words))) and not (
        set(words) <= _PART_WORDS and "wall" in words
    ):
        return Section.VIEW, plain.upper()
    if words and (set(words) <= _PART_WORDS or find_terms(plain)):
        return Section.PART, plain.upper()
    return Section.UNKNOWN, plain.upper()


@functools.lru_cache(maxsize=65536)
def is_heading(candidate: str) -> bool:
    """Whether words that are not all capitals are a heading where a line starts with them and a colon follows.

    All of them must be words of headings; so "Findings and impression" is one, "One finding of note" is none. Parts
    ("Lungs") are headings only in capitals: elsewhere they are words of a sentence.
    """
    words = _words(candidate)
    if not words or len(words) > 8:
        return False
    if not all(_class_of_word(word) or word in _SMALL_WORDS or word in _VIEW_WORDS for word in words):
        return False
    section = class_of(candidate)[0]
    if section is Section.LEFT_OUT and words[0] in _VIEW_WORDS:  # "Chest  Comparison: ...": a title and what follows it
        return False
    return section in (Section.FINDINGS, Section.IMPRESSION, Section.VIEW, Section.LEFT_OUT)


def _words(heading: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", heading.lower().replace("(s)", "s").replace("( s )", "s"))


@functools.lru_cache(maxsize=65536)
def _class_of_word(word: str) -> tuple[Section, str] | None:
    found = _CLASSES.get(word)
    if found is None and len(word) >= 6:
        close = difflib.get_close_matches(word, _MISSPELT, n=1, cutoff=0.85)
        found = _CLASSES[close[0]] if close else None
    return found


@functools.lru_cache(maxsize=65536)
def is_part(candidate: str) -> bool:
    """Whether words that are not all capitals name a part ("Lungs", "Pneumothorax") that a line of a template has."""
    words = _words(candidate)
    if not words or len(words) > 6 or class_of(candidate)[0] != Section.PART:
        return False
    return len(words) == 1 or set(words) <= _PART_WORDS
