import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from qscore.explain.overlays import colours
from qscore.explain.sheets import BAD, Cell, Line, Row, draw_matrix, draw_rows, draw_strip, fit, printable, save


def pictures(rng, n, side=40):
    return [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in range(n)]


def places(sheet, picture):
    """Top left corners at which a picture stands in a sheet, by looking everywhere its first pixel is."""
    pixels, (h, w, _) = np.asarray(sheet), picture.shape
    starts = np.argwhere((pixels[: len(pixels) - h + 1, : pixels.shape[1] - w + 1] == picture[0, 0]).all(-1))
    return [(int(x), int(y)) for y, x in starts if (pixels[y : y + h, x : x + w] == picture).all()]


def test_every_picture_of_a_row_stands_on_the_sheet_as_it_is(rng):
    shown = pictures(rng, 5)
    rows = [
        Row([Line("one")], [Cell(shown[0], (), BAD), Cell(shown[1], [Line("7 · 0.5")])]),
        Row([Line("two")], [Cell(image) for image in shown[2:]]),
        Row([Line(f"line {k}") for k in range(12)], [], "nothing to see"),
    ]
    sheet = draw_rows("Title", ["A note."], rows, 40, 3)
    found = [places(sheet, image) for image in shown]
    assert all(len(at) == 1 for at in found)
    corners = [at[0] for at in found]
    assert len({x for x, _ in corners}) == 3 and corners[0][1] == corners[1][1] < corners[2][1] == corners[3][1]
    x, y = corners[0]
    assert sheet.getpixel((x - 2, y - 2)) == tuple(int(BAD[k : k + 2], 16) for k in (1, 3, 5))
    assert np.asarray(sheet)[:, -4:].min() == 255 and np.asarray(sheet)[-4:].min() == 255  # nothing is cut off


def test_the_strip_of_a_feature_is_where_it_is_said_to_be(rng):
    shown = pictures(rng, 6)
    plain, over = ([Cell(image, (), BAD) for image in shown[:3]], [Cell(image, [Line("x")]) for image in shown[3:]])
    sheet, (left, top, right, bottom) = draw_strip("Title", ["note " * 60], plain, over, 40, 5, "0.25")
    strip = sheet.crop((left, top, right, bottom))
    corners = [places(strip, image)[0] for image in shown]
    assert corners == [(3, 3), (51, 3), (99, 3), (3, 47), (51, 47), (99, 47)]
    assert strip.size == (99 + 40 + 3, 47 + 40)


def test_a_matrix_has_one_colour_a_cell(rng):
    values = rng.random((3, 4))
    values[1, 2] = np.nan
    sheet = np.asarray(draw_matrix("Title", [], ["a", "b", "c"], [("left", values), ("right", 1 - values)], 0.0, 1.0))
    for panel in (values, 1 - values):
        for value in panel.ravel():
            colour = (232, 235, 240) if np.isnan(value) else colours(np.array(value))
            assert (sheet == colour).all(-1).sum() >= 8 * 22  # of such a cell's pixels


def test_a_matrix_of_any_size_can_be_drawn():
    for rows, columns in ((1, 1), (100, 2000), (10, 50)):
        sheet = draw_matrix("T", ["n"], ["a long name " * 9] * rows, [("all", np.ones((rows, columns)))], 1.0, 1.0)
        assert sheet.width < 2400 and sheet.height < 1000


@given(st.text(max_size=60), st.integers(30, 300))
def test_text_is_never_wider_than_its_place(text, width):
    found = fit(text, 13, width)
    font = ImageFont.load_default(13)
    assert font.getlength(found) <= max(width, font.getlength("…"))
    assert found == printable(text) or found.endswith("…")


def test_letters_that_cannot_be_written_are_replaced():
    assert printable("Ein Füßchen · é") == "Ein Fu?chen · e"
    assert printable("猫.png") == "?.png" and printable("a\nb") == "a?b"
    blank = bytes(ImageFont.load_default(16).getmask("\u732b"))
    for letter in map(chr, range(33, 127)):
        assert bytes(ImageFont.load_default(16).getmask(letter)) != blank  # the box of a letter that is missing


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    class Broken:
        def save(self, path, format):
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(ValueError, match="cannot write"):
        save(Broken(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    save(Image.new("RGB", (3, 2)), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
