"""Embedding table in, score table and feature table out; and what a feature table is good for."""

from qscore.scoring.compression import CompressionSummary, compress
from qscore.scoring.features import MergeSummary, count_features, load_scorer, merge_features, read_stored
from qscore.scoring.pipeline import score
from qscore.scoring.summary import ScoreSummary, features_path, read_scored, summarize_scores

__all__ = [
    "CompressionSummary",
    "MergeSummary",
    "ScoreSummary",
    "compress",
    "count_features",
    "features_path",
    "load_scorer",
    "merge_features",
    "read_scored",
    "read_stored",
    "score",
    "summarize_scores",
]
