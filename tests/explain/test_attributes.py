from math import log

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from qscore.explain.attributes import LEAST, attribute_codes, carried, tied
from qscore.images import open_images


def lists(high):
    """Return the features that are highly active in each image, from booleans (n, r)."""
    return np.append(0, np.cumsum(high.sum(1))), np.nonzero(high)[1]


def measured(high, codes, **options):
    return carried(*lists(high), high.shape[1], codes, **options)


def plain_information(a, b):
    """Mutual information in nats, cell by cell."""
    n, total = len(a), 0.0
    for x in set(a):
        for y in set(b):
            both = sum(1 for p, q in zip(a, b, strict=True) if (p, q) == (x, y)) / n
            if both:
                total += both * log(both / (a.count(x) / n) / (b.count(y) / n))
    return total


@pytest.fixture
def example(rng):
    """Features of every rate; feature 0 is colour 2, feature 1 never fires, feature 2 always does."""
    codes = {"colour": rng.integers(0, 5, 300), "size": rng.integers(2, 5, 300), "same": np.full(300, 4)}
    high = rng.random((300, 20)) < rng.uniform(0.1, 0.9, 20)
    high[:, 0], high[:, 1], high[:, 2] = codes["colour"] == 2, False, True
    return high, codes


def test_information_is_scikit_learns(example):
    high, codes = example
    found = measured(high, codes)
    for name, values in codes.items():
        for j in (0, *range(3, 20)):
            expected = adjusted_mutual_info_score(high[:, j], values, average_method="min")
            assert found.information[name][j] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found.information["colour"][[1, 2]]).all() and found.best[:3] == ["colour", None, None]
    assert found.information["colour"][0] == pytest.approx(1)


def test_information_by_hand_and_by_shuffling(rng):
    """The mean over shuffles stands for what is to be expected by chance."""
    colour = rng.integers(0, 3, 120)
    high = (rng.random(120) < np.where(colour == 1, 0.8, 0.2))[:, None]
    found = measured(high, {"colour": colour, "none": np.zeros(120, int)})
    plain = plain_information(high[:, 0].tolist(), colour.tolist())
    shuffled = [plain_information(high[:, 0].tolist(), rng.permutation(colour).tolist()) for _ in range(300)]
    rate = high.mean()
    own = -rate * log(rate) - (1 - rate) * log(1 - rate)
    expected = (plain - np.mean(shuffled)) / (own - np.mean(shuffled))
    assert found.information["colour"][0] == pytest.approx(expected, abs=0.003)


def test_the_gap_is_of_the_best_and_the_second(example):
    high, codes = example
    found = measured(high, codes)
    for j in (0, *range(3, 20)):
        ordered = sorted((values[j] for values in found.information.values()), reverse=True)
        assert found.gap[j] == ordered[0] - ordered[1]
        assert found.information[found.best[j]][j] == ordered[0]
    assert found.gap[0] > 0.9 and np.isnan(found.gap[[1, 2]]).all() and np.isnan(found.chance[[1, 2]]).all()


def test_the_gap_by_chance_is_that_of_features_that_say_nothing(rng):
    codes = {name: rng.integers(0, k, 400) for name, k in {"a": 4, "b": 7, "c": 3}.items()}
    high = rng.random((400, 1000)) < 0.1
    found = measured(high, codes)
    assert abs((found.gap - found.chance).mean()) < 0.1 * found.chance.mean() and found.chance.mean() > 0


@pytest.mark.parametrize(("n", "known"), [(LEAST - 1, False), (LEAST, True), (40 - LEAST, True), (41 - LEAST, False)])
def test_features_of_too_few_images_are_left_out(n, known):
    high = (np.arange(40) < n)[:, None]
    codes = {"a": np.arange(40) % 2, "b": np.arange(40) % 3}
    assert np.isnan(measured(high, codes).gap[0]) != known


def test_shuffles_depend_on_the_seed_alone(example):
    high, codes = example
    first, again, other = (measured(high, codes, seed=seed).chance for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other)[3:].any()


def test_attributes_of_drawn_shapes():
    source = open_images("shapes:n=30,split=test")
    found = attribute_codes(source)
    for name, codes in source.codes(range(30)).items():
        np.testing.assert_array_equal(found[name], codes)
    parts = [open_images(name) for name in ("shapes:n=4,seed=3", "shapes:n=3")]
    mixed = attribute_codes(open_images([part.name for part in parts]))
    assert mixed["position"].tolist() == [code for part in parts for code in part.codes(range(len(part)))["position"]]


def test_other_images_have_no_attributes(tmp_path):
    (tmp_path / "mixed.csv").write_text("path\nshapes#7\ndigits#2\n")
    assert attribute_codes(open_images("digits")) is None
    assert attribute_codes(open_images(tmp_path / "mixed.csv")) is None


def test_the_spurious_cue_goes_with_the_class():
    a, b, strength = tied(open_images("shapes:n=2000,spurious=0.9").codes(range(2000)))
    assert {a, b} == {"shape", "background"} and strength > 0.7
    *_, least = tied(open_images("shapes:n=2000,spurious=0").codes(range(2000)))
    assert least < 0.1
