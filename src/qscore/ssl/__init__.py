"""Self-supervised training: one file per method, one loop for all."""

from qscore.ssl.methods import METHODS
from qscore.ssl.overrides import parse_overrides
from qscore.ssl.train import pretrain

__all__ = ["METHODS", "parse_overrides", "pretrain"]
