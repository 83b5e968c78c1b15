"""Settings of a fine-tuning, and the regulariser they ask for."""

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from qscore._validate import Epsilon, QScoreError, check_epsilon, nearest, settle_epsilon
from qscore.encoders import Encoder
from qscore.estimator import QScorer
from qscore.images import ImageSource
from qscore.regularizer import LassoRegularizer, QScoreRegularizer
from qscore.regularizer.features import SIGNED_REASON, find_discriminative
from qscore.ssl.addition import Addition
from qscore.ssl.finetune import SCHEDULES, Hardware, represent
from qscore.ssl.start import Start
from qscore.ssl.watch import Diverged
from qscore.study.measure import Discovered

__all__ = [
    "REGULARIZERS",
    "Tuning",
    "make_addition",
    "random_features",
    "refuse_empty",
    "refuse_own_folder",
    "refuse_unfit",
]

log = logging.getLogger(__name__)

REGULARIZERS = ("qscore", "lasso", "none")
PAPERS = 1e-4  # both lambdas, as sums
NEED_D = ("qscore", "random-d")


@dataclass(frozen=True)
class Tuning:
    """How to fine-tune; the defaults are the paper's, but for epsilon."""

    epochs: int = 50
    """Passes over the images, at least 1."""
    learning_rate: float = 1e-5
    """Absolute, whatever the batch; 0 moves nothing but BatchNorm's statistics."""
    schedule: str = "constant"
    """``"constant"``, since the paper names one learning rate and no schedule, or ``"cosine"`` down to 0."""
    batch_size: int | None = None
    """Images per step; None takes that of the checkpoint's training, or the recipe's."""
    lambda1: float | None = None
    """Weight of the term that lifts rows of low quality; None is 1e-4 for sums, and calibrated for means."""
    lambda2: float | None = None
    """Weight of the term that presses features which everything lights; None likewise."""
    lasso_lambda: float | None = None
    """Weight of Lasso; None likewise."""
    reduction: Literal["sum", "mean"] = "sum"
    """The formula to the letter, or means, whose weights are set at the first step: each term's gradient on the
    representations gets a tenth of the loss's norm."""
    refresh_every: int | None = None
    """Epochs after which D is found anew; None keeps the first."""
    epsilon: Epsilon = "auto"
    """Of D and of the regulariser; ``"paper"`` becomes 4.0. ``"auto"`` suits narrow and dense representations too."""
    warmup_heads: int = 10
    """Epochs for which fresh heads are trained before, the encoder frozen."""
    device: str = "auto"
    """``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``."""
    precision: str = "32-true"
    """Of the training: ``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``."""
    workers: int | None = None
    """Threads that read images once, or processes that stream them; None by the processors."""
    stream: bool | None = None
    """Whether images are read anew for each view; None streams what does not fit into memory."""

    def __post_init__(self) -> None:
        if self.epsilon == "paper":
            object.__setattr__(self, "epsilon", settle_epsilon(self.epsilon))

    @property
    def hardware(self) -> Hardware:
        """What it runs on."""
        return Hardware(self.device, self.precision, self.workers, self.stream)

    def check(self) -> None:
        """Refuse what is out of range.

        Raises
        ------
        QScoreError
            Naming the setting.
        """
        for name, least in (("epochs", 1), ("warmup_heads", 0), ("refresh_every", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise QScoreError(f"{name}: expected at least {least}, got {value}")
        for name in ("learning_rate", "lambda1", "lambda2", "lasso_lambda"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise QScoreError(f"{name}: expected a number of at least 0, got {value}")
        if self.schedule not in SCHEDULES:
            raise QScoreError(
                f"schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}{nearest(self.schedule, SCHEDULES)}"
            )
        if self.reduction not in ("sum", "mean"):
            raise QScoreError(f"reduction: expected 'sum' or 'mean', got {self.reduction!r}")
        if self.epsilon != "auto":
            check_epsilon(self.epsilon)
        if (self.lambda1 is None) != (self.lambda2 is None) and self.reduction == "mean":
            raise QScoreError("lambda1, lambda2: with means give both, or neither to have them calibrated")
        self.hardware.check()

    def to_json(self) -> dict[str, Any]:
        """Return what decides the result, as JSON can hold it."""
        names = ("epochs", "learning_rate", "schedule", "lambda1", "lambda2", "lasso_lambda", "reduction")
        more = ("refresh_every", "epsilon", "warmup_heads", "precision")
        return {name: getattr(self, name) for name in (*names, *more)}


class Unfit(QScoreError):  # noqa: N818 (a fact, not a mistake)
    """An encoder that no regulariser on D can work on: it is signed, gives NaN, or its D is empty."""


def refuse_own_folder(checkpoint: str | Path | Encoder, out: str | Path) -> None:
    """Refuse to write where the checkpoint lies, since replacing the folder would remove it."""
    if isinstance(checkpoint, Encoder):
        return
    place, source = Path(out).resolve(), Path(checkpoint).resolve()
    if place == source or place in source.parents:
        raise QScoreError(f"{out} holds the checkpoint that is to be fine-tuned; name another folder")


def refuse_unfit(kinds: tuple[str, ...], encoder: Encoder, D: Discovered | None, epsilon: float | str) -> None:
    """Refuse an encoder that a regulariser cannot work on, before anything is computed.

    Parameters
    ----------
    kinds : tuple of str
        Of `REGULARIZERS`, or ``"random-d"``.
    encoder : Encoder
        What is to be fine-tuned.
    D : Discovered, optional
        As the user gives it.
    epsilon : float or "auto"
        Of L_i.

    Raises
    ------
    Unfit
        If the encoder is signed or gives NaN.
    QScoreError
        If D is of another width or epsilon, or epsilon is out of reach.
    """
    asked = [kind for kind in kinds if kind in NEED_D]
    if asked and not encoder.nonnegative:
        _refuse_nan(encoder)  # which no comparison calls non-negative either
        raise Unfit(
            f"{encoder.source.architecture} is a signed encoder, but {SIGNED_REASON}; fine-tune it with "
            "--regularizer lasso or none (--arms lr0,plain,lasso)"
        )
    if D is not None and len(D.counts) != encoder.dim:
        raise QScoreError(
            f"{D.table}: D was found among {len(D.counts)} features, and the encoder has {encoder.dim}; find D with "
            "this encoder, by leaving --features out"
        )
    if D is not None and asked:
        find_discriminative(D.table)
    if D is not None and epsilon not in ("auto", D.epsilon):
        raise QScoreError(
            f"epsilon: {D.table} was made at {D.epsilon:g}, and {epsilon:g} is asked for; leave one of the two out"
        )
    if epsilon != "auto":
        check_epsilon(epsilon, n_features=encoder.dim)


def _refuse_nan(encoder: Encoder) -> None:
    side = encoder.preprocess.crop
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.isfinite(encoder(noise)).all():
            raise Unfit(
                f"{encoder.source.architecture}: its representations hold NaN or infinity: a training that diverged "
                "wrote it; take an earlier checkpoint"
            )


def refuse_empty(kinds: tuple[str, ...], D: Discovered) -> None:
    """Refuse a D without features, before anything is trained.

    Raises
    ------
    Unfit
        If a kind of regularisation needs one.
    """
    if any(kind in NEED_D for kind in kinds) and not len(D.indices):
        raise Unfit(
            f"D is empty: at epsilon {D.epsilon:g} no feature of the band is highly active in any training row, so no "
            "row can be lifted; give a smaller --epsilon, or auto"
        )


def random_features(D: Discovered, *seed: int) -> np.ndarray:
    """Return as many features as D has, drawn without replacement from those that are ever highly active, ascending.

    Parameters
    ----------
    D : Discovered
        With the counts of all features.
    seed : int
        One or more numbers that decide the draw.
    """
    alive = np.flatnonzero(D.counts > 0)
    return np.sort(np.random.default_rng(seed).choice(alive, size=len(D.indices), replace=False))


def make_addition(
    kind: str, tuning: Tuning, D: Discovered | None, start: Start, images: ImageSource, seed: int
) -> Addition | None:
    """Return what a kind of regularisation adds to the loss; None for none.

    Parameters
    ----------
    kind : str
        Of `REGULARIZERS`, or ``"random-d"``.
    tuning : Tuning
        Weights, reduction, and how often D is found anew.
    D : Discovered, optional
        Needed by ``"qscore"`` and ``"random-d"``.
    start : Start
        Whose preprocessing is used when D is found anew.
    images : ImageSource
        On which it is.
    seed : int
        Of a random D.
    """
    if kind == "none":
        return None
    means = tuning.reduction == "mean"
    if kind == "lasso":
        lasso = LassoRegularizer(_weight(tuning.lasso_lambda), reduction=tuning.reduction)
        return Addition(lasso, calibrate=means and tuning.lasso_lambda is None)
    if D is None:
        raise QScoreError(f"{kind}: expected D")
    random = kind == "random-d"
    regularizer = QScoreRegularizer(
        random_features(D, seed, 0) if random else D.indices,
        _weight(tuning.lambda1),
        _weight(tuning.lambda2),
        epsilon=D.epsilon,
        reduction=tuning.reduction,
    )

    def refresh(regularizer: Any, backbone: nn.Module, epoch: int) -> None:
        live = Encoder(copy.deepcopy(backbone), start.encoder.source)
        H = represent(live, images, tuning.device)
        if not np.isfinite(H).all():
            raise Diverged(f"epoch {epoch + 1}: representations hold NaN or infinity, so D cannot be found anew")
        scorer = QScorer(epsilon=tuning.epsilon, signed=False).fit(H)
        found = Discovered(D.table, scorer.discriminative_features_, scorer.counts_, scorer.epsilon_, None)
        if not len(found.indices):
            raise Diverged(f"epoch {epoch + 1}: D found anew is empty at epsilon {found.epsilon:g}")
        indices = random_features(found, seed, epoch) if random else found.indices
        regularizer.set_features(indices, epsilon=found.epsilon)
        log.info("epoch %d: D found anew, %d features at epsilon %g", epoch + 1, len(indices), found.epsilon)

    return Addition(
        regularizer,
        calibrate=means and tuning.lambda1 is None,
        refresh=refresh,
        refresh_every=tuning.refresh_every,
    )


def _weight(given: float | None) -> float:
    return PAPERS if given is None else given
