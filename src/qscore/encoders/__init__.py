"""Encoders: load one from a library or from a checkpoint, build a fresh one, save one."""

from qscore.encoders.backbones import build_backbone
from qscore.encoders.checkpoint import convert_encoder, save_again, save_encoder
from qscore.encoders.encoder import Encoder, Source, measure_output
from qscore.encoders.loading import load_encoder
from qscore.encoders.preprocessing import Preprocessing
from qscore.encoders.released import summarise

__all__ = [
    "Encoder",
    "Preprocessing",
    "Source",
    "build_backbone",
    "convert_encoder",
    "load_encoder",
    "measure_output",
    "save_again",
    "save_encoder",
    "summarise",
]
