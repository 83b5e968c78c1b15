import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; torch is not loaded yet


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def relu_table(rng):
    """A (200, 64) float32 table like pooled ReLU features: faint noise, and three strong features per class of ten."""
    H = rng.gamma(0.3, scale=0.2, size=(200, 64)) * (rng.random((200, 64)) < 0.4)
    for row, k in zip(H, rng.integers(0, 10, size=200), strict=True):
        row[[k, 10 + k, 20 + k]] += rng.uniform(2, 4, size=3)
    return H.astype(np.float32)


@pytest.fixture(scope="session")
def data_folder():
    """The folder of optional real data named by QSCORE_DATA."""
    folder = os.environ.get("QSCORE_DATA")
    if not folder:
        pytest.skip("QSCORE_DATA is not set: the tests on real CIFAR-10 files need it")
    return Path(folder)
