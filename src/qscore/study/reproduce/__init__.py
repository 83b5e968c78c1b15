"""The paper's ten claims, put to the test at the scale that can be had: `qscore reproduce`."""

from qscore.study.reproduce.exports import export_run, join_encoder
from qscore.study.reproduce.page import write_page
from qscore.study.reproduce.run import reproduce
from qscore.study.reproduce.scales import SCALES, Scale

__all__ = ["SCALES", "Scale", "export_run", "join_encoder", "reproduce", "write_page"]
