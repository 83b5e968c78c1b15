import pytest
from PIL import Image
from reference.tables import make_encoder

from qscore.images import open_images, subset


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture
def digits():
    return subset(open_images("digits"), range(100))


@pytest.fixture
def photos(tmp_path):
    """Twelve images in two classes, and a way to damage some."""
    for i in range(12):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * i, i, 255 - i)).save(folder / f"{i:02d}.png")
    return tmp_path / "photos"
