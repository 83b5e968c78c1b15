"""The 1,797 handwritten digits that come with scikit-learn, for demonstrations and tests."""

from functools import cache
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qscore.images.sources import ImageRecord, fingerprint_lines

__all__ = ["DigitsSource"]


@final
class DigitsSource:
    """Handwritten digits of 8 x 8 pixels; values 0 to 16 are scaled to 0 to 255 and repeated over three channels."""

    name = "digits"
    class_names = None

    def __init__(self) -> None:
        self.labels: list[int] = _load()[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels."""
        images, labels = _load()
        return fingerprint_lines([images.tobytes().hex(), *map(str, labels)])

    def __len__(self) -> int:
        return len(self.labels)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of a digit."""
        return ImageRecord(f"digits-{index:04d}", f"digits#{index}", self.labels[index])

    def image(self, index: int) -> Image.Image:
        """Return a digit in RGB."""
        return Image.fromarray(_load()[0][index]).convert("RGB")


@cache
def _load() -> tuple[NDArray[np.uint8], list[int]]:
    from sklearn.datasets import load_digits  # slow to import, and rarely wanted

    digits: Any = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target.tolist()
