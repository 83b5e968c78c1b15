"""Where the highly active features of each image look, measured against its masks in one pass over the images."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.core import apply_scaling
from qscore.encoders import Encoder
from qscore.explain.geometry import upsample
from qscore.explain.heatmaps import feature_maps
from qscore.explain.layers import evaluating
from qscore.explain.masks import energy_inside, gaussian_map, mask_iou, pointing_game, random_maps, soft_iou
from qscore.explain.material import Material, read_lists

__all__ = ["CONTROLS", "METRICS", "SETS", "Located", "check_encoder", "feature_sets", "locate", "on_device"]

Metric = Callable[[Tensor, Tensor], Tensor]

METRICS: dict[str, Metric] = {
    "iou": mask_iou,
    "soft_iou": soft_iou,
    "pointing": pointing_game,
    "energy": energy_inside,
    "iou_half": partial(mask_iou, threshold=0.5),
}
SETS = ("discriminative", "outside", "random", "frequent")
CONTROLS = ("gaussian", "random_map")
ENLARGED = 64  # heatmaps of an image at a time
TOGETHER = 16  # features at a time where each takes a pass of its own
LEAST_AGREEMENT = 0.5


@dataclass(frozen=True)
class Located:
    """What the pass over the images found."""

    samples: dict[str, Float[np.ndarray, " n"]]
    """``KIND_METRIC_SET`` for each kind of mask, of `METRICS`, and of `SETS` and `CONTROLS`: means over the features of
    ``L_i`` in the set; NaN where there are none, or the image has no such mask."""
    features: dict[str, Float[np.ndarray, " r"]]
    """``KIND_METRIC``: means over the images in which a feature is highly active; NaN where there are none."""
    n_images: dict[str, Int[np.ndarray, " r"]]
    """By kind, the images behind these."""


def feature_sets(features: pa.Table, n_random: int, seed: int) -> dict[str, Bool[np.ndarray, " r"]]:
    """Return D, all others, as many of the most frequent, and random sets of as many features with A > 0.

    Examples
    --------
    >>> table = pa.table({"count": [0, 3, 5, 9], "discriminative": [False, False, True, False]})
    >>> {name: members.nonzero()[0].tolist() for name, members in feature_sets(table, 1, seed=0).items()}
    {'discriminative': [2], 'outside': [0, 1, 3], 'frequent': [3], 'random 0': [2]}
    """
    counts = features.column("count").to_numpy()
    D = np.asarray(features.column("discriminative").to_numpy(zero_copy_only=False), dtype=bool)
    size, r = int(D.sum()), len(counts)
    rng = np.random.default_rng([seed, 1])
    fires = np.flatnonzero(counts > 0)
    chosen = {"frequent": np.argsort(counts, stable=True)[r - size :]}
    chosen |= {f"random {k}": rng.choice(fires, size, replace=False) for k in range(n_random)}
    return {"discriminative": D, "outside": ~D} | {name: np.isin(np.arange(r), some) for name, some in chosen.items()}


def locate(
    found: Material,
    encoder: Encoder,
    chosen: Int[np.ndarray, " m"],
    sets: Mapping[str, Bool[np.ndarray, " r"]],
    *,
    device: torch.device,
    method: str = "activation",
    layer: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Located:
    """Measure where the features in ``L_i`` look, image by image; memory holds a batch, and some numbers an image.

    Parameters
    ----------
    found : Material
        With masks.
    encoder : Encoder
        With r features, those of the score table.
    chosen : ndarray of int, shape (m,)
        Which of the n images are measured; all have masks.
    sets : mapping of str to ndarray of bool, shape (r,)
        As `feature_sets` gives them; of the random ones the mean is taken, over those with a feature in ``L_i``.
    device : torch.device
        Where the encoder runs; it is moved back.
    method, layer : str
        Of the heatmaps, as for `feature_heatmaps`.
    batch_size : int, default=64
        Images at a time.
    seed : int, default=0
        Of the random maps.

    Raises
    ------
    QScoreError
        If an image or a mask cannot be read, sizes differ, the encoder has no maps for the method, or the score table
        was not made with it.
    """
    assert found.masks is not None
    totals = _Totals(found.masks.kinds, sets, found.rows.num_rows)
    indptr, active = read_lists(found.rows)
    with on_device(encoder, device), progress("explain", len(chosen), "images") as advance:
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            prepared = [found.masks.prepare(int(found.of_source[i]), encoder.preprocess) for i in batch]
            x = torch.stack([image for image, _ in prepared]).to(device)
            lists = [active[indptr[i] : indptr[i + 1]] for i in batch]
            if start == 0:
                _check_encoder(encoder, x, lists, found)
            maps = list(_maps(encoder, x, lists, method, layer))
            grid = (int(maps[0].shape[1]), int(maps[0].shape[2]))
            for i, (_, masks), features, heat in zip(batch, prepared, lists, maps, strict=True):
                values = measure(heat, masks)
                id = found.rows.column("id")[int(i)].as_py()
                totals.add(int(i), features, values, measure_controls(str(id), masks, grid, seed))
            advance(len(batch))
    return totals.located()


def measure(
    maps: Float[Tensor, "k rows columns"], masks: Mapping[str, Float[Tensor, "h w"]]
) -> dict[str, Float[np.ndarray, "metrics k"]]:
    """Return all `METRICS` of the heatmaps of one image, by kind of mask."""
    values: dict[str, list[np.ndarray]] = {kind: [] for kind in masks}
    for start in range(0, len(maps), ENLARGED):
        for kind, mask in masks.items():
            h, w = mask.shape
            heat = upsample(maps[None, start : start + ENLARGED], (h, w))
            here = mask[None].to(heat.device)
            values[kind].append(np.stack([metric(heat, here)[0].cpu().numpy() for metric in METRICS.values()]))
    nothing = np.empty((len(METRICS), 0))
    return {kind: np.concatenate([nothing, *parts], axis=1) for kind, parts in values.items()}


def measure_controls(
    id: str, masks: Mapping[str, Float[Tensor, "h w"]], grid: tuple[int, int], seed: int
) -> dict[str, Float[np.ndarray, "metrics controls"]]:
    """Return all `METRICS` of the blind maps in the order of `CONTROLS`, random ones as coarse as ``grid``, by kind."""
    values = {}
    for kind, mask in masks.items():
        h, w = mask.shape
        blind = torch.cat([gaussian_map(h, w)[None, None], random_maps([id], h, w, grid=grid, seed=seed)], 1)
        values[kind] = np.stack([metric(blind, mask[None])[0].numpy() for metric in METRICS.values()])
    return values


class _Totals:
    """Sums over features within an image, and over the images of a feature."""

    def __init__(self, kinds: tuple[str, str], sets: Mapping[str, np.ndarray], n: int) -> None:
        self._kinds = kinds
        self._members = np.stack(list(sets.values())).astype(np.float64)
        self._names = [name.partition(" ")[0] for name in sets]
        r = self._members.shape[1]
        shown = (*SETS, *CONTROLS)
        self._samples = {kind: np.full((len(METRICS), len(shown), n), np.nan) for kind in kinds}
        self._sum = {kind: np.zeros((len(METRICS), r)) for kind in kinds}
        self._count = {kind: np.zeros(r, dtype=np.int64) for kind in kinds}

    def add(
        self,
        i: int,
        features: np.ndarray,
        values: Mapping[str, Float[np.ndarray, "metrics k"]],
        controls: Mapping[str, Float[np.ndarray, "metrics controls"]],
    ) -> None:
        """Add an image."""
        within = self._members[:, features]  # (s, k)
        size = within.sum(1)
        for kind, of in values.items():
            means = np.divide(of @ within.T, size, out=np.full((len(METRICS), len(size)), np.nan), where=size > 0)
            for k, name in enumerate(SETS):
                columns = means[:, [position for position, of_set in enumerate(self._names) if of_set == name]]
                defined = columns[:, ~np.isnan(columns[0])]
                if defined.shape[1]:
                    self._samples[kind][:, k, i] = defined.mean(axis=1)
            self._samples[kind][:, len(SETS) :, i] = controls[kind]
            self._sum[kind][:, features] += of
            self._count[kind][features] += 1

    def located(self) -> Located:
        """Return names and means."""
        samples, features = {}, {}
        for kind in self._kinds:
            for m, metric in enumerate(METRICS):
                for s, name in enumerate((*SETS, *CONTROLS)):
                    samples[f"{kind}_{metric}_{name}"] = self._samples[kind][m, s]
                count = self._count[kind]
                empty = np.full(len(count), np.nan)
                features[f"{kind}_{metric}"] = np.divide(self._sum[kind][m], count, out=empty, where=count > 0)
        return Located(samples, features, self._count)


def _maps(
    encoder: Encoder, x: Float[Tensor, "b 3 h w"], lists: list[np.ndarray], method: str, layer: str | None
) -> Iterator[Float[Tensor, "k rows columns"]]:
    """Give each image's maps of its own features."""
    wanted = np.unique(np.concatenate(lists))
    # Of `activation` one pass gives all features; of the others each takes one, and memory for a whole batch.
    step = max(1, len(wanted)) if method == "activation" else TOGETHER
    parts: list[list[Tensor]] = [[] for _ in lists]
    for start in range(0, max(1, len(wanted)), step):
        some = wanted[start : start + step]
        maps = feature_maps(encoder, x, some, method, layer)
        for part, features, of_image in zip(parts, lists, maps, strict=True):
            inside = features[np.isin(features, some)]  # ascending, as the lists are
            part.append(of_image[torch.from_numpy(np.searchsorted(some, inside)).to(of_image.device)])
    return (torch.cat(part) for part in parts)


def check_encoder(
    found: Material,
    encoder: Encoder,
    *,
    device: torch.device,
    method: str = "activation",
    layer: str | None = None,
    batch_size: int = 64,
) -> None:
    """Refuse on the first images what `locate` refuses, where there are no masks and so nothing to locate.

    Raises
    ------
    QScoreError
        If an image cannot be read, the encoder has no maps for the method, or the score table was not made with it.
    """
    indptr, active = read_lists(found.rows)
    first = range(min(batch_size, found.rows.num_rows))
    with on_device(encoder, device):
        x = torch.stack([encoder.preprocess(found.images.image(i)) for i in first]).to(device)
        _check_encoder(encoder, x, [active[indptr[i] : indptr[i + 1]] for i in first], found)
        feature_maps(encoder, x[:1], [0], method, layer)


def _check_encoder(encoder: Encoder, x: Tensor, lists: list[np.ndarray], found: Material) -> None:
    """Refuse an encoder in which what the table calls highly active is not."""
    epsilon, signed = float(found.record["epsilon"]), bool(found.record["signed"])
    with torch.no_grad(), evaluating(encoder):
        h = encoder(x).double().cpu().numpy()
    if found.scaling is not None:
        h = np.asarray(apply_scaling(h, *found.scaling))
    deviation = h - h.mean(1, keepdims=True)
    high = (np.abs(deviation) if signed else deviation) > 0.5 * epsilon * h.std(1, keepdims=True)
    agreed = [bool(high[i, j]) for i, features in enumerate(lists) for j in features]
    if agreed and np.mean(agreed) < LEAST_AGREEMENT:
        raise QScoreError(
            f"{encoder.source.architecture}: only {np.mean(agreed):.0%} of the features that the score table calls "
            f"highly active in the first {len(lists)} images are, so it was made with another encoder, or other "
            "preprocessing"
        )


@contextmanager
def on_device(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Move an encoder to a device, and back."""
    home = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to(home)
