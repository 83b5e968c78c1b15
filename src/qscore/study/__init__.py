"""The paper's protocol on one data set and one method: the demonstration, fine-tuning, its controls, and a ranking."""

from qscore.study.compare import compare
from qscore.study.demo import demo
from qscore.study.finetune import finetune
from qscore.study.rank import rank_checkpoints
from qscore.study.settings import Tuning
from qscore.study.splits import split_by_label

__all__ = ["Tuning", "compare", "demo", "finetune", "rank_checkpoints", "split_by_label"]
