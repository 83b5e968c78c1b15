import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torchvision.transforms import RandomResizedCrop

from qscore import QScoreError
from qscore.images.augment import Augmentation, Augmenter

IDENTITY = {"scale": (1, 1), "ratio": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0, "solarize": 0}
N = 4000


def views_of(images, seed=0, **changes):
    """Views with values in [0, 1], made by the steps in question alone."""
    size = changes.pop("size", images.shape[-1])
    augmentation = Augmentation(**(IDENTITY | {"size": size} | changes))
    torch.manual_seed(seed)
    return Augmenter(augmentation, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(images)


def constant(n, red, green, blue, side=4):
    return torch.tensor([red, green, blue], dtype=torch.uint8)[None, :, None, None].expand(n, 3, side, side)


def assert_rate(hits, probability):
    """A binomial count within four standard deviations."""
    n = len(hits)
    assert abs(hits.sum().item() - n * probability) < 4 * math.sqrt(n * probability * (1 - probability))


def assert_uniform(sample, low, high):
    assert low - 1e-3 <= sample.min() and sample.max() <= high + 1e-3
    assert stats.kstest(sample, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_without_any_step_the_image_comes_back(rng):
    images = torch.from_numpy(rng.integers(0, 256, (5, 3, 9, 9), dtype=np.uint8))
    torch.testing.assert_close(views_of(images), images / 255)


def test_crops_are_distributed_as_torchvisions():
    x, y = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="xy")
    image = torch.stack([x, y, x]).to(torch.uint8)  # a pixel says where it was
    views = views_of(image.expand(N, 3, 64, 64), size=16, scale=(0.1, 0.9), ratio=(0.5, 2)) * 255
    left, right = views[:, 0, 0, 0], views[:, 0, 0, -1]
    top, bottom = views[:, 1, 0, 0], views[:, 1, -1, 0]
    width, height = (right - left + 1).numpy(), (bottom - top + 1).numpy()
    theirs = np.array([RandomResizedCrop.get_params(image, [0.1, 0.9], [0.5, 2]) for _ in range(N)])  # i, j, h, w
    pairs = {
        "area": (width * height, theirs[:, 2] * theirs[:, 3]),
        "ratio": (width / height, theirs[:, 3] / theirs[:, 2]),
        "left": (left.numpy(), theirs[:, 1]),
        "top": (top.numpy(), theirs[:, 0]),
    }
    for name, (ours, reference) in pairs.items():
        assert stats.ks_2samp(np.round(ours, 3), np.round(reference, 3)).pvalue > 1e-3, name


def test_flips():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[:, :, 0] = 255
    views = views_of(image.expand(N, 3, 4, 4), flip=0.3)
    flipped = views[:, 0, 0, 3] == 1
    assert_rate(flipped, 0.3)
    torch.testing.assert_close(views[flipped], (image / 255).flip(2).expand(int(flipped.sum()), 3, 4, 4))


def test_grayscale():
    views = views_of(constant(N, 200, 100, 50), grayscale=0.2)[:, :, 0, 0]
    gray = (views[:, 0] - views[:, 1]).abs() < 1e-6
    assert_rate(gray, 0.2)
    luma = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    torch.testing.assert_close(views[gray], torch.full((int(gray.sum()), 3), luma))


def test_brightness_multiplies_by_a_uniform_factor():
    plain = {"brightness": 0.4, "contrast": 0, "saturation": 0, "hue": 0}
    factors = views_of(constant(N, 100, 100, 100), jitter=0.6, **plain)[:, 0, 0, 0] * 255 / 100
    changed = (factors - 1).abs() > 1e-4
    assert_rate(changed, 0.6)
    assert_uniform(factors[changed].numpy(), 0.6, 1.4)


def test_contrast_stretches_about_the_mean_gray():
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    image[:, :2] = 120  # mean 110
    plain = {"brightness": 0, "contrast": 0.8, "saturation": 0, "hue": 0}
    views = views_of(image.expand(N, 3, 4, 4), jitter=1, **plain) * 255
    assert_uniform((views[:, 0, 0, 0] - 110).numpy() / 10, 0.2, 1.8)
    torch.testing.assert_close(views[:, 0, 0, 0] - 110, 110 - views[:, 0, 3, 0], atol=1e-3, rtol=0)


def test_saturation_stretches_about_the_pixels_gray():
    plain = {"brightness": 0, "contrast": 0, "saturation": 0.5, "hue": 0}
    views = views_of(constant(N, 140, 100, 100), jitter=1, **plain) * 255
    gray = 0.299 * 140 + 0.587 * 100 + 0.114 * 100
    assert_uniform((views[:, 0, 0, 0].numpy() - gray) / (140 - gray), 0.5, 1.5)


def test_hue_turns_both_ways():
    plain = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.1}
    views = views_of(constant(500, 200, 50, 50), jitter=1, **plain)[:, :, 0, 0].double().numpy()
    hues = np.array([colorsys.rgb_to_hsv(*view)[0] for view in views])
    assert_uniform((hues + 0.5) % 1 - 0.5, -0.1, 0.1)


@pytest.mark.parametrize(("kernel", "radius"), [(0.1, 2), (0.26, 6)])
def test_blur_is_a_gaussian_of_a_fraction_of_the_size(rng, kernel, radius):
    image = torch.from_numpy(rng.integers(0, 256, (1, 3, 50, 50), dtype=np.uint8))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    blurred = views_of(image, blur=1, sigma=(1.5, 1.5), kernel=kernel)[0]
    for channel in range(3):
        expected = ndimage.correlate(image[0, channel].numpy() / 255, weights, mode="mirror")
        np.testing.assert_allclose(blurred[channel], expected, atol=1e-5)


@pytest.mark.parametrize("size", [4, 5, 8, 33])
def test_the_widest_kernel_fits_into_the_view(rng, size):
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, size, size), dtype=np.uint8))
    assert views_of(images, blur=1, sigma=(2, 2), kernel=1.0).std() < images.float().div(255).std()


def test_solarize_inverts_the_bright_pixels():
    views = views_of(constant(N, 200, 100, 255), solarize=0.4)[:, :, 0, 0] * 255
    inverted = views[:, 0] < 100
    assert_rate(inverted, 0.4)
    torch.testing.assert_close(views[inverted], torch.tensor([55.0, 100.0, 0.0]).expand(int(inverted.sum()), 3))


def test_views_are_normalised():
    augmenter = Augmenter(Augmentation(**IDENTITY | {"size": 4}), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    [view] = augmenter(constant(1, 255, 0, 51))
    torch.testing.assert_close(view[:, 0, 0], torch.tensor([0.9 / 0.5, -0.2 / 0.25, -0.1 / 2.0]))


@pytest.mark.parametrize("size", [4, 8, 32])
def test_the_seed_decides_and_gray_images_stay_gray(rng, size):
    images = torch.from_numpy(rng.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)).expand(6, 3, 8, 8)
    changes = {"jitter": 0.8, "scale": (0.2, 1), "grayscale": 0.2, "blur": 0.5, "solarize": 0.2, "size": size}
    views = views_of(images, **changes)
    assert views.shape == (6, 3, size, size)
    assert torch.equal(views, views_of(images, **changes))
    assert not torch.equal(views, views_of(images, seed=1, **changes))
    assert views.min() >= 0 and views.max() <= 1
    torch.testing.assert_close(views[:, :1].expand_as(views), views, atol=1e-5, rtol=0)


def test_half_precision_around_it_changes_nothing(rng):
    images = torch.from_numpy(rng.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8))
    expected = views_of(images, jitter=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views_of(images, jitter=1), expected)


def test_steps_that_never_happen_are_left_out():
    steps = Augmenter(Augmentation(**IDENTITY | {"size": 8}), (0.0,) * 3, (1.0,) * 3).steps
    assert [type(step).__name__ for step in steps] == ["RandomResizedCrop", "Normalize"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 2}, "expected size from 4 to 4096 pixels, got 2"),
        ({"flip": 1.5}, "expected flip from 0 to 1, got 1.5"),
        ({"hue": 0.6}, "expected hue from 0 to 0.5, got 0.6"),
        ({"brightness": -0.1}, "expected brightness from 0 to inf, got -0.1"),
        ({"scale": (0.0, 1.0)}, "expected scale to be two numbers, 0 < low <= high <= 1, got 0.0, 1.0"),
        ({"kernel": 0.0}, "expected kernel above 0, at most 1, got 0.0"),
        ({"kernel": 1.1}, "expected kernel above 0, at most 1, got 1.1"),
        ({"sigma": (2.0, 1.0)}, "expected sigma to be two numbers, 0 < low <= high <= inf, got 2.0, 1.0"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(QScoreError, match=message):
        Augmentation(**changes)
