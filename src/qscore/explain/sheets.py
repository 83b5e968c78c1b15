"""Sheets of small pictures with words: rows of samples, a feature's images, a matrix; drawn by Pillow alone."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from qscore._files import atomic_path
from qscore._validate import QScoreError
from qscore.explain.overlays import colours

__all__ = ["BAD", "GOOD", "INK", "MUTED", "Cell", "Line", "Row", "draw_matrix", "draw_rows", "draw_strip", "save"]

INK, MUTED, GOOD, BAD, LINE = "#1d2430", "#5d6778", "#33658f", "#a5324c", "#dfe3ea"
SIZE, SMALL = 16, 13
PAD, MARGIN = 8, 16
SIDE = 210  # of the words beside a row
BAR = (120, 12)
FRAME = 3
ABSENT = (232, 235, 240)
COLUMNS = (8, 960)  # of a matrix: pixels of its widest column, and of the widest panel
ROWS = (22, 640)
HAS = frozenset("·…")  # beyond ASCII, what Pillow's font can write and captions use


@dataclass(frozen=True)
class Line:
    """A line of text."""

    text: str
    colour: str = INK
    size: int = SIZE


@dataclass(frozen=True)
class Cell:
    """A small picture and what stands below it."""

    image: UInt8[np.ndarray, "side side 3"]
    lines: Sequence[Line] = ()
    frame: str | None = None


@dataclass(frozen=True)
class Row:
    """Words and, beside them, pictures."""

    lines: Sequence[Line]
    cells: Sequence[Cell]
    remark: str = ""
    """What stands in place of pictures."""


def draw_rows(title: str, notes: Sequence[str], rows: Sequence[Row], side: int, columns: int) -> Image.Image:
    """Draw rows one below the other, under a title, notes and the colour bar of a scale that each row has its own of.

    Parameters
    ----------
    title : str
        In one line.
    notes : sequence of str
        Wrapped to the width.
    rows : sequence of Row
        With at most ``columns`` cells.
    side : int
        Of each picture, in pixels.
    columns : int
        What the width is reckoned for.
    """
    width = 2 * MARGIN + SIDE + columns * (side + PAD)
    below = max((len(cell.lines) for row in rows for cell in row.cells), default=0)
    height = max(side + PAD + below * _step(SMALL), max((_height(row.lines) for row in rows), default=0)) + 2 * PAD
    head = _Head.of(title, notes, width)
    sheet = Image.new("RGB", (width, head.height + len(rows) * height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    head.draw(sheet, pen, "0", "the row's maximum")
    for number, row in enumerate(rows):
        top = head.height + number * height
        pen.line([(MARGIN, top), (width - MARGIN, top)], LINE)
        _write(pen, (MARGIN, top + PAD), row.lines, SIDE - PAD)
        for k, cell in enumerate(row.cells):
            _paste(sheet, pen, cell, (MARGIN + SIDE + k * (side + PAD), top + PAD))
        if row.remark:
            left = MARGIN + SIDE + len(row.cells) * (side + PAD)
            lines = [Line(text, MUTED) for text in _wrap(row.remark, SIZE, width - MARGIN - left)]
            _write(pen, (left, top + PAD + (side - _height(lines)) // 2), lines, width - MARGIN - left)
    return sheet


def draw_strip(
    title: str,
    notes: Sequence[str],
    images: Sequence[Cell],
    overlays: Sequence[Cell],
    side: int,
    columns: int,
    top: str,
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draw images in one line and their overlays below, all of one scale, whose upper end ``top`` says.

    Returns
    -------
    tuple
        The sheet, and where in it the pictures are: left, top, right and bottom.
    """
    width = 2 * MARGIN + columns * (side + PAD) - PAD
    head = _Head.of(title, notes, width)
    below = max((len(cell.lines) for cell in overlays), default=0) * _step(SMALL)
    sheet = Image.new("RGB", (width, head.height + 2 * side + PAD // 2 + below + PAD + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    head.draw(sheet, pen, "0", top)
    for line, cells in enumerate((images, overlays)):
        for k, cell in enumerate(cells):
            _paste(sheet, pen, cell, (MARGIN + k * (side + PAD), head.height + line * (side + PAD // 2)))
    right = MARGIN + max(1, len(images)) * (side + PAD) - PAD
    bottom = head.height + 2 * side + PAD // 2
    return sheet, (MARGIN - FRAME, head.height - FRAME, right + FRAME, bottom)


def draw_matrix(
    title: str,
    notes: Sequence[str],
    labels: Sequence[str],
    panels: Sequence[tuple[str, Float[np.ndarray, "rows columns"]]],
    low: float,
    high: float,
) -> Image.Image:
    """Draw matrices side by side in colours of one scale, with the rows' labels at the left; NaN is grey."""
    n_rows, n_columns = panels[0][1].shape
    cell = max(1, min(COLUMNS[0], COLUMNS[1] // len(panels) // n_columns))
    line = max(2, min(ROWS[0], ROWS[1] // n_rows))
    every = -(-_step(SMALL) // line)  # rows that one label takes
    aside = min(SIDE, max(int(_font(SMALL).getlength(printable(label))) for label in labels)) + PAD
    wide, high_ = n_columns * cell, n_rows * line
    width = max(2 * MARGIN + aside + len(panels) * (wide + 2 * PAD), 3 * SIDE)
    head = _Head.of(title, notes, width)
    sheet = Image.new("RGB", (width, head.height + _step(SIZE) + high_ + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    head.draw(sheet, pen, f"{low:.3g}", f"{high:.3g}")
    top = head.height + _step(SIZE)
    for k in range(0, n_rows, every):
        at = top + k * line + (line * min(every, n_rows - k) - _step(SMALL)) // 2
        _write(pen, (MARGIN, at), [Line(labels[k], INK, SMALL)], aside - PAD)
    for number, (name, values) in enumerate(panels):
        left = MARGIN + aside + number * (wide + 2 * PAD)
        _write(pen, (left, head.height), [Line(name)], wide + PAD)
        share = (values - low) / (high - low) if high > low else np.zeros(values.shape)
        painted = np.where(np.isnan(values)[..., None], np.array(ABSENT, np.uint8), colours(np.nan_to_num(share)))
        sheet.paste(Image.fromarray(painted).resize((wide, high_), Image.Resampling.NEAREST), (left, top))
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def printable(text: str) -> str:
    """Return a text in the letters that Pillow's own font has: accents are dropped, what is unknown is a ``?``."""

    def plain(letter: str) -> str:
        if letter in HAS or " " <= letter <= "~":
            return letter
        bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        return bare if bare.strip() and bare.isprintable() else "" if unicodedata.combining(letter) else "?"

    return "".join(map(plain, text))


@dataclass(frozen=True)
class _Head:
    """What stands above the pictures."""

    lines: list[Line]
    width: int
    height: int

    @classmethod
    def of(cls, title: str, notes: Sequence[str], width: int) -> "_Head":
        inside = width - 2 * MARGIN
        lines = [Line(text, INK, SIZE + 3) for text in _wrap(title, SIZE + 3, inside)]
        lines += [Line(text, MUTED) for note in notes for text in _wrap(note, SIZE, inside)]
        return cls(lines, width, MARGIN + _height(lines) + _step(SMALL) + 2 * PAD)

    def draw(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, low: str, high: str) -> None:
        """Write the lines, and below them the colour bar between its ends."""
        _write(pen, (MARGIN, MARGIN), self.lines, self.width - 2 * MARGIN)
        top = MARGIN + _height(self.lines) + PAD // 2
        begin = MARGIN + int(_font(SMALL).getlength(printable(low))) + PAD
        bar = np.broadcast_to(colours(np.linspace(0, 1, BAR[0])), (BAR[1], BAR[0], 3))
        sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (begin, top + (_step(SMALL) - BAR[1]) // 2))
        _write(pen, (MARGIN, top), [Line(low, MUTED, SMALL)], SIDE)
        _write(pen, (begin + BAR[0] + PAD, top), [Line(high, MUTED, SMALL)], self.width)


def _paste(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, at: tuple[int, int]) -> None:
    left, top = at
    height, width = cell.image.shape[:2]
    sheet.paste(Image.fromarray(cell.image), at)
    if cell.frame:
        box = [left - FRAME, top - FRAME, left + width + FRAME - 1, top + height + FRAME - 1]
        pen.rectangle(box, outline=cell.frame, width=FRAME)
    _write(pen, (left, top + height + PAD // 2), cell.lines, width)


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[Line], width: int) -> None:
    left, top = at
    for line in lines:
        pen.text((left, top), fit(line.text, line.size, width), line.colour, _font(line.size))
        top += _step(line.size)


def fit(text: str, size: int, width: int) -> str:
    """Return a text in letters that can be written, cut short with an ellipsis where it would be too long."""
    text, font = printable(text), _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrap(text: str, size: int, width: int) -> list[str]:
    lines: list[str] = []
    for word in printable(text).split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _height(lines: Sequence[Line]) -> int:
    return sum(_step(line.size) for line in lines)


def _step(size: int) -> int:
    return round(1.35 * size)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise QScoreError("captions need Pillow with FreeType, and this one was built without: pip install pillow")
    return font
