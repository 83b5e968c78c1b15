import pytest
from tiny_training import train_method

from qscore.images import open_images, subset
from qscore.study import Tuning


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a tiny pre-training by SimCLR, with an encoder after each of its three epochs."""
    folder = tmp_path_factory.mktemp("run") / "simclr"
    train_method("simclr", folder, backbone="small:resnet10-2-r32", keep_every=1)
    return folder


@pytest.fixture(scope="session")
def train():
    return subset(open_images("digits"), range(64))


@pytest.fixture(scope="session")
def test():
    return subset(open_images("digits"), range(100, 160))


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """Sixty digits without labels."""
    file = tmp_path_factory.mktemp("list") / "digits.csv"
    file.write_text("\n".join(["path", *(f"digits#{k}" for k in range(60))]))
    return str(file)


@pytest.fixture(scope="session")
def quick():
    """A fine-tuning of eight steps."""
    return Tuning(epochs=1, learning_rate=1e-3, device="cpu", epsilon=2.0)
