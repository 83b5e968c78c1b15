"""An encoder whose features look at pixels of a known colour, and pictures for it."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from qscore.encoders import Encoder, Preprocessing, Source

SIDE, N_OBJECT, N_BACKGROUND = 32, 10, 10
PALETTE = np.array([(r, g, b) for r in (0, 127, 255) for g in (0, 127, 255) for b in (0, 127, 255)], np.uint8)[1:21]


class Colours(nn.Module):
    """Map j is 1 where a pixel has the palette's colour j, enlarged for the features of objects, which are small."""

    def __init__(self):
        super().__init__()
        self.register_buffer("palette", torch.from_numpy(PALETTE) / 255.0)
        gain = torch.ones(len(PALETTE))
        gain[:N_OBJECT] = 6.0
        self.register_buffer("gain", gain)

    def forward(self, x):
        distance = (x[:, None] - self.palette[None, :, :, None, None]).abs().sum(2)
        return (1 - 20 * distance).relu() * self.gain[:, None, None]


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.colours = Colours()

    def forward(self, x):
        return self.colours(x).mean((2, 3))


def colour_encoder():
    """Return an encoder of 20 features: 10 see the colours of objects, 10 those of backgrounds."""
    preprocessing = Preprocessing(crop=SIDE, resize=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Encoder(Mean(), Source("test", "colours", preprocessing))


def draw(folder, n=60, seed=0):
    """Draw images of one coloured square on a coloured ground, and their masks; objects' colours are the commoner."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(n):
        ground = N_OBJECT + int(rng.integers(N_BACKGROUND)) if i % 2 else None
        pixels = (
            np.full((SIDE, SIDE, 3), 200, np.uint8) if ground is None else np.tile(PALETTE[ground], (SIDE, SIDE, 1))
        )
        y, x = rng.integers(0, SIDE - 12, 2)
        pixels[y : y + 12, x : x + 12] = PALETTE[i % N_OBJECT]
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[y : y + 12, x : x + 12] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{i:03d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i:03d}.png")
    return folder
