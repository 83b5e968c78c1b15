"""Probes: simple classifiers on frozen representations, whose mistakes are what a score is to predict."""

from qscore.evaluate.probes.probe import Probe
from qscore.evaluate.probes.registry import PROBES, ProbeKind, fit_probe, fit_sgd_probe, fit_table_probe
from qscore.evaluate.probes.rows import mapped_rows

__all__ = ["PROBES", "Probe", "ProbeKind", "fit_probe", "fit_sgd_probe", "fit_table_probe", "mapped_rows"]
