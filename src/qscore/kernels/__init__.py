"""Scan once: one pass over the embeddings gives everything that scores are made of."""

from qscore.kernels.compilation import compiled
from qscore.kernels.cpu import row_scorer
from qscore.kernels.dispatch import scan
from qscore.kernels.result import Scan, automatic_epsilon

__all__ = ["Scan", "automatic_epsilon", "compiled", "row_scorer", "scan"]
