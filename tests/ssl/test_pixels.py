import os

import numpy as np
import pytest
import torch
from PIL import Image

from qscore import QScoreError
from qscore.images import open_images, subset
from qscore.ssl import pixels
from qscore.ssl.pixels import (
    InMemory,
    Share,
    channel_statistics,
    load_pixels,
    memory_limit,
    mixed_seed,
    pixel_bytes,
)


def test_images_of_the_right_size_are_taken_as_they_are(few_digits):
    loaded = load_pixels(few_digits, 8, workers=2)
    for i in range(len(few_digits)):
        np.testing.assert_array_equal(loaded[i].permute(1, 2, 0), np.asarray(few_digits.image(i)))


def test_other_images_are_resized_by_their_shorter_side_and_cropped(tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    [loaded] = load_pixels(open_images(tmp_path), 20, workers=1)
    expected = np.asarray(image.resize((40, 20), Image.Resampling.BILINEAR))[:, 10:30]
    np.testing.assert_array_equal(loaded.permute(1, 2, 0), expected)


def test_too_many_pixels_are_refused(few_digits):
    needed = 24 * 3 * 8 * 8
    assert load_pixels(few_digits, 8, workers=1, limit=needed).nbytes == needed == pixel_bytes(24, 8)
    with pytest.raises(
        QScoreError, match=r"digits: 24 images of 8 x 8 pixels take .* GiB, but at most .*; stream them"
    ):
        load_pixels(few_digits, 8, workers=1, limit=needed - 1)


def test_the_limit_is_shared_by_the_processes_and_heeds_a_containers(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(pixels, "CGROUP_LIMIT", tmp_path / "memory.max")
    alone = memory_limit(cpu, 1)
    assert alone == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2, rel=1e-6)
    assert memory_limit(cpu, 4) == pytest.approx(alone / 4, rel=1e-6)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(cpu, 1) == alone
    (tmp_path / "memory.max").write_text("2000000\n")
    assert memory_limit(cpu, 1) == 1_000_000


def test_greyscale_of_8_and_16_bits_comes_as_three_equal_channels(tmp_path, rng):
    values = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "b.png")
    loaded = load_pixels(open_images(tmp_path), 9, workers=1)
    for image in loaded:
        np.testing.assert_array_equal(image, np.stack([values] * 3))


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(QScoreError, match=r"b\.png"):
        load_pixels(open_images(tmp_path), 8, workers=2)


def test_statistics_are_those_of_all_pixels(few_digits, rng):
    images = torch.from_numpy(rng.integers(0, 256, (50, 3, 5, 5), dtype=np.uint8))
    mean, std = channel_statistics(images)
    values = images.double().numpy() / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), atol=5.1e-5)


def test_a_constant_channel_keeps_a_positive_deviation():
    assert channel_statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)) == ((0, 0, 0), (0.01, 0.01, 0.01))


def share(**changes):
    return Share(**({"n": 12, "seed": 7, "size": 4, "batches": 3, "epochs": 2} | changes))


def test_an_epoch_visits_each_row_once_in_an_order_of_its_own():
    epochs = [torch.cat([share().rows(epoch, batch) for batch in range(3)]) for epoch in (0, 1)]
    assert [sorted(rows.tolist()) for rows in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert torch.equal(epochs[0][:4], share().rows(0, 0))
    assert not torch.equal(epochs[0], torch.cat([share(seed=8).rows(0, batch) for batch in range(3)]))


def test_processes_share_the_batch_that_one_would_take():
    whole = share(n=20, size=8).rows(3, 1)
    shares = [share(n=20, size=8, rank=rank, world=2).rows(3, 1) for rank in (0, 1)]
    assert [len(rows) for rows in shares] == [4, 4]
    assert sorted(torch.cat(shares).tolist()) == sorted(whole.tolist())


def test_images_in_memory_serve_all_views(few_digits):
    feed = InMemory(load_pixels(few_digits, 8, workers=1))
    feed.open(share(n=24), torch.device("cpu"))
    first, second = feed.images(1, 2, 2)
    assert torch.equal(first, feed.pixels[share(n=24).rows(1, 2)])
    assert torch.equal(first, second)


def test_seeds_differ_by_every_part_of_the_place():
    places = [(), (0,), (0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({mixed_seed(seed, *place) for seed in (0, 1) for place in places}) == 2 * len(places)


def test_subsets_are_loaded_in_their_order():
    digits = open_images("digits")
    loaded = load_pixels(subset(digits, [5, 2]), 8, workers=2)
    np.testing.assert_array_equal(loaded[0].permute(1, 2, 0), np.asarray(digits.image(5)))
