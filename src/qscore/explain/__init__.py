"""Why: where in an image each feature looks, and whether that is the object or the background."""

from qscore.explain.heatmaps import feature_heatmaps, feature_maps
from qscore.explain.masks import (
    Localisation,
    energy_inside,
    gaussian_map,
    mask_iou,
    mean_over_sets,
    pointing_game,
    random_maps,
    soft_iou,
    summarise,
)
from qscore.explain.run import explain_scores
from qscore.explain.sources import Masks, MaskSource, open_masks

__all__ = [
    "Localisation",
    "MaskSource",
    "Masks",
    "energy_inside",
    "explain_scores",
    "feature_heatmaps",
    "feature_maps",
    "gaussian_map",
    "mask_iou",
    "mean_over_sets",
    "open_masks",
    "pointing_game",
    "random_maps",
    "soft_iou",
    "summarise",
]
