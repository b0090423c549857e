import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from mmclip_jax.data import ids


@pytest.mark.parametrize(
    ("cell", "id"),
    [
        ("10000032", "10000032"),
        ("10000032.0", "10000032"),
        ("10000032.00", "10000032"),
        ("10000032,0", "10000032"),
        ("10000032.000", "10000032"),  # too many digits in front to be thousands
        ("1.0000032E7", "10000032"),  # Java's spelling; all digits are there
        ("\ufeff 10000032\u00a0\u200b", "10000032"),
        ('="00012"', "00012"),
        ("'00012", "00012"),
        ("00012", "00012"),
        ("Ab-1", "Ab-1"),
        ("u\u0308nal", "\u00fcnal"),
        ("A\u00a0 B", "A B"),
        ("1.2.840.113619.2.5", "1.2.840.113619.2.5"),
        ("12e4", "12e4"),  # hexadecimal ids look so
        ("1.5", "1.5"),
        ("-7.0", "-7"),
        (" \u200b\ufeff", ""),
    ],
)
def test_one_spelling(cell: str, id: str) -> None:
    assert ids.clean_id(cell) == id


@pytest.mark.parametrize(
    "cell", ["1.0E+07", "1E+07", "1,00003E+07", "1e+22", "9007199254740992.0", "10.000", "1,000", "x" * 5000]
)
def test_lost_digits_are_refused(cell: str) -> None:
    with pytest.raises(ids.BadId, match="id "):
        ids.clean_id(cell)


@hypothesis.given(st.text(max_size=30))
def test_cleaning_is_done_once_and_for_all(text: str) -> None:
    try:
        once = ids.clean_id(text)
    except ids.BadId:
        return
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    assert ids.clean_id(unicodedata.normalize("NFD", text)) == once or "=" in text


@hypothesis.given(st.integers(0, 2**53 - 1))
def test_spellings_of_a_number(number: int) -> None:
    for cell in (f"{number}", f"{number}.0", f" {number} ", f"{number}.00", f"{number},0"):
        assert ids.clean_id(cell) == str(number)
    if number:
        assert ids.clean_id(f"{number:.16e}") == str(number)


def test_alike() -> None:
    found = ids.alike(
        ["1299", "00001299", "p01", "P1", "p1", "7", "\uff17", "a", "b", "x10", "x1", "10,000,032", "10000032"]
    )
    assert found == [("00001299", "1299"), ("10,000,032", "10000032"), ("7", "\uff17"), ("p01", "P1", "p1")]
    assert ids.alike(["0", "00", "x"]) == [("00", "0")]


def test_ids_that_differ_in_dashes_are_alike() -> None:
    assert ids.alike(["A-1", "A\u20131", "A_1", "A-2"]) == [("A-1", "A_1", "A\u20131")]
