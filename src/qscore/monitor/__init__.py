"""Quality during anyone's training, from held-out images without labels."""

from qscore.monitor.measurement import Measurement
from qscore.monitor.monitor import QScoreMonitor

__all__ = ["Measurement", "QScoreMonitor"]
