"""The command line: one verb per step; a verb parses, calls one function, prints."""

from qscore.cli.app import app, main

__all__ = ["app", "main"]
