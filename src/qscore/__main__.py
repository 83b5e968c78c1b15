"""``python -m qscore``."""

from qscore.cli import main

main()
