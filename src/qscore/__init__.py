"""Tell which samples a self-supervised encoder represents badly, and which of its features mean something."""

import importlib

__version__ = "0.1.0"

# Public name -> room. Looked up on first use, so that `import qscore` loads neither torch nor scikit-learn.
_ROOMS = {
    "DiscriminativeFeatureSelector": "estimator",
    "Drift": "estimator",
    "Encoder": "encoders",
    "LassoRegularizer": "regularizer",
    "QScoreCallback": "monitor.callback",
    "QScoreError": "_validate",
    "QScoreMonitor": "monitor",
    "QScoreRegularizer": "regularizer",
    "QScorer": "estimator",
    "Scan": "kernels",
    "activation_rates": "core",
    "calibrate_scores": "evaluate",
    "compress": "scoring",
    "count_features": "scoring",
    "discriminative_features": "core",
    "embed": "embedding",
    "evaluate_scores": "evaluate",
    "finetune": "study",
    "explain_scores": "explain",
    "feature_heatmaps": "explain",
    "load_encoder": "encoders",
    "load_scorer": "scoring",
    "mask_iou": "explain",
    "merge_features": "scoring",
    "pretrain": "ssl",
    "q_score": "core",
    "q_score_v1": "core",
    "rank_checkpoints": "study",
    "representation_metrics": "metrics",
    "scan": "kernels",
    "score": "scoring",
}
_NEED_TORCH = {"embedding", "encoders", "explain", "monitor", "regularizer", "ssl", "study"}
__all__ = ["__version__", *sorted(_ROOMS)]


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'qscore' has no attribute {name!r}")
    if _ROOMS[name].partition(".")[0] in _NEED_TORCH:
        importlib.import_module("qscore._validate").require("torch", "vision")
    return getattr(importlib.import_module(f"qscore.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
