import csv
import random
import statistics

import numpy as np
import pytest
import torch
from reference import metrics, paper
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import qscore
from qscore import QScoreError, QScoreMonitor, QScorer
from qscore.images import open_images, subset

N = 120


@pytest.fixture
def images():
    return torch.randn(N, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def module():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Dropout(0.5), nn.BatchNorm1d(24), nn.ReLU())
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(24, 2)})


def embed(module, images):
    modes = [part.training for part in module.modules()]
    with torch.no_grad():
        H = module.eval()["backbone"](images).numpy()
    for part, mode in zip(module.modules(), modes, strict=True):
        part.training = mode
    return H


def figures(found):
    return found.figures() | {"epoch": found.epoch}


def test_the_figures_are_those_of_the_definitions(module, images):
    found = QScoreMonitor(images, batch_size=50)(module, 3)
    H = embed(module, images).astype(np.float64)
    rows = H.tolist()
    epsilon = paper.automatic_epsilon(rows)
    D = paper.discriminative_features(paper.activation_rates(rows, epsilon))
    Q = [paper.q_score(row, D, epsilon) for row in rows]
    expected = {
        "epoch": 3,
        "n": N,
        "n_invalid": 0,
        "n_features": 24,
        "epsilon": epsilon,
        "n_discriminative": len(D),
        "q_mean": statistics.fmean(Q),
        **{f"q_{q:02.0f}": float(np.quantile(Q, q / 100)) for q in (5, 25, 50, 75, 95)},
        "coverage": sum(q > 0 for q in Q) / N,
        "rankme": metrics.rankme(H),
        "alpha_req": metrics.alpha_req(H),
        "std": metrics.normalized_std(H),
        "std_share": metrics.normalized_std(H) * 24**0.5,
        "n_dead": 0,
        "dead_share": 0.0,
        "hoyer": metrics.hoyer(H),
    }
    assert figures(found) == pytest.approx(expected)
    assert found.evidence == ()


def test_a_given_d_is_kept(module, images, tmp_path, relu_table):
    H = embed(module, images)
    scorer = QScorer(epsilon=2.0).fit(H[:60])
    D = scorer.discriminative_features_
    mask = torch.zeros(24, dtype=torch.bool)
    mask[D] = True
    np.save(tmp_path / "e.npy", H[:60])
    qscore.score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    table = tmp_path / "s.features.parquet"
    choices = [(scorer, "auto"), (D, 2.0), (mask, 2.0), (torch.tensor(D), 2.0), (table, "auto"), (str(table), "auto")]
    for features, epsilon in choices:
        found = QScoreMonitor(images, features=features, epsilon=epsilon)(module, 0)
        assert found.q_mean == pytest.approx(float(scorer.score_samples(H).mean()))
        assert (found.epsilon, found.n_discriminative) == (2.0, len(D))
    assert QScoreMonitor(images, epsilon=2.0)(module, 0).q_mean == QScorer(epsilon=2.0).fit_score(H).mean()


class Pairs(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return [self.images[index], self.images[index] + 1], index


class Stream(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


def test_images_come_from_anywhere(module, images):
    expected = QScoreMonitor(images, batch_size=32)(module, 0)
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    ways = [
        images.numpy(),
        Pairs(images),
        TensorDataset(images, torch.arange(N)),
        DataLoader(TensorDataset(images), batch_size=32),
        DataLoader(TensorDataset(images), batch_size=32, shuffle=True, generator=generator),
        DataLoader(Stream(images), batch_size=32),
        list(images.split(32)),
        [(part, None) for part in images.split(32)],
        list(images),
    ]
    for way in ways:
        assert QScoreMonitor(way, batch_size=32)(module, 0) == expected
    assert torch.equal(generator.get_state(), state)


def test_few_images_are_taken_evenly_and_those_of_a_stream_from_the_start(module, images):
    chosen = QScoreMonitor(images, max_images=50)(module, 0)
    assert chosen == QScoreMonitor(images[[i * N // 50 for i in range(50)]])(module, 0)
    loader = DataLoader(TensorDataset(images), batch_size=7, shuffle=True)
    assert figures(QScoreMonitor(loader, max_images=50)(module, 0)) == pytest.approx(figures(chosen))
    stream = QScoreMonitor(list(images.split(32)), max_images=50)(module, 0)
    assert figures(stream) == pytest.approx(figures(QScoreMonitor(images[:50])(module, 0)))
    half = torch.utils.data.SubsetRandomSampler(range(0, N, 2))
    sampled = QScoreMonitor(DataLoader(TensorDataset(images), batch_size=32, sampler=half))(module, 0)
    assert figures(sampled) == pytest.approx(figures(QScoreMonitor(images[::2])(module, 0)))


def to_tensor(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 255


def test_files_need_a_transform_and_only_files_and_data_sets_take_one():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU())
    source = subset(open_images("digits"), range(64))
    expected = QScoreMonitor(torch.stack([to_tensor(source.image(i)) for i in range(64)]), encoder=None)(module, 0)
    assert QScoreMonitor(source, transform=to_tensor, encoder=None)(module, 0) == expected
    pictures = [(source.image(i), i) for i in range(64)]
    assert QScoreMonitor(pictures, transform=to_tensor, encoder=None)(module, 0) == expected
    assert QScoreMonitor("digits", transform=to_tensor, encoder=None, max_images=9)(module, 0).n == 9
    with pytest.raises(QScoreError, match="^images: of files, expected a transform as well, which makes the encoder's"):
        QScoreMonitor("digits")
    with pytest.raises(QScoreError, match="^images: the data set gives no tensors; pass a transform that makes one of"):
        QScoreMonitor(pictures, encoder=None)(module, 0)
    with pytest.raises(QScoreError, match="^transform: a DataLoader's images are transformed already; give one of the"):
        QScoreMonitor(DataLoader(source), transform=to_tensor)
    with pytest.raises(QScoreError, match="^transform: batches cannot be transformed one image at a time; pass a data"):
        QScoreMonitor([torch.ones(4, 3, 8, 8)], transform=to_tensor)


class Maps(nn.Module):
    """A backbone whose output has the shape that `read` gives it."""

    def __init__(self, read):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.read = read

    def forward(self, x):
        return self.read(self.net(x))


def test_outputs_of_other_shapes(images):
    def found(read):
        torch.manual_seed(0)
        return QScoreMonitor(images)(nn.ModuleDict({"backbone": Maps(read)}), 0)

    expected = found(lambda h: h.mean((2, 3)))
    assert expected.n_features == 16
    for read in (
        lambda h: h,
        lambda h: h.mean((2, 3), keepdim=True),
        lambda h: (h.mean((2, 3)), "tokens"),
        lambda h: [h.to(torch.float64)],
    ):
        assert figures(found(read)) == pytest.approx(figures(expected), rel=1e-5)
    with pytest.raises(QScoreError) as caught:
        found(lambda h: h.flatten(2))
    assert str(caught.value) == (
        "the encoder: expected output of shape (b, r) or (b, r, h, w), got shape (120, 16, 16); pass "
        "encoder=lambda module, x: ..., which returns representations"
    )
    with pytest.raises(QScoreError, match=r"got dict; pass"):
        found(lambda h: {"features": h})
    with pytest.raises(QScoreError) as caught:
        found(lambda h: h.mean((2, 3))[1:])
    assert str(caught.value) == "the encoder: expected a row for each of 120 images, got shape (119, 16)"


def test_encoders_are_found_by_name_network_or_function(module, images):
    expected = QScoreMonitor(images)(module, 0)
    assert QScoreMonitor(images)(nn.DataParallel(module), 0) == expected
    outer = nn.ModuleDict({"model": module})
    for encoder in ("model.backbone", module["backbone"], lambda outer, x: outer["model"]["backbone"](x)):
        assert QScoreMonitor(images, encoder=encoder)(outer, 0) == expected
    assert QScoreMonitor(images, encoder=None)(module["backbone"], 0) == expected
    with pytest.raises(QScoreError) as caught:
        QScoreMonitor(images, encoder="model.backbones")(outer, 0)
    assert str(caught.value) == (
        "encoder: ModuleDict has no attribute 'model.backbones': ModuleDict has no 'backbones'; did you mean "
        "'backbone'?; its modules are backbone, head; pass encoder= with a name, or a function of (module, x)"
    )
    with pytest.raises(QScoreError) as caught:
        QScoreMonitor(images)(nn.ReLU(), 0)
    assert str(caught.value) == (
        "encoder: ReLU has no attribute 'backbone': ReLU has no 'backbone'; it has no modules; pass encoder= with a "
        "name, or a function of (module, x)"
    )
    with pytest.raises(QScoreError, match="^encoder: 'training' of ModuleDict is no network, but bool$"):
        QScoreMonitor(images, encoder="training")(module, 0)


class Noisy(TensorDataset):
    """Images that draw from every random state there is."""

    def __getitem__(self, index):
        random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
        return super().__getitem__(index)


@pytest.mark.parametrize("failing", [False, True])
def test_modes_gradients_and_random_states_stay_as_they_were(module, images, failing):
    module["backbone"][3].eval()  # a frozen normalisation
    module["backbone"][1].weight.grad = torch.ones(24, 48)
    modes = [part.training for part in module.modules()]
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seen = []

    def encoder(module, x):
        seen.append((any(part.training for part in module.modules()), torch.is_grad_enabled()))
        if failing:
            raise ValueError("two\nlines")
        return module["backbone"](x)

    monitor = QScoreMonitor(Noisy(images), encoder=encoder)
    if failing:
        with pytest.raises(QScoreError) as caught:
            monitor(module, 0)
        text = "the encoder does not accept images of shape (120, 3, 4, 4), torch.float32: two"
        assert str(caught.value) == text
    else:
        monitor(module, 0)
    assert seen == [(False, False)]
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(module["backbone"][1].weight.grad, torch.ones(24, 48))
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    for ours, before in zip(np.random.get_state(), states[1], strict=True):  # noqa: NPY002
        assert np.array_equal(ours, before)


def test_a_module_in_half_precision_gets_images_it_can_work_with(module, images):
    found = QScoreMonitor(images)(module.to(torch.bfloat16), 0)
    expected = QScoreMonitor(images)(module.to(torch.float32), 0)
    assert found.n_invalid == 0 and found.rankme == pytest.approx(expected.rankme, rel=0.05)


def test_nan_is_evidence_of_divergence_and_no_crash(module, images):
    bad = images.clone()
    bad[3] = float("nan")
    monitor = QScoreMonitor(bad)
    with pytest.warns(UserWarning) as caught:
        found = monitor(module, 2)
    assert [str(warning.message) for warning in caught] == [
        "epoch 2: signs of collapse: 1 of 120 representations hold NaN or infinity: the training has diverged"
    ]
    keep = torch.arange(N) != 3
    assert found.n_invalid == 1 and found.q_mean == pytest.approx(QScoreMonitor(images[keep])(module, 0).q_mean)
    module["backbone"][1].weight.data.fill_(float("nan"))
    for features, epsilon in ((None, "auto"), ([1, 2], 2.0), (QScorer(epsilon=2.0).fit(embed_any()), "auto")):
        monitor = QScoreMonitor(images, features=features, epsilon=epsilon)
        with pytest.warns(UserWarning, match="120 of 120 representations hold NaN"):
            found = monitor(module, 3)
        assert np.isnan([found.q_mean, found.q_50, found.coverage, found.rankme, found.std]).all()


def embed_any():
    return np.random.default_rng(0).gamma(0.3, size=(50, 24))


def test_signs_of_collapse_come_with_evidence_once_and_again_when_they_return(module, images):
    monitor = QScoreMonitor(images)
    healthy = monitor(module, 0)
    linear, norm = module["backbone"][1], module["backbone"][3]
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    linear.weight.data[1:] = 0.001 * linear.weight.data[:1]  # one direction
    norm.bias.data[:] = 3.0
    with pytest.warns(UserWarning) as caught:
        found = monitor(module, 1)
    assert len(caught) == 1 and caught[0].filename == __file__
    one, two = found.evidence
    assert one == (
        f"the standard deviation of the normalised representation is {found.std_share:.2%} of 1 / sqrt(r), below 5%: "
        "all images look alike to the encoder"
    )
    assert two == (
        f"RankMe fell to {found.rankme:.1f}, below 25% of its {healthy.rankme:.1f} at epoch 0: few directions are left"
    )
    assert monitor(module, 2).evidence == found.evidence  # said already
    resumed = QScoreMonitor(images)
    resumed.load_state_dict(monitor.state_dict())
    assert resumed(module, 3).evidence == found.evidence
    module.load_state_dict(weights)
    assert monitor(module, 4).evidence == ()
    norm.weight.data[:13] = norm.bias.data[:13] = 0.0
    with pytest.warns(UserWarning, match=r"^epoch 5: signs of collapse: 13 of 24 features are 0 for every image$"):
        found = monitor(module, 5)
    assert (found.n_dead, found.dead_share) == (13, 13 / 24)
    assert [found.epoch for found in monitor.history] == [0, 1, 2, 4, 5]


def test_a_csv_file_holds_every_measurement(module, images, tmp_path):
    path = tmp_path / "quality.csv"
    first = QScoreMonitor(images, csv=path)(module, 0)
    images[0] = float("nan")
    with pytest.warns(UserWarning, match="1 of 120"):
        second = QScoreMonitor(images, csv=path)(module, 1)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("evidence") for row in rows] == ["", "; ".join(second.evidence)]
    for row, found in zip(rows, (first, second), strict=True):
        assert {name: float(value) for name, value in row.items()} == figures(found)
    assert [file.name for file in tmp_path.iterdir()] == ["quality.csv"]
    path.write_text("epoch,loss\n0,1\n")
    with pytest.raises(QScoreError, match="quality.csv holds other columns; name another file$"):
        QScoreMonitor(images[1:], csv=path)(module, 2)
    assert path.read_text() == "epoch,loss\n0,1\n"


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.ones(1, 3, 4, 4), "images: expected at least 2, got 1"),
        ([], "images: expected at least 2, got 0"),
        (
            DataLoader(TensorDataset(torch.ones(3, 3)), batch_size=4, drop_last=True),
            "images: expected at least 2, got 0",
        ),
        (
            3,
            "images: expected a DataLoader, a data set, a tensor, a list of batches, an image source or a path, "
            "got int",
        ),
        (
            (x for x in torch.ones(2, 2)),
            "images: a generator can be read only once; pass a list or a loader",
        ),
        (
            DataLoader(
                TensorDataset(torch.ones(4, 3)),
                sampler=torch.utils.data.DistributedSampler(range(4), num_replicas=2, rank=0),
            ),
            "images: the loader's DistributedSampler gives each process other images; pass a loader without one, since "
            "the batches are shared out here",
        ),
    ],
)
def test_images_that_cannot_be_watched(images, text):
    with pytest.raises(QScoreError) as caught:
        QScoreMonitor(images)
    assert str(caught.value) == text


def test_images_that_turn_out_to_be_none(module, images):
    for monitor in (QScoreMonitor(DataLoader(Stream([]))), QScoreMonitor({1: 2}.keys() - {1})):
        for attempt in (lambda monitor=monitor: monitor(module, 0), lambda monitor=monitor: monitor.check(module)):
            with pytest.raises(QScoreError, match="^images: expected at least 2, got none$"):
                attempt()
    with pytest.raises(QScoreError) as caught:
        QScoreMonitor([images[:1]])(module, 0)
    assert str(caught.value) == ("expected at least 2 images and 2 features, got representations of shape (1, 24)")
    with pytest.raises(QScoreError) as caught:
        QScoreMonitor([{"image": image} for image in images])(module, 0)
    assert str(caught.value) == ("images: expected batches of tensors, or of tuples that begin with one, got dict")


def test_settings_out_of_range(module, images):
    def refusal(**options):
        with pytest.raises(QScoreError) as caught:
            QScoreMonitor(images, **options)(module, 0)
        return str(caught.value)

    ranges = "expected max_images of at least 2, batch_size of at least 1 and workers of at least 0, got "
    assert refusal(max_images=1) == ranges + "1, 256 and 0"
    assert refusal(batch_size=0) == ranges + "4096, 0 and 0"
    assert refusal(workers=-1) == ranges + "4096, 256 and -1"
    assert refusal(epsilon="Auto") == "epsilon: expected a positive number, 'auto' or 'paper', got 'Auto'"
    assert refusal(epsilon=-1) == "epsilon: expected a positive number, got -1"
    assert refusal(features=QScorer()) == "features: the scorer is not fitted; call its fit(H) first"
    assert refusal(features=[1, 2]) == ("epsilon: expected the number that these features were found at, got 'auto'")
    assert refusal(features=[1, 24], epsilon=2.0) == "features: expected indices from 0 to 23, got 1 to 24"
    scorer = QScorer(epsilon=2.0).fit(np.random.default_rng(0).gamma(0.3, size=(50, 30)))
    assert refusal(features=scorer) == "features: found among 30, but the encoder gives 24; find D with it"
    assert refusal(features="nowhere.parquet") == "nowhere.parquet: no such file"
