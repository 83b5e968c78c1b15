"""Where D comes from: indices, a mask, a fitted scorer, or a feature table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from qscore._validate import QScoreError
from qscore.tables import read_features

__all__ = ["SIGNED_REASON", "Discriminative", "find_discriminative"]

SIGNED_REASON = (
    "the paper's form needs features that are never negative: L_i looks above a row's mean only, where a signed "
    "encoder's strong negative features are not seen"
)


@dataclass(frozen=True)
class Discriminative:
    """D, and what is known of how it was found."""

    indices: Int64[Tensor, " k"]
    """Ascending, each once."""
    n_features: int | None
    """r; None where D came as bare indices."""
    epsilon: float | None
    """At which D was found; None where nothing tells."""


def find_discriminative(features: Any) -> Discriminative:
    """Return D from whatever holds it.

    Parameters
    ----------
    features : array or sequence of int or bool, fitted QScorer, str or Path
        Indices, shape (k,); a mask, shape (r,); a scorer; or a feature table as :func:`qscore.score` writes it.

    Raises
    ------
    QScoreError
        If it is none of these, D is empty, or it was found for a signed encoder.
    """
    if isinstance(features, str | Path):
        found = _from_table(features)
    elif hasattr(features, "discriminative_features_"):
        found = _from_scorer(features)
    elif hasattr(features, "fit"):
        raise QScoreError("features: the scorer is not fitted; call its fit(H) first")
    else:
        found = _from_array(features)
    if not len(found.indices):
        raise QScoreError(
            "features: D is empty, so no row can be lifted; find it at a smaller epsilon: "
            "QScorer(epsilon='auto').fit(H)"
        )
    return found


def _from_table(path: str | Path) -> Discriminative:
    table, record = read_features(path)
    if record.get("signed"):
        raise QScoreError(f"{path}: D of a signed encoder, but {SIGNED_REASON}")
    try:
        mask, epsilon = table.column("discriminative").to_numpy(), float(record["epsilon"])
    except (KeyError, TypeError, ValueError) as error:
        raise QScoreError(f"{path}: a damaged feature table ({error}); run qscore score again") from error
    return Discriminative(torch.from_numpy(np.flatnonzero(mask)), len(mask), epsilon)


def _from_scorer(scorer: Any) -> Discriminative:
    if scorer.signed_:
        raise QScoreError(f"features: D of a signed encoder, but {SIGNED_REASON}")
    indices = torch.from_numpy(np.array(scorer.discriminative_features_, dtype=np.int64))
    return Discriminative(indices, int(scorer.n_features_in_), float(scorer.epsilon_))


def _from_array(features: Any) -> Discriminative:
    try:
        values = features.detach().cpu() if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
    except (TypeError, ValueError) as error:
        raise _unknown(type(features).__name__) from error
    if values.ndim == 1 and values.dtype == torch.bool:
        return Discriminative(values.nonzero()[:, 0], len(values), None)
    if values.ndim == 1 and len(values) == 0:
        return Discriminative(values.long(), None, None)
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise _unknown(f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}")
    if int(values.min()) < 0:
        raise QScoreError(f"features: expected indices of at least 0, got {int(values.min())}")
    return Discriminative(torch.from_numpy(np.unique(values.long().numpy())), None, None)


def _unknown(came: str) -> QScoreError:
    return QScoreError(
        f"features: expected indices, a mask of booleans, a fitted QScorer or the path of a feature table; got {came}"
    )
