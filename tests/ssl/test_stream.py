import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from kornia.augmentation import RandomResizedCrop as CropOnDevice
from kornia.augmentation.random_generator import ResizedCropGenerator
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from qscore import QScoreError
from qscore.images import open_images
from qscore.images.augment import Augmentation
from qscore.ssl.pixels import InMemory, Share, load_pixels
from qscore.ssl.stream import Streamed, random_crop

CPU = torch.device("cpu")
PLAIN = Augmentation(size=16, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


@pytest.fixture
def photographs(tmp_path, rng):
    """Twelve images of all shapes: smooth colours, so that a crop resembles its surroundings."""
    for i in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        coarse.resize((20 + 5 * i, 50 - 2 * i), Image.Resampling.BICUBIC).save(tmp_path / f"{i:02}.png")
    return open_images(tmp_path)


def opened(feed, *, size=4, epochs=3, batches=None, **place):
    feed.open(Share(len(feed), 0, size, batches or len(feed) // size, epochs, **place), CPU)
    return feed


def streamed(source, views, *, seed=0, workers=1, **share):
    return opened(Streamed(source, views, 16, seed=seed, workers=workers), **share)


@pytest.mark.parametrize("size", [5, 16, 40])
def test_a_crop_has_the_pixels_of_one_made_in_memory(rng, size, monkeypatch):
    images = torch.from_numpy(rng.integers(0, 256, (20, 3, 16, 16), dtype=np.uint8))
    crop = CropOnDevice((size, size), (0.05, 1.0), (0.5, 2.0), cropping_mode="resample")
    torch.manual_seed(0)
    expected = crop(images.float())
    corners = crop._params["src"].long()  # of the first pixel and the last
    view = Augmentation(size=size)
    enlarged = 0
    for image, box, pixels in zip(images, corners, expected, strict=True):
        (left, top), (right, bottom) = box[0].tolist(), box[2].tolist()
        h, w = bottom - top + 1, right - left + 1
        monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *_, box=(top, left, h, w): box)
        ours = random_crop(image, view).float()
        if max(h, w) <= size:
            enlarged += 1
            torch.testing.assert_close(ours, pixels, atol=0.51, rtol=0)
        else:  # shrunk: the filter keeps the mean, which single samples miss
            assert (ours.mean() - image[:, top : bottom + 1, left : right + 1].float().mean()).abs() < 6
    assert enlarged == {5: 2, 16: 20, 40: 20}[size]


@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.05, 0.14), (0.5, 2.0))])
def test_crops_fall_by_the_law_of_those_in_memory(scale, ratio):
    torch.manual_seed(0)
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    ours = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(3000)])
    corners = ResizedCropGenerator((16, 16), torch.tensor(scale), torch.tensor(ratio))((3000, 3, 48, 64))["src"].numpy()
    top, left = corners[:, 0, 1], corners[:, 0, 0]
    theirs = np.stack([top, left, corners[:, 2, 1] - top + 1, corners[:, 2, 0] - left + 1], axis=1)
    for a, b in [*zip(ours.T, theirs.T, strict=True), (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])]:
        assert ks_2samp(a, b).pvalue > 0.01


def measurements(feed, view, batches, seed):
    """What many views look like, (batches, statistics): colours, their spread, smoothness, symmetry, and greyness."""
    torch.manual_seed(seed)
    augmenter = feed.augmenter(view)
    rows = []
    for number in range(batches):
        x = augmenter(feed.images(*divmod(number, 4), 1)[0])
        quantiles = torch.quantile(x.flatten()[::7], torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]))
        steps = (x[..., 1:] - x[..., :-1]).abs()
        colours = x * torch.tensor(feed.statistics[1])[:, None, None] + torch.tensor(feed.statistics[0])[:, None, None]
        grey = ((colours.amax(dim=1) - colours.amin(dim=1)).amax(dim=(1, 2)) < 1e-4).float().mean()
        sides = x[..., : x.shape[-1] // 2].mean() - x[..., x.shape[-1] // 2 :].mean()
        thirds = [x[:, :, 5:-5, 5:-5].mean(), x.std(dim=(2, 3)).mean(), steps.mean(), steps.square().mean().sqrt()]
        rows.append(torch.stack([*x.mean(dim=(0, 2, 3)), *x.std(dim=(0, 2, 3)), *quantiles, grey, sides, *thirds]))
    return torch.stack(rows).double()


def deviations(a, b):
    """How many standard errors two lists of measurements lie apart, by statistic."""
    error = (a.var(dim=0) / len(a) + b.var(dim=0) / len(b)).sqrt()
    return ((a.mean(dim=0) - b.mean(dim=0)).abs() / error.clamp(min=1e-9)).max().item()


@pytest.mark.parametrize(
    "view",
    [
        Augmentation(size=16, solarize=0.2),
        Augmentation(size=16, scale=(0.3, 1.0), flip=0.0, jitter=0.3, hue=0.5, grayscale=0.6, blur=1.0),
    ],
)
def test_the_two_ways_agree_in_distribution(tmp_path, rng, view):
    for i in range(256):  # brighter to the left, so that a flip shows
        noise = rng.integers(0, 128, (16, 16, 3)) + np.linspace(110, 0, 16)[:, None].astype(int) + i % 7
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{i:03}.png")
    source = open_images(tmp_path)
    stream = streamed(source, (view,), size=64, epochs=13, workers=2)
    memory = opened(InMemory(load_pixels(source, 16, 1)), size=64)
    assert stream.statistics == memory.statistics
    a, b = measurements(stream, view, 50, seed=1), measurements(memory, view, 50, seed=2)
    assert deviations(a, b) < 4
    other = Augmentation(**(vars(view) | {"grayscale": view.grayscale + 0.1}))  # the measurements are not blind
    assert deviations(a, measurements(memory, other, 50, seed=2)) > 6
    other = Augmentation(**(vars(view) | {"scale": (0.5, 1.0)}))
    assert deviations(a, measurements(memory, other, 50, seed=2)) > 6


def test_a_crop_depends_on_its_place_alone(photographs):
    views = (PLAIN, PLAIN, Augmentation(size=8, scale=(0.05, 0.2)))
    places = [(epoch, batch) for epoch in range(3) for batch in range(3)]
    whole = streamed(photographs, views)
    expected = {place: whole.images(*place, 3) for place in places}
    assert [x.shape for x in expected[0, 0]] == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)]
    again = streamed(photographs, views, workers=3)
    for place in places[4:]:  # as after a checkpoint
        assert all(map(torch.equal, again.images(*place, 3), expected[place]))
    seen = [tuple(x.flatten().tolist()) for place in places for x in expected[place][:2]]
    assert len(set(seen)) == len(seen)
    other = streamed(photographs, views, seed=1)
    assert not torch.equal(other.images(0, 0, 3)[0], expected[0, 0][0])


def test_processes_share_a_batch_and_its_crops(photographs):
    [whole] = streamed(photographs, (PLAIN,)).images(1, 1, 1)
    halves = [streamed(photographs, (PLAIN,), rank=rank, world=2).images(1, 1, 1)[0] for rank in (0, 1)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), whole)


def test_views_are_cut_out_of_the_whole_image(tmp_path):
    wide = np.zeros((20, 200, 3), np.uint8)
    wide[:, 150:] = 255  # beyond the middle, where images held in memory end
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "b.png")
    feed = streamed(open_images(tmp_path), (PLAIN,), size=2, epochs=20)
    assert any(feed.images(epoch, 0, 1)[0].max() == 255 for epoch in range(20))


def test_an_image_that_cannot_be_read_is_named(photographs, tmp_path):
    feed = streamed(photographs, (PLAIN,))
    (tmp_path / "07.png").write_bytes(b"no image")
    with pytest.raises(QScoreError) as error:
        for batch in range(3):
            feed.images(0, batch, 1)
    assert (
        str(error.value) == f"{tmp_path}/07.png: expected an image, got a file of no known image format; leave it out"
    )


def test_a_process_that_dies_is_reported(photographs, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)  # as in a new process
    others = set(multiprocessing.active_children())
    feed = streamed(photographs, (PLAIN,), epochs=1000)
    feed.images(0, 0, 1)
    [worker] = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()  # while something else goes on, in which torch's own signal handler would raise
    with pytest.raises(
        QScoreError, match=r"^a process that decodes images has died, .* \(killed by SIGKILL\); the same command"
    ):
        for number in range(1, 1000):
            feed.images(*divmod(number, 3), 1)


def test_the_processes_end_with_the_training(photographs):
    others = set(multiprocessing.active_children())
    feed = streamed(photographs, (PLAIN,), epochs=1000)
    feed.images(0, 0, 1)
    [worker] = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGINT)  # Ctrl-C reaches them too, and they go on
    feed.images(0, 1, 1)
    assert worker.is_alive()
    feed.close()
    worker.join(timeout=10)
    assert not worker.is_alive()
