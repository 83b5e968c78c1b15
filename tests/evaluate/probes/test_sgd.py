import math
import threading

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from qscore import QScoreError
from qscore.encoders import Encoder, Preprocessing, Source, build_backbone
from qscore.evaluate.probes import fit_sgd_probe, pixels, sgd
from qscore.evaluate.probes.rows import training_rows
from qscore.evaluate.probes.sgd import SGDConfig, cosine_factor, encoder_sha256, shuffled_runs
from qscore.images import open_image

SHARP = Preprocessing(crop=8, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
PATHS = [f"digits#{i}" for i in range(40)]
LABELS = np.arange(40) % 4
RANGES = "sgd probe: expected lr > 0, momentum in [0, 1) and weight_decay >= 0"
STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}  # views that are the images themselves


class Simple(nn.Module):
    """A convolution and BatchNorm, which averages over whatever the mode says."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        return functional.relu(self.norm(self.conv(x))).mean((2, 3))


class AlwaysTraining(Simple):
    """Will not be put into evaluation mode: a mistake that is easily made."""

    def train(self, mode=True):
        return super().train(True)


class Counting(Simple):
    """Counts its batches in a buffer that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


def encoder_of(backbone):
    return Encoder(backbone, Source("test", "none", SHARP))


def embed(encoder, paths):
    with torch.no_grad():
        return torch.cat([encoder(SHARP(open_image(path))[None]) for path in paths]).numpy()


@pytest.fixture
def encoder():
    return encoder_of(Simple())


@pytest.fixture
def rows(rng):
    labels = rng.integers(0, 3, 60)
    return (rng.normal(size=(60, 5)) + np.eye(3, 5)[labels]).astype(np.float32) * [1, 5, 0.1, 1, 1] + 3, labels


def head(probe):
    return probe.classifier.weights, probe.classifier.bias


def test_steps_are_those_of_sgd_with_momentum(rows):
    """Two epochs of a single step each, in NumPy."""
    H, labels = rows
    config = SGDConfig(epochs=2, lr=0.4, momentum=0.8, weight_decay=0.1)
    W, b = head(fit_sgd_probe(H, labels, config=config))
    Z, Y = (H - H.mean(0)) / H.std(0), np.eye(3)[labels]
    expected = [np.zeros((5, 3)), np.zeros(3)]
    speed = [np.zeros((5, 3)), np.zeros(3)]
    for factor in (1.0, 0.5):  # (1 + cos(pi t / 2)) / 2
        residual = (softmax(Z @ expected[0] + expected[1], axis=1) - Y) / 60
        for k, gradient in enumerate((Z.T @ residual, residual.sum(0))):
            speed[k] = 0.8 * speed[k] + gradient + 0.1 * expected[k]
        expected = [value - 0.4 * 60 / 256 * factor * v for value, v in zip(expected, speed, strict=True)]
    np.testing.assert_allclose(W, expected[0], atol=1e-6)
    np.testing.assert_allclose(b, expected[1], atol=1e-6)


def test_the_learning_rate_falls_along_half_a_cosine(rows, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    fit_sgd_probe(*rows, config=SGDConfig(epochs=3, batch_size=16, lr=0.8))
    peak = 0.8 * 16 / 256
    np.testing.assert_allclose(rates, [peak * (1 + math.cos(math.pi * t / 12)) / 2 for t in range(12)])
    assert cosine_factor(0, 12) == 1.0


def test_enough_epochs_find_the_most_likely_model(rng):
    labels = rng.integers(0, 3, 120)
    H = rng.normal(size=(120, 3)) + 0.7 * np.eye(3)[labels]
    probe = fit_sgd_probe(H, labels, config=SGDConfig(epochs=300, lr=4.0))
    Z = (H - H.mean(0)) / H.std(0)
    expected = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-9).fit(Z, labels).predict_proba(Z)
    np.testing.assert_allclose(probe.predict(H)[1], expected.max(1), atol=1e-3)


def test_the_seed_decides_and_the_global_random_state_is_left_alone(rows):
    state = torch.get_rng_state()
    config = SGDConfig(epochs=2, batch_size=8)
    one, same, other = (head(fit_sgd_probe(*rows, config=config, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one[0], same[0])
    assert (one[0] != other[0]).any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("n", "buffer"), [(1000, 128), (1000, 4096), (64, 64), (1, 5), (130, 100)])
def test_runs_are_shuffled_and_every_row_comes_once(rng, n, buffer):
    found = list(shuffled_runs(n, buffer, rng))
    assert [len(part) for part in found] == [buffer] * (n // buffer) + [n % buffer] * (n % buffer > 0)
    order = np.concatenate(found)
    assert sorted(order) == list(range(n))
    assert (np.diff(order) == 1).sum() >= n - 2 * math.ceil(n / 64)
    if n == 1000:
        assert (order != np.arange(n)).any()


def test_a_table_too_large_for_memory_is_read_in_parts(rng, monkeypatch, tmp_path):
    """Every row once an epoch, its class with it, and never more than the buffer at a time."""
    H = np.lib.format.open_memmap(tmp_path / "H.npy", mode="w+", dtype=np.float16, shape=(300, 2))
    H[:, 0], H[:, 1] = np.arange(300), rng.normal(size=300)
    training = training_rows(H, np.arange(300) % 7)
    monkeypatch.setattr(sgd, "BUFFER_BYTES", 4 * 2 * 100)
    largest = []
    take = type(training).take
    monkeypatch.setattr(type(training), "take", lambda self, places: largest.append(len(places)) or take(self, places))
    batches = sgd._cached(training, lambda block: block, 30, 0, torch.device("cpu"))
    epochs = []
    for epoch in range(2):
        seen = [(Z[:, 0].long(), codes) for Z, codes in batches(epoch)]
        assert [len(codes) for _, codes in seen] == [30] * 10
        order, codes = (torch.cat(column) for column in zip(*seen, strict=True))
        assert sorted(order.tolist()) == list(range(300)) and torch.equal(codes, order % 7)
        epochs.append(order)
    assert not torch.equal(*epochs)
    assert max(largest) == 90


def test_without_augmentation_images_teach_what_their_embeddings_do(encoder):
    H = embed(encoder, PATHS)
    config = SGDConfig(epochs=6, lr=1.0, **STILL)
    images = fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=config)
    cached = fit_sgd_probe(H, LABELS, config=config)
    np.testing.assert_allclose(head(images)[0], head(cached)[0], atol=1e-4)
    assert images.describe()["augmented"] and not cached.describe()["augmented"]
    assert images.sentences() == [
        "It was trained for 6 epochs on augmented images; a checksum shows the encoder unchanged."
    ]
    assert images.predict(H)[0].shape == (40,)


def test_every_epoch_has_new_views(encoder, monkeypatch):
    H = embed(encoder, PATHS)
    seen = []
    network = sgd.Network.__call__
    monkeypatch.setattr(sgd.Network, "__call__", lambda self, x, ok: seen.append(x.clone()) or network(self, x, ok))
    fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=SGDConfig(epochs=2))
    first, second = (sorted(batch.flatten(1).sum(1).tolist()) for batch in seen[1:])
    assert first != second and all(x.shape == (40, 3, 8, 8) for x in seen[1:])
    plain = torch.stack([SHARP(open_image(path)) for path in PATHS])
    assert min((plain - view).abs().max() for view in seen[1]) > 0  # crops, in the encoder's own normalisation
    assert abs(plain.mean() - seen[1].mean()) < 0.3


def test_images_that_do_not_fit_in_memory_are_decoded_anew(encoder, monkeypatch):
    H = embed(encoder, PATHS)
    config = SGDConfig(epochs=3, batch_size=16)
    held = fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=config)
    monkeypatch.setattr(pixels, "MEMORY_LIMIT", 0)
    decoded = fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=config, workers=3)
    np.testing.assert_array_equal(head(held)[0], head(decoded)[0])


def test_an_interrupted_training_leaves_no_thread_and_no_trace(encoder, monkeypatch):
    H, before, state = embed(encoder, PATHS), encoder_sha256(encoder), torch.get_rng_state()
    monkeypatch.setattr(pixels, "MEMORY_LIMIT", 0)
    steps = []
    step = torch.optim.SGD.step

    def interrupted(self):
        steps.append(self)
        if len(steps) == 4:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", interrupted)
    with pytest.raises(KeyboardInterrupt) as held:  # and with it all frames, as an interactive session does
        fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=SGDConfig(batch_size=4), workers=2)
    assert held.type is KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name == "qscore-read"]
    assert torch.equal(torch.get_rng_state(), state) and encoder_sha256(encoder) == before


def test_invalid_rows_take_no_part_and_their_images_are_not_opened(encoder):
    H = embed(encoder, PATHS)
    broken = [*PATHS]
    H[5], broken[5] = np.nan, "nowhere.png"
    rest = np.delete(np.arange(40), 5)
    config = SGDConfig(epochs=2)
    one = fit_sgd_probe(H, LABELS, encoder=encoder, images=broken, config=config)
    other = fit_sgd_probe(H[rest], LABELS[rest], encoder=encoder, images=[PATHS[i] for i in rest], config=config)
    np.testing.assert_array_equal(head(one)[0], head(other)[0])


def test_the_encoder_is_the_same_before_and_after(encoder):
    H, before = embed(encoder, PATHS), {k: v.clone() for k, v in encoder.state_dict().items()}
    probe = fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=SGDConfig(epochs=2))
    assert probe.describe()["encoder_sha256"] == encoder_sha256(encoder)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("backbone", [AlwaysTraining, Counting])
def test_an_encoder_that_changes_is_found_out(backbone):
    encoder = encoder_of(backbone())
    H = embed(encoder, PATHS)
    with pytest.raises(QScoreError) as error:
        fit_sgd_probe(H, LABELS, encoder=encoder, images=PATHS, config=SGDConfig(epochs=1))
    assert str(error.value) == (
        "the encoder's parameters or buffers changed while the probe was trained, so that the probe says nothing of "
        "it; one of its modules updates itself even in evaluation mode"
    )


def test_the_checksum_sees_every_parameter_and_buffer():
    found = set()
    for change in range(8):
        module = Counting()
        tensors = [*module.parameters(), *module.buffers()]
        assert len(tensors) == 8
        with torch.no_grad():
            tensors[change] += 1 if tensors[change].dtype == torch.int64 else 2**-20
        found.add(encoder_sha256(module))
    assert len(found | {encoder_sha256(Counting())}) == 9
    assert encoder_sha256(Counting()) == encoder_sha256(Counting())
    assert encoder_sha256(Counting().to(torch.bfloat16)) != encoder_sha256(Counting())


def test_a_backbone_of_the_project_works():
    encoder = encoder_of(build_backbone("small:resnet10-16-r24"))
    probe = fit_sgd_probe(
        embed(encoder, PATHS), LABELS, encoder=encoder, images=PATHS, config=SGDConfig(epochs=1, batch_size=16)
    )
    assert probe.n_features == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": None},
            "^sgd probe: expected an encoder and the training rows' images, or neither; got one of them$",
        ),
        ({"images": PATHS[:-1]}, "^expected an image for each of 40 training rows, got 39$"),
        ({"images": PATHS[::-1]}, "^the encoder does not give the training embeddings: for the first image the cosine"),
        ({"images": ["no.png", *PATHS[1:]]}, "no.png"),
        ({"H": np.eye(40, 9)}, "^the encoder has 6 features, and the training embeddings 9; give the encoder that"),
        ({"device": "nowhere"}, "^device 'nowhere' cannot be used here: "),
    ],
)
def test_what_does_not_belong_together_is_refused(encoder, change, message):
    arguments = {"H": embed(encoder, PATHS) - [9, 0, 0, 0, 0, 0], "encoder": encoder, "images": PATHS} | change
    if "H" not in change and change.get("images") != PATHS[::-1]:
        arguments["H"] = embed(encoder, PATHS)
    with pytest.raises(QScoreError, match=message):
        fit_sgd_probe(labels=LABELS, **arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "sgd probe: expected epochs >= 1 and batch_size >= 1, got 0 and 256"),
        ({"lr": 0.0}, f"{RANGES}, got 0.0, 0.9 and 0.0"),
        ({"lr": math.nan}, f"{RANGES}, got nan, 0.9 and 0.0"),
        ({"momentum": 1.0}, f"{RANGES}, got 0.03, 1.0 and 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(QScoreError) as error:
        SGDConfig(**settings)
    assert str(error.value) == message


def test_a_loss_that_becomes_infinite_is_told(rows):
    with pytest.raises(QScoreError, match="^sgd probe: the loss became infinite in epoch 2; lower lr=1e\\+06$"):
        fit_sgd_probe(*rows, config=SGDConfig(epochs=3, batch_size=8, lr=1e6, weight_decay=1.0))
