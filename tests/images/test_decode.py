import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import decode
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


def test_cmyk_of_a_tiff_is_exact():
    inks = np.array([[[0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    data = encode(Image.fromarray(inks, "CMYK"), "TIFF")
    np.testing.assert_array_equal(pixels(data), [[[255, 0, 0], [0, 0, 0], [255, 255, 255]]])


def test_palettes_are_looked_up(colours):
    image = Image.fromarray(colours).quantize(35)
    np.testing.assert_array_equal(pixels(encode(image)), np.asarray(image.convert("RGB")))
    assert image.mode == "P" and len(np.unique(pixels(encode(image)).reshape(-1, 3), axis=0)) > 30


def png_of_16_bits(values, colour_type, *chunks):
    """A PNG of 16 bits a channel, which Pillow cannot write in colour; values (h, w, channels) uint16."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    h, w, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">2I5B", w, h, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_sixteen_bits_of_colour():
    values = np.array([[[0, 32768, 65535], [257, 514, 65280]]], dtype=np.uint16)
    np.testing.assert_array_equal(pixels(png_of_16_bits(values, 2)), [[[0, 128, 255], [1, 2, 255]]])


def test_sixteen_bits_with_alpha():
    values = np.array([[[65535, 0, 0, 65535], [65535, 0, 0, 0]]], dtype=np.uint16)
    np.testing.assert_array_equal(pixels(png_of_16_bits(values, 6)), [[[255, 0, 0], [255, 255, 255]]])


def test_sixteen_bits_with_a_transparent_grey():
    values = np.array([[[1000], [1001], [65535]]], dtype=np.uint16)
    data = png_of_16_bits(values, 0, (b"tRNS", struct.pack(">H", 1000)))
    np.testing.assert_array_equal(pixels(data)[0, :, 0], [255, 4, 255])


def test_sixteen_bit_tiffs_of_either_byte_order():
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    for prefix in (b"II", b"MM"):
        data = encode(Image.fromarray(values), "TIFF") if prefix == b"II" else big_endian_tiff(values)
        assert data.startswith(prefix)
        np.testing.assert_array_equal(pixels(data)[0, :, 0], [0, 1, 255])


def big_endian_tiff(values):
    h, w = values.shape
    tags = [(256, w), (257, h), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, h), (279, values.nbytes)]
    entries = b"".join(struct.pack(">2HIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    return b"MM\0*" + struct.pack(">I", 8 + values.nbytes) + values.astype(">u2").tobytes() + directory


def test_grey_with_alpha():
    values = np.array([[[100, 255], [100, 0], [0, 51]]], dtype=np.uint8)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values)))[0, :, 0], [100, 255, 204])


def test_a_transparent_colour():
    image = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], dtype=np.uint8))
    np.testing.assert_array_equal(pixels(encode(image, transparency=(1, 2, 3))), [[[255] * 3, [1, 2, 4]]])


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(pixels(data), np.full((4, 4, 3), [255, 0, 0]))


def test_formats_that_run_other_programs_are_no_images():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(QScoreError, match="x: expected an image, got a file of no known image format"):
        decode_image(postscript, "x")


def test_jpegs_are_decoded_in_full(rng):
    """Draft mode, which is faster, would give other pixels."""
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((300, 200))
    data = encode(image, "JPEG")
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_threads_leave_the_warning_filters_as_they_were(colours):
    before = list(warnings.filters)
    with decode._quiet, decode._quiet:
        assert decode_image(encode(Image.fromarray(colours)), "x").mode == "RGB"
    decode._quiet.__enter__()  # one thread
    decode._quiet.__enter__()  # another, which outlasts it
    decode._quiet.__exit__()
    with pytest.raises(Image.DecompressionBombWarning):
        warnings.warn("large", Image.DecompressionBombWarning, stacklevel=1)
    warnings.warn("odd metadata", stacklevel=1)
    decode._quiet.__exit__()
    assert warnings.filters == before


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


def mutated(data, rng):
    """Damage the bytes of a file in one of the ways that disks, downloads and people do."""
    data, way = bytearray(data), rng.integers(5)
    place = int(rng.integers(len(data)))
    if way == 0:
        del data[place:]
    elif way == 1:
        del data[place : place + int(rng.integers(1, 16))]
    elif way == 2:
        data[place:place] = rng.bytes(int(rng.integers(1, 16)))
    else:
        for place in rng.integers(0, len(data) if way == 3 else min(len(data), 64), 4):
            data[place] = rng.integers(256)
    return bytes(data)


SEEDS = {
    "PNG": {},
    "JPEG": {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    "GIF": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {},
    "BMP": {},
    "PPM": {},
    "JPEG2000": {},
}


@pytest.mark.parametrize("format", SEEDS)
def test_mutations_decode_or_are_refused(format):
    data = encode(Image.linear_gradient("L").resize((9, 7)).convert("RGB"), format, **SEEDS[format])
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(500):
        try:
            read += decode_image(mutated(data, rng), "x").mode == "RGB"
        except QScoreError as error:
            assert str(error).startswith("x: ") and "\n" not in str(error)
    assert 0 < read < 500


def test_missing_file(tmp_path):
    with pytest.raises(QScoreError, match=r"gone\.png: cannot read the image: No such file"):
        read_image(tmp_path / "gone.png")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(QScoreError, match="cannot read the image: Is a directory"):
        read_image(tmp_path)
