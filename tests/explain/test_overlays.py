import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qscore.encoders import Preprocessing
from qscore.explain.overlays import colours, enlarge_heat, enlarge_image, overlay, seen

TOP = (240, 249, 33)


def lightness(rgb):
    """CIE L* of sRGB colours, by the standard's formulas."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(luminance) - 16  # no colour here is darker than the linear part ends


def test_lightness_rises_evenly_and_never_starts_in_the_dark():
    found = lightness(colours(np.linspace(0, 1, 66)) / 255)
    steps = np.diff(found)
    assert found[0] > 20 and found[-1] > 90
    assert (steps > 0).all() and steps.max() < 1.6 * steps.mean() and steps.min() > 0.5 * steps.mean()


def test_colours_outside_the_scale_are_its_ends():
    assert colours(np.array([1.0, 7.0])).tolist() == [list(TOP)] * 2
    assert colours(np.array([-3.0])).tolist() == colours(np.array([0.0])).tolist() == [[102, 0, 167]]


@given(st.integers(0, 2**32 - 1))
def test_an_overlay_leaves_what_is_cold_and_covers_what_is_hottest(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    heat = rng.random((6, 5)) * (rng.random((6, 5)) < 0.6)
    heat[2, 3], heat[4, 1] = 3.0, 0.0
    before = image.copy()
    found = overlay(image, heat, heat.max())
    assert found.dtype == np.uint8 and (image == before).all()
    assert (found[heat == 0] == image[heat == 0]).all() and (found[4, 1] == image[4, 1]).all()
    assert found[2, 3].tolist() == list(TOP)
    for row in range(6):
        for column in range(5):
            share = heat[row, column] / 3.0
            expected = (1 - share**1.5) * image[row, column] + share**1.5 * colours(np.array(share))
            assert np.abs(found[row, column] - expected).max() <= 0.5 + 1e-9


def test_the_scale_is_the_callers():
    image = np.zeros((1, 2, 3), np.uint8)
    heat = np.array([[1.0, 4.0]])
    assert overlay(image, heat, 4.0)[0, 0].tolist() != list(TOP)
    assert overlay(image, heat, 1.0)[0].tolist() == [list(TOP)] * 2
    assert overlay(image, heat, 0.0).tolist() == image.tolist()


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.0, 0.0, 0.0), (0.4905, 0.4824, 0.4468)])
@pytest.mark.parametrize("std", [(0.229, 0.224, 0.225), (1.0, 1.0, 1.0), (0.2468, 0.2428, 0.2615)])
def test_what_the_encoder_saw_comes_back_to_the_pixel(mean, std, rng):
    pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    preprocess = Preprocessing(crop=16, mean=mean, std=std)
    assert (seen(preprocess(Image.fromarray(pixels)), preprocess) == pixels).all()


def test_what_the_encoder_saw_is_the_crop():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = (9, 200, 77)
    preprocess = Preprocessing(crop=20)
    found = seen(preprocess(Image.fromarray(pixels)), preprocess)
    assert (found == (9, 200, 77)).all()
    assert seen(torch.full((3, 2, 2), 9.0), preprocess).max() == 255  # what no image can be is cut off


def test_small_images_are_enlarged_in_squares(rng):
    image = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    assert (enlarge_image(image, 32) == image.repeat(4, 0).repeat(4, 1)).all()
    assert enlarge_image(image, 5).shape == (5, 5, 3)


def test_heat_keeps_its_place_and_sign(rng):
    heat = np.zeros((8, 8))
    heat[1, 6] = 2.0
    found = enlarge_heat(heat, 32)
    assert found.shape == (32, 32) and found.min() == 0 and 0 < found.max() <= 2
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert (row // 4, column // 4) == (1, 6)
    assert found[16:].max() == 0
