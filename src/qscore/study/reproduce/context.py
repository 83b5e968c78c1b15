"""What all stages of a reproduction share: scale, images, folders, and where to compute."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qscore._validate import QScoreError
from qscore.encoders import build_backbone, measure_output
from qscore.images import ImageSource, subset
from qscore.ssl.finetune import Hardware
from qscore.ssl.recipes import LARGEST_SIDE, typical_side
from qscore.study.reproduce.results import FOLDER, Unit, short_name
from qscore.study.reproduce.scales import Scale
from qscore.study.splits import has_labels

__all__ = ["Context", "choose_classes", "some_images"]

log = logging.getLogger(__name__)

WNIDS = Path(__file__).parent / "imagenet100.txt"  # Tian et al., CMC: github.com/HobbitLong/CMC, imagenet100.txt
CLASS_LISTS = {"imagenet100": WNIDS}


@dataclass(frozen=True)
class Context:
    """A reproduction, and where it stands."""

    scale: Scale
    train: ImageSource
    test: ImageSource
    folder: Path
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    """Processes of pre-training, each on a GPU of its own."""
    workers: int | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Method -> a released checkpoint, which is taken instead of pre-training."""
    classes: str | None = None
    """The list of classes that were taken, as typed."""
    typed: Mapping[str, str] = field(default_factory=dict)
    """Options of the command that lead here, for the record."""
    options: tuple[str, ...] = ()
    """Of a command that does a part of the same; none where images are not named by strings."""
    train_only: str | None = None
    """``STAGE/LABEL`` of the one training to be done, as a process of its own; all else is left."""

    @property
    def results(self) -> Path:
        """Folder of the result files."""
        return self.folder / FOLDER

    @property
    def hardware(self) -> Hardware:
        """Where fine-tunings run."""
        return Hardware(self.device, self.scale.precision, self.workers)

    @cached_property
    def image_size(self) -> int:
        """Side of the training images in pixels."""
        return self.scale.image_size or min(typical_side(self.train), LARGEST_SIDE)

    def unit(self, stage: str, name: str, method: str) -> Unit:
        """Return a unit of this reproduction."""
        subset = "" if self.classes is None else Path(self.classes).stem
        return Unit(self.scale.name, stage, name, method, self.seed, subset)

    def encoder_folder(self, stage: str, label: str) -> Path:
        """Return where a stage's encoder is trained: ``encoders/SCALE/STAGE/LABEL``, as `pretrain` would leave it."""
        return self.folder / "encoders" / self.scale.name / stage / label

    def work(self, unit: Unit) -> Path:
        """Return where a unit keeps tables, and what it needs to go on."""
        return self.folder / "work" / unit.scale / unit.stage / unit.label

    def backbones(self) -> dict[int, str]:
        """Return the backbones of the curve by their number of features."""
        names = [name for name in (self.scale.backbone, self.scale.wide_backbone) if name]
        found = {measure_output(build_backbone(name), self.image_size)[0]: name for name in names}
        if len(found) < len(names):
            raise QScoreError(f"wide_backbone: expected another width than that of {names[0]}, got {names[1]}")
        return found

    def images_record(self) -> dict[str, Any]:
        """Return which images are learned from and tested on."""
        return {
            name: {"name": short_name(source.name), "n": len(source), "fingerprint": source.fingerprint}
            for name, source in (("train", self.train), ("test", self.test))
        }

    def command(self, unit: Unit) -> str:
        """Return the command that makes a unit's result, with the names of files alone."""
        options = {"scale": self.scale.name, "stage": unit.stage, "methods": unit.method} | dict(self.typed)
        if unit.seed:
            options["seed"] = str(unit.seed)
        said = [
            f"--{name.replace('_', '-')} {shlex.quote(part)}"
            for name, value in options.items()
            for part in value.split("\n")  # those that may be repeated have a line each
        ]
        return " ".join(["qscore reproduce", *said])


def some_images(source: ImageSource, most: int | None, name: str) -> ImageSource:
    """Return as many images as a scale takes, drawn at random with a fixed seed; all must have labels.

    Raises
    ------
    QScoreError
        If one has none.
    """
    if not has_labels(source):
        raise QScoreError(f"{source.name}: expected a label on every image, which a reproduction tests against")
    if most is None or len(source) <= most:
        return source
    log.info("%s of the %s %s images are taken, at random", f"{most:,}", f"{len(source):,}", name)
    return subset(source, np.sort(np.random.default_rng(0).choice(len(source), most, replace=False)).tolist())


def choose_classes(source: ImageSource, classes: str) -> ImageSource:
    """Return the images of the classes in a list: ``imagenet100``, or a file with one label a line.

    Parameters
    ----------
    source : ImageSource
        With labels.
    classes : str
        ``"imagenet100"`` is the list of Tian et al. (CMC), which the paper uses.

    Raises
    ------
    QScoreError
        If the list cannot be read, or classes are missing.
    """
    try:
        wanted = CLASS_LISTS.get(classes, Path(classes)).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise QScoreError(f"classes {classes!r}: expected imagenet100, or a file with one label a line") from error
    labels = [str(label) for label in source.labels or []]
    missing = sorted(set(wanted) - set(labels))
    if missing or not wanted:
        shown = f", the first {missing[0]}" if missing else ""
        raise QScoreError(f"{source.name}: {len(missing)} of {len(wanted)} classes of {classes} are not there{shown}")
    members = set(wanted)
    return subset(source, [i for i, label in enumerate(labels) if label in members])
