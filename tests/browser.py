"""Pages in Debian's Chromium, as a reader sees them: on screens of any width, and printed on A4."""

import contextlib
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = pathlib.Path("/usr/bin/chromium")
PHONE, LAPTOP = 390, 1280
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """Playwright's browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("Debian's chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def show(browser: Any, file: pathlib.Path, width: int = LAPTOP, scheme: str = "light") -> Any:
    """The page of a file in a window of this width."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(file.as_uri(), wait_until="load")
    return page


def sideways(page: Any) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def is_seen(page: Any, selector: str) -> list[bool]:
    """Of each element, whether all of it lies in the window's width without any scrolling, at some size."""
    found: list[bool] = page.eval_on_selector_all(
        selector,
        """all => all.map(one => {
            const box = one.getBoundingClientRect();
            let left = 0, right = document.documentElement.clientWidth;
            for (let up = one.parentElement; up; up = up.parentElement)
                if (getComputedStyle(up).overflowX !== "visible") {
                    const around = up.getBoundingClientRect();
                    left = Math.max(left, around.left); right = Math.min(right, around.right);
                }
            return box.width > 0 && box.left >= left - 1 && box.right <= right + 1;
        })""",
    )
    return found


def print_a4(page: Any, file: pathlib.Path) -> str:
    """Prints the page by its own rules; returns all text of the file, without any space.

    Every word must lie on its sheet: what runs over its edge is cut off on paper.
    """
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (Debian's poppler-utils) is not installed")
    page.pdf(path=str(file), prefer_css_page_size=True)
    boxes = subprocess.run(["pdftotext", "-bbox", str(file), "-"], capture_output=True, text=True, check=True).stdout
    sheets = re.findall(r'<page width="([\d.]+)" height="([\d.]+)">(.*?)</page>', boxes, re.DOTALL)
    assert sheets
    for width, height, words in sheets:
        assert (round(float(width)), round(float(height))) == (595, 842)  # A4 in points
        for low, high, word in re.findall(r'xMin="([-\d.]+)".*?xMax="([-\d.]+)".*?>(.*?)</word>', words):
            assert float(low) >= 0, f"{word} is cut off"
            assert float(high) <= float(width), f"{word} is cut off"
    raw = subprocess.run(["pdftotext", "-raw", str(file), "-"], capture_output=True, text=True, check=True).stdout
    return "".join(raw.split())


def missing_cells(page: Any, printed: str) -> list[str]:
    """The cells of tables, those of folded parts too, whose text is not in what was printed."""
    cells: list[str] = page.eval_on_selector_all("td, th", "all => all.map(one => one.textContent)")
    assert cells
    return [cell for cell in cells if "".join(cell.split()) not in printed]
