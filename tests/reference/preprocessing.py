"""Preprocessing as one would write it by hand: Pillow for the resampling filter, NumPy for the rest."""

import numpy as np
from PIL import Image

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def preprocess(image, *, crop, resize, squash, interpolation, mean, std):
    """Return float32 (3, crop, crop)."""
    width, height = image.size
    if resize is not None:
        if squash:
            width, height = resize, resize
        elif width <= height:
            width, height = resize, int(resize * height / width)
        else:
            width, height = int(resize * width / height), resize
        image = image.resize((width, height), FILTERS[interpolation])
    pixels = np.asarray(image.convert("RGB"))
    out = np.zeros((3, crop, crop), dtype=np.float32)
    for channel in range(3):
        for y in range(crop):
            for x in range(crop):
                row, column = y + offset(height, crop), x + offset(width, crop)
                inside = 0 <= row < height and 0 <= column < width
                value = np.float32(pixels[row, column, channel] if inside else 0) / np.float32(255)
                out[channel, y, x] = (value - np.float32(mean[channel])) / np.float32(std[channel])
    return out


def offset(side, crop):
    """Return the first row of the centre crop; negative where the image is smaller and padding comes first."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
