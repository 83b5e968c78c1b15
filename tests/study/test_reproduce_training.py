from dataclasses import replace

import pytest
import torch

from qscore import QScoreError, load_encoder
from qscore.images import open_images, subset
from qscore.ssl.module import Share
from qscore.study.reproduce.training import Labelled


def test_labels_go_with_their_images():
    class Feed:
        def __len__(self):
            return 10

        def open(self, share, device):
            self.share = share

        def images(self, epoch, batch, views):
            return [self.share.rows(epoch, batch)] * views

    feed = Labelled(Feed(), 100 + torch.arange(10))
    feed.open(Share(10, 3, 4, 2, 2), torch.device("cpu"))
    for epoch, batch in ((0, 0), (0, 1), (1, 0)):
        [rows] = feed.images(epoch, batch, 1)
        assert torch.equal(feed.latest, 100 + rows) and len(rows) == 4


def test_the_supervised_control_learns_the_labels(tmp_path):
    from qscore.study.reproduce.context import Context
    from qscore.study.reproduce.scales import Scale
    from qscore.study.reproduce.training import train_supervised

    digits = open_images("digits")
    zeros_and_ones = [i for i in range(600) if digits.record(i).label in (0, 1)]
    source = subset(digits, zeros_and_ones)
    scale = replace(Scale(), supervised_epochs=6, image_size=8)
    context = Context(scale, source, source, tmp_path, device="cpu")
    folder = train_supervised(context, "small:resnet10-4", tmp_path / "s")
    rows = (folder / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss_epoch")
    losses = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert losses[-1] < 0.55 < losses[0]  # log 2, 0.69, is what knows nothing
    assert load_encoder(folder).source.method == "supervised"
    assert train_supervised(context, "small:resnet10-4", folder) == folder
    with pytest.raises(QScoreError, match="holds another training: seed is 0 there and 1 here"):
        train_supervised(replace(context, seed=1), "small:resnet10-4", folder)
