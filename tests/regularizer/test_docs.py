import re
from pathlib import Path

import pytest
import torch
from torch import nn

import qscore

PAGE = Path(__file__).parents[2] / "docs" / "regularization.rst"


def examples():
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text())
    return [re.sub(r"^   ", "", block, flags=re.M).strip() for block in blocks]


def names(relu_table):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    projector = nn.Linear(64, 8)
    parameters = [*backbone.parameters(), *projector.parameters()]
    return {
        "qscore": qscore,
        "torch": torch,
        "H": relu_table,
        "scorer": qscore.QScorer(epsilon=2.0).fit(relu_table),
        "loader": [[torch.randn(6, 3, 8, 8) for _ in range(2)] for _ in range(3)],
        "backbone": backbone,
        "projector": projector,
        "criterion": lambda a, b: -torch.cosine_similarity(a, b).mean(),
        "optimizer": torch.optim.SGD(parameters, lr=0.1),
    }


@pytest.mark.filterwarnings("ignore:no row of the batch has a highly active feature")
def test_the_loop_takes_ten_lines_and_runs(relu_table):
    first, _ = examples()
    assert sum(bool(line) for line in first.splitlines()) <= 10
    there = names(relu_table)
    before = there["backbone"][0].weight.clone()
    exec(first, there)
    assert there["regularizer"].epsilon == there["scorer"].epsilon_
    assert {"alpha", "hoyer"} <= set(there["regularizer"].stats)
    assert not torch.equal(there["backbone"][0].weight, before)


def test_the_calibrated_loop_runs(relu_table):
    _, second = examples()
    there = names(relu_table)
    there["scorer"] = [*range(64)]  # an untrained network's rows have few features far above the mean
    second = second.replace('reduction="mean"', 'reduction="mean", epsilon=0.5')
    exec(second, there)
    assert there["regularizer"].lambda1 != 1e-4 != there["regularizer"].lambda2
