import pytest

from qscore.images import open_images, subset


@pytest.fixture(scope="session")
def few_digits():
    """Twenty-four digits of 8 x 8 pixels: three batches of eight."""
    return subset(open_images("digits"), range(24))


@pytest.fixture
def tiny():
    """Arguments of `pretrain` for a training of three epochs of three steps, in a fraction of a second."""
    return {
        "backbone": "small:resnet10-2",
        "epochs": 3,
        "device": "cpu",
        "overrides": {"batch_size": 8, "hidden_dim": 8, "output_dim": 4},
    }
