import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference.heatmaps import enlarge
from reference.preprocessing import offset

from qscore import QScoreError
from qscore.encoders import Preprocessing
from qscore.explain.geometry import place_mask, place_masks, upsample

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
GEOMETRIES = [
    Preprocessing(crop=224, resize=256, **PLAIN),
    Preprocessing(crop=96, resize=96, **PLAIN),
    Preprocessing(crop=64, resize=80, squash=True, interpolation="bicubic", **PLAIN),
    Preprocessing(crop=50, interpolation="lanczos", **PLAIN),
    Preprocessing(crop=300, resize=120, **PLAIN),  # padded
    Preprocessing(crop=333, **PLAIN),
]
SIZES = [(120, 90), (91, 133), (300, 300), (257, 64)]
names = [f"{p.resize or ''}-{p.crop}{'-squash' * p.squash}" for p in GEOMETRIES]


def with_marker(size, left, top, right, bottom):
    """A black image with a white block, and the mask of the block."""
    mask = np.zeros((size[1], size[0]), np.float32)
    mask[top:bottom, left:right] = 1
    return Image.fromarray((mask * 255).astype(np.uint8)).convert("RGB"), mask


@pytest.mark.parametrize("preprocess", GEOMETRIES, ids=names)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_image_and_mask_go_through_the_same_geometry(preprocess, size):
    """The block is where the mask says, to the pixels that its blurred edge leaves open."""
    w, h = size
    wide = max(1, round(min(size) / preprocess.resize)) if preprocess.resize else 1  # so that its edge is little of it
    image, mask = with_marker(size, w // 2 - 11 * wide, h // 2 - 13 * wide, w // 2 + 16 * wide, h // 2 + 10 * wide)
    x, masks = place_masks(image, {"object": mask, "background": 1 - mask}, preprocess)
    seen, marked = x[0] >= 0.5, masks["object"] >= 0.5
    assert seen.shape == marked.shape == (preprocess.crop, preprocess.crop)
    assert (seen & marked).sum() / (seen | marked).sum() > 0.9
    for axis in (0, 1):
        places = [(block.nonzero()[:, axis].double().mean()).item() for block in (seen, marked)]
        assert abs(places[0] - places[1]) < 0.5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_single_pixel_lands_where_its_image_does(size):
    w, h = size
    image, mask = with_marker(size, w // 2, h // 2 - 3, w // 2 + 1, h // 2 - 2)
    for preprocess in (
        Preprocessing(crop=40, **PLAIN),
        Preprocessing(crop=3 * min(size), resize=3 * min(size), **PLAIN),
    ):
        x, masks = place_masks(image, {"object": mask}, preprocess)
        seen, marked = (x[0] == x[0].max()).nonzero().double().mean(0), masks["object"].nonzero().double().mean(0)
        assert torch.allclose(seen, marked, atol=0.51)


@settings(deadline=None)
@given(st.integers(20, 70), st.integers(20, 70), st.integers(1, 60), st.integers(0, 60), st.integers(0, 1000))
def test_areas_are_averaged_and_the_centre_is_cut_out(w, h, crop, side, seed):
    """Oracle: Pillow's box filter, and the crop pixel by pixel."""
    grid = np.random.default_rng(seed).random((h, w), np.float32)
    preprocess = Preprocessing(crop=crop, resize=side or None)
    found = place_mask(grid, (w, h), preprocess)
    image = Image.fromarray(np.round(grid * 255).astype(np.uint8))
    if side:
        size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
        image = image.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(image)
    for y in range(crop):
        for x in range(crop):
            row, column = y + offset(image.height, crop), x + offset(image.width, crop)
            inside = 0 <= row < image.height and 0 <= column < image.width
            assert found[y, x].item() == pytest.approx(pixels[row, column] / 255 if inside else 0, abs=1e-6)


def test_beyond_the_image_is_neither_object_nor_background():
    image, mask = with_marker((30, 20), 5, 5, 15, 15)
    _, masks = place_masks(image, {"object": mask, "background": 1 - mask}, Preprocessing(crop=40))
    marked = masks["object"] + masks["background"]
    assert marked.sum() == 600 and marked[10:30, 5:35].min() == 1


def test_what_the_crop_leaves_nothing_of_is_missing():
    image, mask = with_marker((200, 50), 0, 0, 20, 50)
    _, masks = place_masks(image, {"object": mask, "background": 1 - mask}, Preprocessing(crop=32, resize=32))
    assert masks == {}
    _, masks = place_masks(image, {"object": mask, "background": 1 - mask}, Preprocessing(crop=300))
    assert set(masks) == {"object", "background"}


def test_soft_values_are_kept():
    mask = np.full((10, 10), 0.6, np.float32)
    mask[:, :5] = 0.2
    placed = place_mask(mask, (10, 10), Preprocessing(crop=10))
    assert torch.allclose(placed, torch.from_numpy(mask), atol=0.5 / 255)


def test_a_mask_of_another_size():
    image, mask = with_marker((30, 20), 5, 5, 15, 15)
    with pytest.raises(QScoreError) as caught:
        place_masks(image, {"object": mask[:10, :15]}, Preprocessing(crop=40), name="cat.jpg")
    assert str(caught.value) == (
        "cat.jpg, object: expected a mask of the image's size, 30 x 20 pixels, got 15 x 10; resize neither: a mask "
        "goes "
        "through the encoder's geometry with its image"
    )


FRAME = Preprocessing(crop=224, resize=256, **PLAIN)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (334, 333)], ids=str)
@pytest.mark.parametrize("preprocess", [FRAME, *GEOMETRIES[1:3], Preprocessing(crop=224, resize=232, **PLAIN)], ids=str)
def test_a_mask_of_the_crop_that_its_maker_saw(size, preprocess):
    """It ends up where the full mask does, and untouched where the encoder's crop is the maker's."""
    w, h = size
    image, full = with_marker(size, w // 2 - 60, h // 2 - 70, w // 2 + 80, h // 2 + 40)
    framed = FRAME(image)[0].numpy()
    x, masks = place_masks(image, {"core": framed}, preprocess, frame=FRAME)
    expected = place_mask(full, size, preprocess) >= 0.5
    for block in (expected, x[0] >= 0.5):
        found = masks["core"] >= 0.5
        assert (found & block).sum() / (found | block).sum() > 0.94
    if preprocess == FRAME:
        np.testing.assert_array_equal(masks["core"].numpy(), framed)


def test_nothing_is_known_outside_that_crop():
    ones = np.ones((224, 224), np.float32)
    placed = place_mask(ones, (512, 256), Preprocessing(crop=128, resize=128, squash=True), frame=FRAME)
    # Of the 512 x 256 pixels the crop shows 224 x 224.
    assert placed.mean().item() == pytest.approx(224 * 224 / (512 * 256), abs=0.01)
    assert placed[64, 64] == 1 and placed[64, 5] == 0


def test_a_mask_of_the_images_size_is_in_the_images_pixels_whatever_the_frame():
    image, mask = with_marker((224, 224), 10, 20, 60, 90)
    _, masks = place_masks(image, {"core": mask}, FRAME, frame=FRAME)
    assert torch.equal(masks["core"], place_mask(mask, (224, 224), FRAME))
    assert not np.array_equal(masks["core"].numpy(), mask)


@pytest.mark.parametrize("size", [(6, 8), (9, 7), (3, 4), (2, 2)], ids=str)
def test_enlarging_is_bilinear_between_the_centres(size, rng):
    maps = torch.from_numpy(rng.normal(size=(2, 3, 3, 4)))
    np.testing.assert_allclose(upsample(maps, size), enlarge(maps.clamp(min=0), *size), atol=1e-12)


def test_enlarging_nothing():
    assert upsample(torch.empty(2, 0, 3, 4), (6, 8)).shape == (2, 0, 6, 8)
