"""Which way the rays went: PA, AP or LATERAL from the words of tables and of DICOM headers, in four languages."""

import re
import unicodedata

_WORDS = {
    "PA": "pa p.a p.a. posteroanterior dorsoventral",
    "AP": "ap a.p a.p. anteroposterior ventrodorsal",
    "LATERAL": "lateral lat lat. ll rl llat rlat seitlich seitl seitl. profil lateralaufnahme laterale laterolateral",
}
_VIEW_OF = {word: view for view, words in _WORDS.items() for word in words.split()}
# Words that say nothing of the direction.
_FILL = """chest thorax cxr x-ray xray x ray rontgen rx radiografia radiographie torax view projection aufnahme portable
    bedside supine erect upright standing sitting liegend stehend sitzend im de du la le in bett couche debout decubito
    supino left right links rechts gauche droit izquierda derecha l r l. r. 1 2 ebene ebenen""".split()  # noqa: SIM905
_JOINED = re.compile(r"\b(postero|antero|dorso|ventro|latero)[- ](anterior|posterior|ventral|dorsal|lateral)")
_BETWEEN = r"[\s,;:/()_+\[\]-]+"
_OBLIQUE = re.compile(r"\b(oblique|obl|schrag|oblicua|rao|lao|rpo|lpo|rlo|llo)\b")


def plain(text: str) -> str:
    """Small letters without accents, with single spaces: how words are compared."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in folded if not unicodedata.combining(c)).split())


def views_in(text: str) -> set[str]:
    """The directions that the words of a text name, wherever they stand; none beside an oblique one."""
    text = _JOINED.sub(r"\1\2", plain(text))
    if _OBLIQUE.search(text):
        return set()
    words = re.split(_BETWEEN, text)
    return {_VIEW_OF[word] for word in words if word in _VIEW_OF}


def view_of(cell: str) -> str:
    """PA, AP or LATERAL where all words of a cell are known ("Thorax a.p. liegend"), else the cell as it is."""
    views = views_in(cell)
    words = re.split(_BETWEEN, _JOINED.sub(r"\1\2", plain(cell)))
    if words == ["l"]:  # as ieee8023's collection writes laterals
        return "LATERAL"
    if len(views) != 1:
        return cell.strip()
    known = all(not word or word in _VIEW_OF or word in _FILL for word in words)
    return views.pop() if known or views == {"LATERAL"} else cell.strip()
