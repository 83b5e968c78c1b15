"""A folder of image files, with classes in sub-folders or without."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import final

from PIL import Image

from qscore._validate import QScoreError
from qscore.images.decode import read_image
from qscore.images.sources import ImageRecord, fingerprint_lines

__all__ = ["FolderSource"]

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


@final
class FolderSource:
    """All images below a folder, in the order of their ids.

    An image's id is its path relative to the folder. Where that is ``class/file``, the sub-folder is its label;
    images elsewhere have none. Hidden files and files that are no images by their extension are left out.

    Parameters
    ----------
    root : str
        The folder.

    Raises
    ------
    QScoreError
        If the folder cannot be listed, or has no images.
    """

    def __init__(self, root: str) -> None:
        self.name = root
        self._root = Path(root)
        self._ids = sorted(_list_images(self._root))
        if not self._ids:
            raise QScoreError(f"{root}: expected images ({', '.join(sorted(EXTENSIONS))}), found none in this folder")
        labels = [_label(id) for id in self._ids]
        classes = sorted({label for label in labels if label is not None})
        self.labels = labels if classes else None
        self.class_names = classes or None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, sizes and modification times."""
        return fingerprint_lines(f"{id} {_size_and_time(self._root / id)}" for id in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def record(self, index: int) -> ImageRecord:
        """Return id, file and label of an image."""
        id = self._ids[index]
        return ImageRecord(id, str(self._root / id), _label(id))

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        return read_image(self._root / self._ids[index])


def _list_images(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        here = Path(folder)
        above = {here.resolve(), *here.resolve().parents}
        # A link back to a folder above would be walked forever.
        subfolders[:] = [name for name in subfolders if name[0] != "." and (here / name).resolve() not in above]
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in EXTENSIONS:
                yield _check_name((here / name).relative_to(root).as_posix(), root)


def _check_name(id: str, root: Path) -> str:
    try:
        id.encode()
    except UnicodeEncodeError as error:
        raise QScoreError(f"{root}: the file name {id!r} is not valid UTF-8; rename it") from error
    return id


def _refuse(error: OSError) -> None:
    raise QScoreError(f"{error.filename}: cannot list the folder: {error.strerror}") from error


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere: reading the image will say so
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _label(id: str) -> str | None:
    folder, _, name = id.partition("/")
    return folder if name and "/" not in name else None
