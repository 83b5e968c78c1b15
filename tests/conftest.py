import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def relu_table(rng):
    """A (200, 64) float32 table that looks like pooled ReLU features: sparse, skewed, never negative."""
    H = rng.gamma(0.3, size=(200, 64)) * (rng.random((200, 64)) < 0.4)
    return H.astype(np.float32)


@pytest.fixture(scope="session")
def data_folder():
    """The folder of optional real data named by QSCORE_DATA."""
    folder = os.environ.get("QSCORE_DATA")
    if not folder:
        pytest.skip("QSCORE_DATA is not set: the tests on real CIFAR-10 files need it")
    return Path(folder)
