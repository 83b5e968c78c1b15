"""How large a reproduction is: every number of the three scales, fixed before any was run."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from qscore._validate import QScoreError, nearest
from qscore.images import open_images
from qscore.ssl import METHODS

__all__ = ["CONTROLS", "SCALES", "Scale", "choose_scale", "named_methods"]

CONTROLS = ("supervised", "random")
OPTIMIZERS = ("lars", "adamw", "sgd")
RECIPES = ("auto", "imagenet", "cifar", "small")
LISTS = ("curve_methods", "shapes_methods")
COUNTS = (
    *("n_train", "n_test", "resamples", "curve_epochs", "curve_keep", "supervised_epochs", "repair_seeds"),
    *("repair_epochs", "methods_epochs", "methods_keep", "methods_tune_epochs"),
    *("shapes_epochs", "shapes_keep", "shapes_tune_epochs", "shapes_rows", "batch_size", "accumulate"),
)


@dataclass(frozen=True)
class Scale:
    """All that decides what a reproduction computes, but for images and seed; the defaults are those of ``small``.

    ``small`` is made for two CPU cores and 12,500 images of CIFAR-10: hours in all.
    """

    name: str = "small"
    """``small``, ``medium`` or ``paper``."""
    backbone: str = "small:resnet10-16-r512"
    """Of all stages: what `build_backbone` takes. 10 layers of width 16, and 512 features."""
    wide_backbone: str | None = "small:resnet10-16-r2048"
    """Of the second curve, which asks whether the width matters: as many features as ResNet-50 has. None: no second."""
    recipe: str = "cifar"
    """Of pre-training, whose settings are the published ones."""
    image_size: int | None = None
    """Side of the training images in pixels; None takes the images' own, at most 224."""
    precision: str = "32-true"
    """Of training; embedding is in float32 at any scale, so that scores are comparable."""
    batch_size: int = 256
    """Images per forward pass when embedding; those per training step are the recipe's."""
    accumulate: int = 1
    """Parts that a batch of pre-training is taken in, to save memory."""
    n_train: int | None = 12_500
    """Images taken of the training images at most, at random; None takes all."""
    n_test: int | None = 10_000
    """Images taken of the test images at most, likewise."""
    views: int = 4
    """Augmented views of each test image, for the rivals that need some, and for alignment."""
    resamples: int = 1000
    """Bootstrap resamples of the test rows."""

    curve_methods: str = "simclr,vicreg"
    """Methods trained as far as the machine allows: one contrastive, one not."""
    curve_epochs: int = 60
    """Of them: 2,880 steps."""
    curve_keep: int = 10
    """Epochs between checkpoints: six along the way, and the random initialisation before them."""
    curve_warmup: float | None = 2.0
    """Epochs in which the learning rate rises. The published 10 of 1,000 would be 0.6 of 60, too few for LARS at its
    peak from random weights. None keeps the recipe's share."""
    supervised_epochs: int = 30
    """Of the supervised control, which knows the labels and needs less."""

    repair_method: str = "simclr"
    """Whose last checkpoint of the curve is branched into the five arms."""
    repair_seeds: int = 5
    """Fine-tunings of each arm."""
    repair_epochs: int = 2
    """Of each; the paper's are 50."""
    tune_optimizer: str = "adamw"
    """Of every fine-tuning. LARS, which CIFAR's recipes train with, moves next to nothing at a rate of 1e-5: its steps
    are that share of the trust coefficient's share of a weight's norm."""
    tune_batch_size: int | None = None
    """Images per step of every fine-tuning, which runs on one device; None takes the pre-training's."""
    paper_rate: float = 1e-5
    """The learning rate that the paper names."""
    calibrated_share: float = 0.1
    """The calibrated learning rate as a share of the peak rate at which AdamW trains this method from random weights
    (the method's recipe ``small``, for the batch in use). A cosine schedule passes a tenth of its peak when four fifths
    of a training are done. No label and no result enters."""

    methods_recipe: str = "auto"
    """Of their pre-training. ``auto`` takes what the number of images asks for: 12,500 are too few for CIFAR's recipes,
    which are made for 1,000 epochs of 50,000."""
    methods_epochs: int = 10
    """Of each of the eight methods: 480 steps. They are compared at the same number of epochs, trained out or not."""
    methods_keep: int = 5
    """Epochs between checkpoints. A method counts as undertrained if its probe still rises from the last but one to the
    last by more than a standard error of the paired difference."""
    methods_warmup: float | None = None
    """As ``curve_warmup``."""
    methods_tune_epochs: int = 1
    """Of its fine-tunings: plain, Q-Score, and learning rate 0, with one seed."""
    methods_rate: str = "calibrated"
    """``calibrated`` or ``paper``: the learning rate of the fine-tunings of all eight."""

    shapes_methods: str = "simclr,vicreg"
    """Methods trained on drawn shapes, whose attributes and masks are known."""
    shapes_train: str = "shapes:n=5000,classes=100,spurious=0.9,size=48"
    """100 classes, the background tied to the class in 90 % of the images."""
    shapes_test: str = "shapes:n=2000,classes=100,spurious=0.9,size=48,split=test"
    """Other scenes of the same kind: where do features look?"""
    shapes_free: str = "shapes:n=2000,classes=100,spurious=0,size=48,split=test"
    """The same scenes with backgrounds drawn evenly: which attribute does a feature stand for? Of two that go together
    nothing could tell."""
    shapes_recipe: str = "small"
    """Of pre-training on shapes: thousands of images are too few for CIFAR's recipe."""
    shapes_epochs: int = 30
    """Of it."""
    shapes_keep: int = 15
    """Epochs between its checkpoints."""
    shapes_tune_epochs: int = 2
    """Of fine-tuning with Q-Score regularisation, plain, and at learning rate 0, for the claim on interpretability."""
    shapes_rows: int = 1000
    """Test images whose heatmaps are computed at most."""

    def check(self) -> None:
        """Refuse what is out of range.

        Raises
        ------
        QScoreError
            Naming the setting.
        """
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QScoreError(f"{name}: expected at least 1, got {value}")
        for name in ("paper_rate", "calibrated_share"):
            if not getattr(self, name) > 0:
                raise QScoreError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if not 2 <= self.views <= 127:
            raise QScoreError(f"views: expected 2 to 127, got {self.views}")
        for before, epochs in (("curve_keep", "curve_epochs"), ("methods_keep", "methods_epochs")):
            if getattr(self, epochs) % getattr(self, before):
                raise QScoreError(
                    f"{before}: expected a divisor of {epochs}, so that the last epoch is kept, got "
                    f"{getattr(self, before)} and {getattr(self, epochs)}"
                )
        if self.shapes_epochs % self.shapes_keep:
            raise QScoreError(
                f"shapes_keep: expected a divisor of shapes_epochs, got {self.shapes_keep} and {self.shapes_epochs}"
            )
        if self.methods_rate not in ("calibrated", "paper"):
            raise QScoreError(f"methods_rate: expected calibrated or paper, got {self.methods_rate!r}")
        for name in LISTS:
            named_methods(getattr(self, name), tuple(METHODS), name)
        named_methods(self.repair_method, tuple(METHODS), "repair_method")
        if self.tune_batch_size is not None and self.tune_batch_size < 2:
            raise QScoreError(f"tune_batch_size: expected at least 2, got {self.tune_batch_size}")
        if self.tune_optimizer not in OPTIMIZERS:
            raise QScoreError(
                f"tune_optimizer {self.tune_optimizer!r}: expected one of {', '.join(OPTIMIZERS)}"
                f"{nearest(self.tune_optimizer, OPTIMIZERS)}"
            )
        for name in ("recipe", "methods_recipe", "shapes_recipe"):
            if getattr(self, name) not in RECIPES:
                raise QScoreError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(RECIPES)}")
        for name in ("shapes_train", "shapes_test", "shapes_free"):
            open_images(getattr(self, name))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)

    def calibrated_rate(self, method: str, batch_size: int) -> float:
        """Return the learning rate of a fine-tuning that follows from the method's own, without labels.

        Examples
        --------
        >>> Scale().calibrated_rate("simclr", 256)
        0.0002
        """
        peak = METHODS[method].recipes["small"].lr * batch_size / 256
        return float(f"{self.calibrated_share * peak:.6g}")


SCALES = {
    "small": Scale(),
    # One data-centre GPU, 50,000 images of CIFAR-10. ResNet-18 with the 3x3 stem is the paper's encoder on CIFAR.
    "medium": replace(
        Scale(),
        name="medium",
        backbone="small:resnet18-64",
        wide_backbone="small:resnet18-64-r2048",
        precision="bf16-mixed",
        batch_size=1024,
        resamples=2000,
        n_train=50_000,
        curve_epochs=96,
        curve_keep=12,
        curve_warmup=4.0,
        supervised_epochs=30,
        repair_epochs=5,
        methods_epochs=40,
        methods_keep=20,
        methods_warmup=2.0,
        methods_tune_epochs=3,
        shapes_train="shapes:n=10000,classes=100,spurious=0.9,size=64",
        shapes_test="shapes:n=2000,classes=100,spurious=0.9,size=64,split=test",
        shapes_free="shapes:n=2000,classes=100,spurious=0,size=64,split=test",
        shapes_epochs=60,
        shapes_keep=30,
        shapes_tune_epochs=5,
        shapes_rows=2000,  # drawing and explaining are the processor's work, and an explanation begins anew each time
    ),
    # ImageNet-1K, or ImageNet-100 by `classes="imagenet100"`, on several GPUs, with the published recipes; where a
    # released checkpoint is given, nothing is pre-trained.
    "paper": replace(
        Scale(),
        name="paper",
        backbone="torchvision:resnet50",
        wide_backbone=None,
        recipe="imagenet",
        image_size=224,
        precision="bf16-mixed",
        accumulate=2,
        tune_batch_size=256,
        n_train=None,
        n_test=None,
        resamples=2000,
        curve_epochs=100,
        curve_keep=20,
        curve_warmup=None,
        supervised_epochs=90,
        repair_epochs=50,
        methods_epochs=100,
        methods_keep=50,
        methods_warmup=None,
        methods_tune_epochs=50,
        methods_rate="paper",
        shapes_train="shapes:n=100000,classes=100,spurious=0.9,size=224",
        shapes_test="shapes:n=10000,classes=100,spurious=0.9,size=224,split=test",
        shapes_free="shapes:n=10000,classes=100,spurious=0,size=224,split=test",
        shapes_recipe="imagenet",
        shapes_epochs=100,
        shapes_keep=50,
        shapes_tune_epochs=50,
        shapes_rows=10_000,
    ),
}


def choose_scale(name: str) -> Scale:
    """Return a scale by its name.

    Raises
    ------
    QScoreError
        If there is none of this name.
    """
    if name not in SCALES:
        raise QScoreError(f"scale {name!r}: expected one of {', '.join(SCALES)}{nearest(name, SCALES)}")
    return SCALES[name]


def named_methods(text: str, known: tuple[str, ...], what: str = "methods") -> tuple[str, ...]:
    """Read a list of methods as typed, with commas between; ``all`` is all that are known.

    Raises
    ------
    QScoreError
        If one is unknown, or there are none.

    Examples
    --------
    >>> named_methods("vicreg, simclr", ("simclr", "vicreg", "byol"))
    ('simclr', 'vicreg')
    """
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if "all" in asked:
        return known
    for name in asked:
        if name not in known:
            raise QScoreError(
                f"{what}: expected all, or some of {', '.join(known)}, got {name!r}{nearest(name, known)}"
            )
    if not asked:
        raise QScoreError(f"{what}: expected all, or some of {', '.join(known)}, got none")
    return tuple(name for name in known if name in asked)
