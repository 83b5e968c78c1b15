import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qscore._validate import QScoreError
from qscore.images.decode import decode_image, read_image


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(data):
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def colours(rng):
    return rng.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)


def test_rgb_is_unchanged(colours):
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(colours))), colours)


def test_greyscale_is_repeated(colours):
    grey = colours[:, :, 0]
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(grey))), np.dstack([grey] * 3))


def test_bilevel_becomes_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(pixels(encode(image)), [[[255] * 3, [0] * 3]])


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 257, 32768, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values)))[0, :, 0], [0, 1, 1, 128, 255])


def test_32_bit_pixels_without_a_range_are_refused():
    for values in (np.array([[0.0, 0.5]], dtype=np.float32), np.array([[0, 70000]], dtype=np.int32)):
        with pytest.raises(QScoreError, match="x: the image is damaged .*no agreed range"):
            decode_image(encode(Image.fromarray(values), "TIFF"), "x")


def test_transparent_pixels_are_white():
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(rgba))), [[[255] * 3, [10, 20, 30]]])


def test_palette_with_transparency():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 200, 100, 50])
    data = encode(image, transparency=0)
    np.testing.assert_array_equal(pixels(data), [[[255] * 3, [200, 100, 50]]])


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encode(image, "JPEG", quality=100)), np.full((8, 8, 3), [255, 0, 0]), atol=3)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(colours, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = colours
    # The EXIF standard: what side of the scene the stored first row and first column show.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(stored), exif=exif)), upright[orientation])


def test_metadata_remarks_are_not_passed_on(colours):
    data = encode(Image.fromarray(colours), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(data).shape == colours.shape


@pytest.mark.parametrize("limit", [34, 10], ids=["Pillow only warns", "Pillow raises"])
def test_decompression_bomb_is_refused(monkeypatch, colours, limit):
    data = encode(Image.fromarray(colours))  # 35 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(QScoreError, match=r"x: the image has more than \d+ pixels"):
        decode_image(data, "x")


def test_empty_bytes():
    with pytest.raises(QScoreError, match="x: expected an image, got an empty file"):
        decode_image(b"", "x")


def test_bytes_of_no_format():
    with pytest.raises(QScoreError, match="x: expected an image, got a file of no known image format"):
        decode_image(b"<html>not found</html>", "x")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_file(rng, format):
    noise = Image.fromarray(rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8))
    data = encode(noise, format)
    with pytest.raises(QScoreError, match=r"^x: "):
        decode_image(data[: len(data) // 2], "x")


SEEDS = [encode(Image.linear_gradient("L").resize((9, 9)), format) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")]


@given(st.sampled_from(SEEDS), st.data())
def test_mutations_decode_or_are_refused(data, draw):
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(mutated), "x").mode == "RGB"
    except QScoreError as error:
        assert "\n" not in str(error)


def test_missing_file(tmp_path):
    with pytest.raises(QScoreError, match=r"gone\.png: cannot read the image: No such file"):
        read_image(tmp_path / "gone.png")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(QScoreError, match="cannot read the image: Is a directory"):
        read_image(tmp_path)
