"""The output folder of a training: what it was asked to do, where it stopped, and whether it is done."""

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from qscore._files import atomic_path
from qscore._validate import QScoreError

__all__ = ["RunFolder"]


@final
class RunFolder:
    """A folder that holds one training.

    Parameters
    ----------
    path : Path
        Made if absent.
    record : str
        Name of the file that says what was asked for.
    more : sequence of str
        Names of files and folders that belong to it besides those of every training.
    """

    def __init__(self, path: Path, record: str = "pretrain.json", more: Sequence[str] = ()) -> None:
        self.path = path
        self.record_file = path / record
        self._more = more
        self.checkpoint = path / "last.ckpt"
        self.weights = path / "encoder.safetensors"
        self.logs = path / "logs"
        self.checkpoints = path / "checkpoints"

    def kept(self, epoch: int) -> Path:
        """Return the folder of the encoder after an epoch, counted from 1."""
        return self.checkpoints / f"epoch-{epoch:04d}"

    def recorded(self, name: str) -> Any:
        """Return what an earlier call wrote down under a name, or None."""
        return self._read().get(name) if self.record_file.exists() else None

    def check(self, record: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse a folder that holds anything but this training.

        Parameters
        ----------
        record : mapping
            All that decides the result, as JSON holds it.
        overwrite : bool
            Whether another training is accepted: `begin` will remove what it left. Other files never are.

        Raises
        ------
        QScoreError
            Naming what differs.
        """
        if self.record_file.exists():
            if not overwrite:
                self._compare(record)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise QScoreError(f"{self.path} exists and holds no training; name another folder")

    def begin(self, record: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder this training's own.

        Raises
        ------
        QScoreError
            If it cannot be written.
        """
        if overwrite:
            self._clear()
        if not self.record_file.exists():
            with atomic_path(self.record_file) as file:
                file.write_text(json.dumps(record, indent=2) + "\n")

    def steps_done(self) -> int:
        """Return the number of optimiser steps in the last checkpoint, 0 without one.

        Raises
        ------
        QScoreError
            If the checkpoint cannot be read.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            checkpoint = torch.load(self.checkpoint, map_location="meta", mmap=True, weights_only=True)
            return int(checkpoint["global_step"])
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise QScoreError(
                f"{self.checkpoint}: cannot read this checkpoint; start the training anew with --overwrite"
            ) from error

    def _clear(self) -> None:
        try:
            for file in (self.weights, self.weights.with_suffix(".json"), self.checkpoint, self.record_file):
                file.unlink(missing_ok=True)
            for name in self._more:
                if not (self.path / name).is_dir():
                    (self.path / name).unlink(missing_ok=True)
            for folder in (self.logs, self.checkpoints, *map(self.path.joinpath, self._more)):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise QScoreError(f"{self.path}: cannot overwrite: {error.strerror or error}") from error

    def _compare(self, record: Mapping[str, Any]) -> None:
        differences = _differences(self._read(), json.loads(json.dumps(record)))
        if differences:
            raise QScoreError(
                f"{self.path} holds another training: {'; '.join(differences)}; name another folder, or start anew "
                "with --overwrite"
            )

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.record_file.read_text())
        except (OSError, ValueError) as error:
            raise QScoreError(f"{self.record_file}: cannot read it; start anew with --overwrite") from error
        if not isinstance(found, dict):
            raise QScoreError(f"{self.record_file}: cannot read it; start anew with --overwrite")
        return found


def _differences(found: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = list(dict.fromkeys([*found, *asked]))
        return [
            line
            for key in keys
            for line in _differences(found.get(key), asked.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == asked else [f"{name} is {found!r} there and {asked!r} here"]
