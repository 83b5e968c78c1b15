"""Embedding table in, score table and feature table out."""

from qscore.scoring.score import score
from qscore.scoring.summary import ScoreSummary, features_path, read_scored, summarize_scores

__all__ = ["ScoreSummary", "features_path", "read_scored", "score", "summarize_scores"]
