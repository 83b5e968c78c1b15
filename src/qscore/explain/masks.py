"""How much of a heatmap lies where a mask says: overlap, energy and peak, beside what a blind map would reach."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qscore._validate import QScoreError
from qscore.explain.geometry import upsample
from qscore.metrics import Interval, mean_interval

__all__ = [
    "Localisation",
    "energy_inside",
    "gaussian_map",
    "mask_iou",
    "mean_over_sets",
    "pointing_game",
    "random_maps",
    "soft_iou",
    "summarise",
]

Metric = Callable[[Tensor, Tensor], Tensor]  # heatmaps (k, p) of one image and its mask (p,) to (k,)

AT = 0.5  # a soft mask marks the pixels at or above
SPREAD = 0.25  # of the image's sides: standard deviation of the centred map


def mask_iou(
    heatmaps: Float[Tensor, "b k h w"],
    masks: Float[Tensor, "b h w"] | Bool[Tensor, "b h w"],
    *,
    threshold: float | None = None,
) -> Float[Tensor, "b k"]:
    """Return the intersection over union of each heatmap's strongest pixels and its image's mask.

    By default as many pixels are taken as the mask marks, so that no threshold enters and only a heatmap's order
    counts. Pixels that tie at the last place share the room that is left there equally: each counts by the same
    fraction, so the value is that of the average over all ways to break the tie, of the intersection.

    Parameters
    ----------
    heatmaps : Tensor of shape (b, k, h, w)
        Finite and >= 0, as `feature_heatmaps` gives them.
    masks : Tensor of shape (b, h, w)
        Booleans, or soft masks in [0, 1], which mark the pixels at 0.5 and above.
    threshold : float, optional
        Take the pixels at or above this fraction of the heatmap's maximum instead, in (0, 1].

    Returns
    -------
    Tensor of shape (b, k), float64
        In [0, 1]; a heatmap that is 0 everywhere scores 0.

    Raises
    ------
    QScoreError
        If shapes do not fit, heatmaps are negative or not finite, or a mask marks nothing or everything.

    Notes
    -----
    With ``a`` pixels in the mask of which ``i`` are taken, the value is ``i / (2 a - i)``; relevance rank accuracy
    (Arras et al., 2022) is ``i / a``.

    Examples
    --------
    >>> import torch
    >>> heatmap = torch.tensor([[[[3.0, 2.0], [1.0, 0.0]]]])
    >>> mask = torch.tensor([[[True, False], [True, False]]])
    >>> mask_iou(heatmap, mask)
    tensor([[0.3333]], dtype=torch.float64)
    """
    heat, marked = _checked(heatmaps, masks)
    if threshold is not None and not 0 < threshold <= 1:
        raise QScoreError(f"threshold: expected a fraction of the maximum in (0, 1], got {threshold!r}")
    if threshold is None:
        return _each(_top, heat, marked)
    return _each(lambda rows, mask: _above(rows, mask, threshold), heat, marked)


def soft_iou(heatmaps: Float[Tensor, "b k h w"], masks: Float[Tensor, "b h w"]) -> Float[Tensor, "b k"]:
    """Return ``sum min(s, m) / sum max(s, m)`` of each heatmap scaled to a maximum of 1, s, and its mask, m, as it is.

    Parameters, errors and heatmaps of 0 are as in `mask_iou`; soft masks are not cut at 0.5.
    """
    heat, _ = _checked(heatmaps, masks)

    def overlap(rows: Tensor, mask: Tensor) -> Tensor:
        scaled = rows / rows.amax(1, keepdim=True)
        return torch.minimum(scaled, mask).sum(1) / torch.maximum(scaled, mask).sum(1)

    return _each(overlap, heat, masks.to(heat.device, torch.float64).flatten(1))


def pointing_game(heatmaps: Float[Tensor, "b k h w"], masks: Float[Tensor, "b h w"]) -> Float[Tensor, "b k"]:
    """Return whether each heatmap's maximum lies in the mask, 1 or 0; of several maxima the share that does.

    Parameters, errors and heatmaps of 0 are as in `mask_iou`. Zhang et al., IJCV 2018, without their margin.
    """
    heat, marked = _checked(heatmaps, masks)

    def peaks(rows: Tensor, mask: Tensor) -> Tensor:
        peak = (rows == rows.amax(1, keepdim=True)).double()
        return peak @ mask.double() / peak.sum(1)

    return _each(peaks, heat, marked)


def energy_inside(heatmaps: Float[Tensor, "b k h w"], masks: Float[Tensor, "b h w"]) -> Float[Tensor, "b k"]:
    """Return the share of each heatmap's sum that lies in the mask.

    Parameters, errors and heatmaps of 0 are as in `mask_iou`. Relevance mass accuracy of Arras et al., 2022.
    """
    heat, marked = _checked(heatmaps, masks)
    return _each(lambda rows, mask: rows.double() @ mask.double() / rows.sum(1, dtype=torch.float64), heat, marked)


def gaussian_map(height: int, width: int) -> Float[Tensor, "h w"]:
    """Return a blind map that looks at the centre: a Gaussian whose standard deviations are a quarter of the sides.

    Its strongest pixels, as many as a mask has, are an ellipse in the middle.
    """
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / (SPREAD * n)) ** 2)
        for n in (height, width)
    )
    return torch.outer(rows, columns).float()


def random_maps(
    ids: Sequence[str], height: int, width: int, *, grid: tuple[int, int] | None = None, seed: int = 0
) -> Float[Tensor, "b 1 h w"]:
    """Return blind maps that look anywhere, one for each image: each a function of the seed and the image's id alone.

    Parameters
    ----------
    ids : sequence of str, length b
        The images' ids.
    height, width : int
        Size in pixels.
    grid : tuple of int, optional
        Rows and columns of noise that is then enlarged as heatmaps are, for maps as coarse as a layer's; by default
        every pixel has noise of its own.
    seed : int, default=0
        Of the noise.
    """
    shape = grid or (height, width)
    noise = [
        np.random.default_rng([seed, *hashlib.sha256(id.encode()).digest()]).random(shape, np.float32) for id in ids
    ]
    return upsample(torch.from_numpy(np.stack(noise))[:, None], (height, width))


def mean_over_sets(values: Float[Tensor, "n k"], sets: Bool[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return each sample's mean over the features in its set, such as ``L_i ∩ D``; NaN where the set is empty.

    Raises
    ------
    QScoreError
        If shapes differ.
    """
    if values.shape != sets.shape:
        raise QScoreError(f"sets: expected booleans of shape {tuple(values.shape)}, got {tuple(sets.shape)}")
    total = torch.where(sets, values, 0.0).sum(1, dtype=torch.float64)
    return total / sets.sum(1)  # 0 / 0 is NaN


@dataclass(frozen=True)
class Localisation:
    """A metric over samples: its mean, and how many samples could not take part."""

    mean: Interval
    """Mean over the samples whose set is not empty, with its 95 % bootstrap interval over samples."""
    n: int
    """Samples that took part."""
    excluded: int
    """Samples without a value: their set was empty, or their mask marked nothing."""


def summarise(values: Float[Tensor, " n"], *, resamples: int = 2000, seed: int = 0) -> Localisation:
    """Return the mean over samples, those with NaN excluded and counted.

    Parameters
    ----------
    values : Tensor of shape (n,)
        One value for each sample, as `mean_over_sets` gives them; or differences of two metrics on the same samples.
    resamples, seed : int
        Of the bootstrap over samples.
    """
    found = values.double().cpu().numpy()
    kept = found[~np.isnan(found)]
    return Localisation(mean_interval(kept, resamples=resamples, seed=seed), len(kept), len(found) - len(kept))


def _each(metric: Metric, heat: Tensor, masks: Tensor) -> Float[Tensor, "b k"]:
    """Apply a metric image by image, so that its intermediate results never take more than one image's heatmaps."""
    values = [metric(rows, mask).double() for rows, mask in zip(heat, masks, strict=True)]
    found = torch.stack(values) if values else heat.new_empty(heat.shape[:2], dtype=torch.float64)
    return torch.where(heat.amax(2) > 0, found, 0.0)


def _top(rows: Float[Tensor, "k p"], mask: Bool[Tensor, " p"]) -> Float[Tensor, " k"]:
    area = int(mask.sum())
    least = rows.kthvalue(rows.shape[1] - area + 1, dim=1, keepdim=True).values  # (k, 1): the last one taken
    above, tied = rows > least, rows == least
    share = (area - above.sum(1)).double() / tied.sum(1)  # of each tied pixel
    inside = (above & mask).sum(1) + share * (tied & mask).sum(1)
    return inside / (2 * area - inside)


def _above(rows: Float[Tensor, "k p"], mask: Bool[Tensor, " p"], threshold: float) -> Float[Tensor, " k"]:
    on = rows >= threshold * rows.amax(1, keepdim=True)
    return (on & mask).sum(1).double() / (on | mask).sum(1)


def _checked(heatmaps: Tensor, masks: Tensor) -> tuple[Float[Tensor, "b k p"], Bool[Tensor, "b p"]]:
    if heatmaps.ndim != 4 or not heatmaps.is_floating_point():
        raise QScoreError(
            f"heatmaps: expected floats of shape (b, k, h, w), got {heatmaps.dtype} of shape {tuple(heatmaps.shape)}"
        )
    b, _, h, w = heatmaps.shape
    if masks.shape != (b, h, w):
        raise QScoreError(
            f"masks: expected shape {(b, h, w)}, one for each image and of the heatmaps' size, got {tuple(masks.shape)}"
        )
    if not bool(torch.isfinite(heatmaps).all()) or bool((heatmaps < 0).any()):
        raise QScoreError("heatmaps: expected finite values >= 0, got others; cut them at 0")
    if masks.dtype != torch.bool and not bool(((masks >= 0) & (masks <= 1)).all()):
        raise QScoreError("masks: expected booleans or values from 0 to 1, got others; divide grey values by 255")
    marked = (masks if masks.dtype == torch.bool else masks >= AT).flatten(1).to(heatmaps.device)
    area = marked.sum(1)
    for wrong, what in ((area == 0, "no pixel"), (area == h * w, "every pixel")):
        if bool(wrong.any()):
            where = int(wrong.nonzero()[0])
            raise QScoreError(
                f"masks: expected each to mark some pixels and leave some out, got one that marks {what} at position "
                f"{where}; leave that image out"
            )
    return heatmaps.detach().flatten(2), marked
