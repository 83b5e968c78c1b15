"""A Lightning trainer with two processes logs what one with a single process logs."""

import csv

import lightning.pytorch as lightning
import pytest
import torch
from reference.monitor_modules import SoloModule, labelled_batches, quiet, some_images
from torch import nn

from qscore import QScoreCallback

pytestmark = pytest.mark.slow


def train(out, devices):
    torch.manual_seed(0)
    callback = QScoreCallback(some_images(101, 1), batch_size=16)
    strategy = "ddp_spawn" if devices > 1 else "auto"
    trainer = quiet(lightning.Trainer, out, callbacks=[callback], max_epochs=2, devices=devices, strategy=strategy)
    module = SoloModule(lr=0.0)  # so that weights agree
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = 0.0  # and statistics, which are each process's own
    trainer.fit(module, labelled_batches(shuffle=False))


@pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck")
@pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated")
def test_two_processes_log_what_one_logs(tmp_path):
    torch.set_num_threads(1)
    tables = []
    for devices in (1, 2):
        train(tmp_path / str(devices), devices)
        with (tmp_path / str(devices) / "logs" / "version_0" / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["qscore/rankme"]]
        tables.append([{name: value for name, value in row.items() if name.startswith("qscore/")} for row in rows])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2 and len(tables[0][0]) == 19
