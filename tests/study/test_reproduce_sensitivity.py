import math
import random
from copy import deepcopy

import numpy as np
import pytest
from reference import paper
from reference.study_results import everything, sensitive

from qscore.study.reproduce.choices import choose_settings, mean_by_factor
from qscore.study.reproduce.sensitivity import AUTOMATIC, BANDS, EPSILONS, PAPERS, quality_by_setting


def naive(fit, rows):
    """All settings by plain loops."""
    found = {}
    columns = list(zip(*fit, strict=True))
    mean = [math.fsum(c) / len(c) for c in columns]
    std = [math.sqrt(math.fsum((x - m) ** 2 for x in c) / len(c)) for c, m in zip(columns, mean, strict=True)]
    scale = {
        "raw": lambda row: row,
        "unit": lambda row: [x / math.sqrt(math.fsum(y * y for y in row)) for x in row],
        "standardised": lambda row: [(x - m) / s if s else 0.0 for x, m, s in zip(row, mean, std, strict=True)],
    }
    for scaling, of in scale.items():
        F, H = [of(row) for row in fit], [of(row) for row in rows]
        for band, (lower, upper) in BANDS.items():
            for epsilon in EPSILONS:
                value = paper.automatic_epsilon(F, lower, upper) if epsilon == "auto" else float(epsilon)
                if len(mean) <= value**2 + 1:
                    continue
                D = paper.discriminative_features(paper.activation_rates(F, value), lower, upper)
                q = [paper.q_score(row, D, value) for row in H]
                found[f"{scaling}, epsilon {epsilon}, band {band}, q"] = q
                found[f"{scaling}, epsilon {epsilon}, band {band}, q/sigma"] = [
                    x / paper.mean_and_std(row)[1] for x, row in zip(q, H, strict=True)
                ]
        if scaling != "unit":
            found[f"{scaling}, v1"] = [paper.q_score_v1(row) for row in H]
    return found


@pytest.mark.parametrize("r", [24, 12])
def test_settings_are_those_of_a_naive_loop(r, rng):
    H = rng.gamma(0.3, size=(70, r))
    H[:, 3] = 0.0  # a feature without a deviation
    found, expected = quality_by_setting(H[:40], H[40:]), naive(H[:40].tolist(), H[40:].tolist())
    assert found.keys() == expected.keys() and (PAPERS in found) == (r > 17) and AUTOMATIC in found
    for name, scores in expected.items():
        np.testing.assert_allclose(found[name], scores, rtol=1e-7, atol=1e-9, err_msg=name)


def test_rows_of_zeros_score_zero():
    H = np.random.default_rng(0).gamma(0.3, size=(60, 30))
    rows = np.vstack([np.zeros((1, 30)), H[:2]])
    found = quality_by_setting(H, rows)
    assert all(scores[0] == 0 for name, scores in found.items() if "standardised" not in name)
    assert all(np.isfinite(scores).all() for scores in found.values())


def test_a_setting_is_chosen_on_the_other_methods_training_rows():
    results = [
        sensitive("byol", a=(0.9, 0.1), b=(0.6, 0.2)),
        sensitive("moco", a=(0.5, 0.3), b=(0.6, 0.4)),
        sensitive("dino", a=(0.5, 0.5), b=(0.55, 0.6)),
    ]
    assert [(choice.source, choice.setting, choice.test["value"]) for choice in choose_settings(results)] == [
        ("methods-byol", "b", 0.2),  # although a is best on its own training rows
        ("methods-moco", "a", 0.3),
        ("methods-dino", "a", 0.5),
    ]


def test_each_other_method_counts_once():
    many = sensitive("byol", a=(0.60, 0), b=(0.5, 0))
    many["found"]["sources"] *= 3
    results = [many, sensitive("moco", a=(0.5, 0), b=(0.65, 0)), sensitive("dino", a=(0.5, 0), b=(0.5, 0))]
    assert choose_settings(results)[-1].setting == "b"


def test_test_labels_choose_nothing():
    results = [result for result in everything() if result["stage"] == "sensitivity"]
    shuffled = deepcopy(results)
    for result in shuffled:
        for source in result["found"]["sources"]:
            for of in source["settings"].values():
                of["test"] = {"value": random.Random(0).random(), "low": 0.0, "high": 1.0}
    settings = [choice.setting for choice in choose_settings(results)]
    assert settings == [choice.setting for choice in choose_settings(shuffled)] == [PAPERS, AUTOMATIC]


def test_a_single_method_has_nothing_to_choose_by_and_gaps_take_no_part():
    [alone] = choose_settings([sensitive("byol", a=(0.6, 0.6))])
    assert alone.setting is None and alone.test is None
    results = [sensitive("byol", a=(None, 0.6), b=(0.5, 0.5)), sensitive("moco", a=(0.9, 0.7), b=(0.5, 0.4))]
    assert choose_settings(results)[1].setting == "b"
    assert mean_by_factor(results, ["a", "c"]) == {"a": (0.9, pytest.approx(0.65)), "c": (None, None)}
