import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference.preprocessing import preprocess
from torchvision.models import ResNet18_Weights, Swin_T_Weights

from qscore._validate import QScoreError
from qscore.encoders import Preprocessing

ODD = Preprocessing(crop=9, resize=12, squash=True, interpolation="lanczos", mean=(0, 0.5, 1), std=(1, 2, 0.5))


def noise_image(rng, width, height):
    return Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (16, 16), (8, 8), (5, 12), (1, 1)])
@pytest.mark.parametrize("crop", [7, 16])
@pytest.mark.parametrize("resize", [None, 7, 18])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_equals_hand_written(rng, size, crop, resize, squash, interpolation):
    preprocessing = Preprocessing(crop, resize, squash, interpolation, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    image = noise_image(rng, *size)
    x = preprocessing(image)
    assert x.shape == (3, crop, crop) and x.dtype == torch.float32
    expected = preprocess(
        image,
        crop=crop,
        resize=resize,
        squash=squash,
        interpolation=interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.none() | st.integers(1, 20), st.booleans())
def test_every_image_ends_with_one_size(width, height, crop, resize, squash):
    assert Preprocessing(crop, resize, squash)(Image.new("RGB", (width, height))).shape == (3, crop, crop)


@pytest.mark.parametrize("weights", [ResNet18_Weights.DEFAULT, Swin_T_Weights.DEFAULT])
def test_equals_torchvision_bit_for_bit(rng, weights):
    preset = weights.transforms()
    ours = Preprocessing(preset.crop_size[0], preset.resize_size[0], interpolation=preset.interpolation.value)
    for size in ((300, 400), (400, 300), (90, 120)):
        image = noise_image(rng, *size)
        assert torch.equal(ours(image), preset(image))


def test_other_modes_become_rgb():
    assert torch.equal(ODD(Image.new("L", (9, 9), 77)), ODD(Image.new("RGB", (9, 9), (77, 77, 77))))


def test_an_elongated_image_is_refused():
    with pytest.raises(QScoreError, match="1 x 60000 pixels is too elongated: .* resized to 256"):
        Preprocessing(224, 256)(Image.new("RGB", (1, 60000)))


@pytest.mark.parametrize("preprocessing", [Preprocessing(32), ODD])
def test_json_round_trip(preprocessing):
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "expected crop to be an integer from 1 to 4096, got 0"),
        ({"crop": 32.0}, "expected crop to be an integer"),
        ({"crop": True}, "expected crop to be an integer"),
        ({"resize": 5000}, "expected resize to be an integer from 1 to 4096, got 5000"),
        ({"squash": 1}, "expected squash to be true or false, got 1"),
        ({"interpolation": "bicubik"}, "expected interpolation to be one of .*did you mean 'bicubic'"),
        ({"interpolation": ["bicubic"]}, "expected interpolation to be one of"),
        ({"mean": (0.5, 0.5)}, "expected mean to be three numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "expected mean to be three finite numbers"),
        ({"std": 1}, "expected std to be three numbers, got 1"),
        ({"std": (1, 0, 1)}, "expected std above 0"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(QScoreError, match=message):
        replace(ODD, **change)


@pytest.mark.parametrize("record", [None, [], {}, {"crop": 3}, ODD.to_json() | {"gamma": 2}])
def test_bad_records_are_refused(record):
    with pytest.raises(QScoreError, match="expected exactly the fields crop, interpolation, mean, resize, squash, std"):
        Preprocessing.from_json(record)
