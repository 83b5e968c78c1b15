"""What one look at held-out images says of a representation, and its row in a CSV file."""

import csv
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from qscore._files import atomic_path
from qscore._validate import QScoreError, check_epsilon, check_features
from qscore.estimator import QScorer
from qscore.kernels import scan
from qscore.metrics import representation_metrics

__all__ = ["Measurement", "append_csv", "measure"]

QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)


@dataclass(frozen=True)
class Measurement:
    """Label-free figures of a representation at one moment of its training; NaN where one is undefined."""

    epoch: int
    """When."""
    n: int
    """Images."""
    n_invalid: int
    """Those whose representation holds NaN or infinity; they count towards nothing else."""
    n_features: int
    """r."""
    epsilon: float
    """Of L_i: given, or found on these rows."""
    n_discriminative: int
    """Size of D: given, or found on these rows."""
    q_mean: float
    """Mean of Q over rows, 0 where L_i ∩ D is empty; in the units of the representation."""
    q_05: float
    """Quantiles of Q over rows: 5 %."""
    q_25: float
    """25 %."""
    q_50: float
    """The median."""
    q_75: float
    """75 %."""
    q_95: float
    """95 %."""
    coverage: float
    """Share of the rows that vary whose L_i ∩ D is not empty, 0 to 1."""
    rankme: float
    """Directions filled, 1 to min(n, r): :func:`qscore.metrics.rankme`."""
    alpha_req: float
    """How steeply eigenvalues fall: :func:`qscore.metrics.alpha_req`."""
    std: float
    """Standard deviation of a feature of rows scaled to unit length, mean over features; 0 is collapse."""
    std_share: float
    """The same as a share of 1 / sqrt(r), its largest value."""
    n_dead: int
    """Features that are 0 in every row."""
    dead_share: float
    """The same as a share of r."""
    hoyer: float
    """Mean sparsity of a row, 0 to 1: :func:`qscore.metrics.hoyer_sparsity`."""
    evidence: tuple[str, ...] = ()
    """Why the representation looks collapsed, or the training diverged; empty where nothing does."""

    def figures(self) -> dict[str, float]:
        """Return all that is logged, by name."""
        names = [field.name for field in fields(self) if field.name not in ("epoch", "evidence")]
        return {name: float(getattr(self, name)) for name in names}


def measure(H: Float[np.ndarray, "n r"], epoch: int, features: Any, epsilon: float | Literal["auto"]) -> Measurement:
    """Measure representations.

    Parameters
    ----------
    H : ndarray of float, shape (n, r)
        Rows with NaN or infinity are counted, and left out.
    epoch : int
        Noted.
    features : array, fitted QScorer or None
        D; None finds it on these rows.
    epsilon : float or "auto"
        Of L; a scorer brings its own.

    Raises
    ------
    QScoreError
        If there are fewer than two rows or features, or D does not fit their width.
    """
    if len(H) < 2 or H.shape[1] < 2:
        raise QScoreError(f"expected at least 2 images and 2 features, got representations of shape {H.shape}")
    rows = H[np.isfinite(H).all(axis=1)]
    # Neither uniformity nor intervals are asked for, and they would take longest.
    found = representation_metrics(H, sample=2, resamples=2)
    Q, epsilon, n_discriminative = _scores(rows, features, epsilon, H.shape[1])
    varying = int((rows.max(axis=1) > rows.min(axis=1)).sum())
    quantiles = (np.quantile(Q, QUANTILES) if len(Q) else np.full(len(QUANTILES), np.nan)).tolist()
    return Measurement(
        epoch=epoch,
        n=found.n,
        n_invalid=found.n_invalid,
        n_features=found.n_features,
        epsilon=epsilon,
        n_discriminative=n_discriminative,
        q_mean=float(Q.mean()) if len(Q) else np.nan,
        q_05=quantiles[0],
        q_25=quantiles[1],
        q_50=quantiles[2],
        q_75=quantiles[3],
        q_95=quantiles[4],
        coverage=float((Q > 0).sum() / varying) if varying else np.nan,  # what lies in L_i is above the mean
        rankme=found.rankme,
        alpha_req=found.alpha_req,
        std=found.normalized_std,
        std_share=found.normalized_std_share,
        n_dead=found.n_dead,
        dead_share=found.n_dead / found.n_features,
        hoyer=found.hoyer.value,
    )


def append_csv(path: str | Path, found: Measurement) -> None:
    """Add a measurement to a CSV file, which is always whole.

    Raises
    ------
    QScoreError
        If the file holds other columns, or cannot be written.
    """
    path = Path(path)
    row: Mapping[str, Any] = {"epoch": found.epoch} | found.figures() | {"evidence": "; ".join(found.evidence)}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    header, before = text.getvalue(), path.read_text() if path.exists() else ""
    if before and not before.startswith(header):
        raise QScoreError(f"{path} holds other columns; name another file")
    writer.writerow(row)
    with atomic_path(path) as temporary:
        temporary.write_text(before + text.getvalue().removeprefix(header if before else ""))


def _scores(rows: np.ndarray, features: Any, epsilon: float | Literal["auto"], r: int) -> tuple[np.ndarray, float, int]:
    """Return Q, epsilon and the size of D."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few covered rows: coverage is among the figures
        if features is None:
            if not len(rows):
                return np.empty(0), np.nan, 0
            features = QScorer(epsilon).fit(rows)
        if hasattr(features, "score_samples"):
            if features.n_features_in_ != r:
                raise QScoreError(
                    f"features: found among {features.n_features_in_}, but the encoder gives {r}; find D with it"
                )
            Q = features.score_samples(rows) if len(rows) else np.empty(0)
            return Q, features.epsilon_, len(features.discriminative_features_)
    assert not isinstance(epsilon, str)  # the monitor refuses it beside given features
    check_epsilon(epsilon)
    D = check_features(features, r)
    Q = scan(rows, epsilon).q_score(D) if len(rows) else np.empty(0)
    return Q, float(epsilon), len(D)
