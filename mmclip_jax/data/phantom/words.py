"""The wording of the phantom's reports, as data: terms of the findings and templates that all of them share.

Templates are shared on purpose: what stands around a finding's name must not give the name away, so that a masked name
can be restored from the image only. `{np}` is a noun phrase, `{loc}` a place with a leading space or nothing.
"""

# Terms of each kind: (term, takes an article). Each is a term of that kind in the vocabulary.
TERMS: dict[str, tuple[tuple[str, bool], ...]] = {
    "atelectasis": (("atelectasis", False), ("atelectasis", False), ("atelectatic change", False)),
    "cardiomegaly": (
        ("cardiomegaly", False),
        ("cardiomegaly", False),
        ("cardiac enlargement", False),
        ("enlarged heart", True),
        ("enlarged cardiac silhouette", True),
    ),
    "consolidation": (("consolidation", False), ("consolidation", True), ("airspace consolidation", False)),
    "edema": (("edema", False), ("pulmonary edema", False), ("interstitial edema", False)),
    "fibrosis": (("fibrosis", False), ("pulmonary fibrosis", False), ("fibrotic change", False)),
    "hernia": (("hernia", True), ("hiatal hernia", True), ("hiatus hernia", True)),
    "mass": (("mass", True), ("mass", True), ("lung mass", True)),
    "nodule": (("nodule", True), ("nodule", True), ("lung nodule", True), ("nodular density", True)),
    "pleural_effusion": (("pleural effusion", True), ("pleural effusion", True), ("effusion", True)),
    "pneumothorax": (("pneumothorax", True),),
}
DEVICE_TERMS: dict[str, tuple[tuple[str, bool], ...]] = {
    "pacemaker": (("pacemaker", True), ("pacemaker", True), ("support device", True)),
    "endotracheal tube": (("endotracheal tube", True), ("endotracheal tube", True), ("support device", True)),
    "central venous catheter": (("central venous catheter", True), ("central line", True), ("support device", True)),
}
# Adjectives of size for terms with an article, of degree for those without.
GRADES: dict[bool, dict[str, tuple[str, ...]]] = {
    True: {"mild": ("small", "small", "minimal"), "moderate": ("moderate",), "severe": ("large",)},
    False: {"mild": ("mild", "mild", "minimal"), "moderate": ("moderate",), "severe": ("severe",)},
}
# Places by third of the lung. The last of each list are shared by all zones and kinds.
PLACES: dict[str, tuple[str, ...]] = {
    "upper": ("in the {side} upper lobe", "in the {side} upper lung", "at the {side} apex"),
    "middle": ("in the {side} mid lung", "in the {side} perihilar region"),
    "lower": ("in the {side} lower lobe", "at the {side} lung base", "at the {side} base", "in the {side} lower lung"),
}
SIDE_PLACES = ("on the {side}", "in the {side} hemithorax")
BOTH_PLACES = ("on both sides", "bilaterally")
BOTH_ZONE_PLACES: dict[str, tuple[str, ...]] = {"upper": ("at both apices",), "lower": ("at both lung bases",)}
# Before the name: "right basilar atelectasis".
PREFIXES: dict[str, tuple[str, ...]] = {
    "upper": ("{side} upper lobe", "{side} apical"),
    "middle": ("{side} perihilar",),
    "lower": ("{side} lower lobe", "{side} basilar"),
}

PRESENT = (
    "There is {np}{loc}.",
    "There is {np}{loc}.",
    "{np} is seen{loc}.",
    "{np} is noted{loc}.",
    "{np} is present{loc}.",
    "{np} is demonstrated{loc}.",
    "{np}{loc}.",
    "Findings are consistent with {np}{loc}.",
    "The radiograph shows {np}{loc}.",
)
PRESENT_TWO = (
    "There is {np}{loc} and {np2}{loc2}.",
    "{np}{loc} and {np2}{loc2} are seen.",
    "The study shows {np}{loc}, as well as {np2}{loc2}.",
    "{np}{loc} with {np2}{loc2}.",
)
PRESENT_WITHOUT = ("{np}{loc} without {absent}.", "There is {np}{loc} without {absent}.")
# Against the study before: the same, more, less, newly there, gone.
SAME = (
    "{np}{loc} is unchanged.",
    "Again seen is {np}{loc}.",
    "Stable {bare}{loc}.",
    "{np}{loc} is stable compared with the prior study.",
)
MORE = ("{np}{loc} has increased since the prior study.", "Worsening {bare}{loc}.")
LESS = ("{np}{loc} has decreased since the prior study.", "Improving {bare}{loc}.")
NEW = ("New {bare}{loc}.", "There is {np}{loc}, new since the prior study.")
GONE = ("The previously seen {bare} is no longer present.", "The prior {bare} has resolved.")
HEDGED = (
    "Possible {bare}{loc}.",
    "Questionable {bare}{loc}.",
    "{np}{loc} cannot be excluded.",
    "There may be {np}{loc}.",
    "Findings are suspicious for {bare}{loc}.",
)
# What marks a hedged sentence.
HEDGE_WORDS = ("possible", "questionable", "cannot be excluded", "may be", "suspicious for")

ABSENT_ONE = ("No {a}.", "There is no {a}.", "No evidence of {a}.", "No {a} is seen.", "{a} is not seen.", "No {a}.")
ABSENT_TWO = ("No {a} or {b}.", "There is no {a} or {b}.", "No evidence of {a} or {b}.", "Negative for {a} or {b}.")
ABSENT_THREE = ("No {a}, {b}, or {c}.", "There is no {a}, {b}, or {c}.")
# How often an absent kind is mentioned, relative to the others; unlisted kinds: 0.06.
ABSENT_WEIGHTS = {
    "pleural_effusion": 0.5,
    "pneumothorax": 0.5,
    "consolidation": 0.4,
    "edema": 0.25,
    "cardiomegaly": 0.12,
    "mass": 0.12,
    "nodule": 0.12,
    "atelectasis": 0.12,
}

NORMAL_HEART = (
    "The heart is normal in size.",
    "Heart size is within normal limits.",
    "The cardiac silhouette is normal.",
    "Cardiac size is normal.",
)
CLEAR_LUNGS = ("The lungs are clear.", "Both lungs are clear.", "Lungs are well expanded and clear.")
NORMAL_MEDIASTINUM = (
    "The mediastinal contours are normal.",
    "The trachea is midline.",
    "The aorta is unremarkable.",
    "Hilar contours are within normal limits.",
)
TECHNIQUE = (
    "{view} view of the chest.",
    "Single frontal view of the chest.",
    "Frontal radiograph of the chest was obtained.",
    "Image quality is adequate.",
    "The patient is slightly rotated.",
)
COMPARISON = ("Comparison is made with the prior study.", "Compared with the previous examination.")
NO_COMPARISON = ("There are no prior studies for comparison.", "Comparison: none.")
BONES = (
    "The osseous structures are intact.",
    "No acute osseous abnormality.",
    "The visualized bones are unremarkable.",
    "The soft tissues are unremarkable.",
    "The upper abdomen is unremarkable.",
)
OLD_BONES = ("Degenerative changes of the thoracic spine.", "Mild scoliosis of the thoracic spine.")
NORMAL_IMPRESSION = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary disease.",
    "No acute cardiopulmonary process.",
    "Normal chest.",
    "Unremarkable chest radiograph.",
)
VAGUE_IMPRESSION = ("As described above.", "Clinical correlation is recommended.", "Follow-up is recommended.")
