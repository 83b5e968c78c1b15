"""Images as an encoder sees them, with heatmaps of the features that each is wanted for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from qscore.encoders import Encoder
from qscore.explain.geometry import upsample
from qscore.explain.heatmaps import feature_maps
from qscore.explain.overlays import enlarge_heat, enlarge_image, seen
from qscore.images import ImageSource

__all__ = ["Looker", "Seen"]

SIDES = (128, 160)  # of the pictures on a sheet: for small images, and for larger ones
SMALL = 128


class Seen(NamedTuple):
    """An image, and where the features look."""

    image: UInt8[np.ndarray, "side side 3"]
    heat: list[Float[np.ndarray, "side side"]]
    """Of each feature that was asked for, in that order."""


@dataclass(frozen=True)
class Looker:
    """What it takes to look at images."""

    images: ImageSource
    encoder: Encoder
    method: str
    """One of `METHODS`."""
    layer: str | None
    batch_size: int
    """Images that go through the encoder at once."""

    @property
    def side(self) -> int:
        """Pixels of each picture, both ways."""
        return SIDES[self.encoder.preprocess.crop > SMALL]

    def look(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> Iterable[Seen]:
        """Give each image with its heatmaps, batch by batch.

        Parameters
        ----------
        wanted : sequence of tuple
            Positions of images, and the features that each is wanted for.
        """
        for start in range(0, len(wanted), self.batch_size):
            yield from self._batch(wanted[start : start + self.batch_size])

    def _batch(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[Seen]:
        preprocess = self.encoder.preprocess
        x = torch.stack([preprocess(self.images.image(position)) for position, _ in wanted])
        found: list[Seen | None] = [None] * len(wanted)
        for group, features in self._together(wanted):
            maps = feature_maps(self.encoder, x[group], features, self.method, self.layer).float().cpu()
            at = {feature: k for k, feature in enumerate(features)}
            for row, number in enumerate(group):
                own = maps[row : row + 1, [at[feature] for feature in wanted[number][1]]]
                heat = upsample(own, (preprocess.crop, preprocess.crop))[0].numpy()
                image = enlarge_image(seen(x[number], preprocess), self.side)
                found[number] = Seen(image, [enlarge_heat(values, self.side) for values in heat])
        return [one for one in found if one is not None]

    def _together(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[tuple[list[int], list[int]]]:
        """Say which images of a batch to ask for which features at once."""
        if self.method == "activation":  # one pass gives all features of all images
            return [(list(range(len(wanted))), sorted({j for _, features in wanted for j in features}))]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, features) in enumerate(wanted):
            groups.setdefault(tuple(features), []).append(number)
        return [(group, list(features)) for features, group in groups.items()]
