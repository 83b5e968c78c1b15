"""Where images come from: folders, archives, bundled digits; all behind one small interface."""

from qscore.images.opening import open_image, open_images
from qscore.images.sources import ImageRecord, ImageSource, subset

__all__ = ["ImageRecord", "ImageSource", "open_image", "open_images", "subset"]
