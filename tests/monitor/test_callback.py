import csv
import re
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import pytorch_lightning
import torch
from reference.monitor_modules import LightlySimCLR, SoloModule, labelled_batches, quiet, some_images
from torch.utils.data import DataLoader

from qscore import QScoreCallback, QScoreError, QScoreMonitor

PAGE = Path(__file__).parents[2] / "docs" / "monitor.rst"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]


def logged(out):
    """Rows of the CSV logger's file that hold the callback's figures."""
    with (out / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if "qscore/rankme" in row]


def train(out, callbacks, **options):
    torch.manual_seed(0)
    module = SoloModule()
    torch.manual_seed(1)
    quiet(lightning.Trainer, out, callbacks=callbacks, max_epochs=4, **options).fit(module, labelled_batches())
    return module


def test_in_a_module_like_solo_learns_every_second_epoch_is_logged(tmp_path):
    callback = QScoreCallback(some_images(60, 1), every=2)
    module = train(tmp_path, [callback])
    assert [found.epoch for found in callback.history] == [1, 3]
    assert callback.history[-1] == QScoreMonitor(some_images(60, 1))(module, 3)
    rows = logged(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "3"]
    for row, found in zip(rows, callback.history, strict=True):
        names = {name.removeprefix("qscore/") for name in row if name.startswith("qscore/")}
        assert names == set(found.figures())
        for name, value in found.figures().items():
            assert float(row[f"qscore/{name}"]) == pytest.approx(value, rel=1e-12)


def test_the_training_is_the_same_bit_by_bit_with_the_callback(tmp_path):
    loader = DataLoader(torch.utils.data.TensorDataset(some_images(60, 1)), batch_size=16, shuffle=True)
    watched = train(tmp_path / "a", [QScoreCallback(loader)])
    alone = train(tmp_path / "b", [])
    assert [
        name for name, value in alone.state_dict().items() if not torch.equal(value, watched.state_dict()[name])
    ] == []
    assert watched.training == alone.training


def test_other_callbacks_find_the_figures_and_checkpoints_keep_the_best_rankme(tmp_path):
    best = lightning.callbacks.ModelCheckpoint(
        tmp_path / "best", monitor="qscore/rankme", mode="max", filename="{epoch}", save_weights_only=False
    )
    callback = QScoreCallback(some_images(60, 1))
    train(tmp_path, [best, callback], enable_checkpointing=True)
    ranks = [found.rankme for found in callback.history]
    assert float(best.best_model_score) == max(ranks)
    state = torch.load(best.best_model_path, weights_only=True)["callbacks"][callback.state_key]
    assert state == {"rankme": max(ranks), "epoch": ranks.index(max(ranks)), "signs": []}
    resumed = QScoreCallback(some_images(60, 1))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state


def test_checkpoints_of_a_module_with_a_validation_are_chosen_as_the_pages_say(tmp_path):
    class Validated(SoloModule):
        def validation_step(self, batch, batch_index):
            self.log("loss", torch.tensor(0.0))

    [options] = re.findall(r"``ModelCheckpoint\((.*?)\)``", PAGE.read_text())
    assert (
        "every_n_epochs=k" in QScoreCallback.__doc__ and "every_n_epochs=5" in options and "every=5" in PAGE.read_text()
    )
    best = lightning.callbacks.ModelCheckpoint(tmp_path / "best", **eval(f"dict({options})") | {"every_n_epochs": 2})
    callback = QScoreCallback(some_images(60, 1), every=2)
    trainer = quiet(lightning.Trainer, tmp_path, callbacks=[best, callback], max_epochs=4, enable_checkpointing=True)
    trainer.fit(Validated(), labelled_batches(), labelled_batches(shuffle=False))
    assert float(best.best_model_score) == max(found.rankme for found in callback.history)


@pytest.mark.filterwarnings("ignore:epoch .. signs of collapse")  # BatchNorm's averages, two steps into a training
def test_it_runs_inside_lightlys_example(tmp_path):
    torch.manual_seed(0)
    module = LightlySimCLR()
    views = some_images(8, 0, size=32)
    data = [((view, view.flip(2)), 0) for view in views]
    callback = QScoreCallback(some_images(40, 1, size=32), batch_size=20)
    trainer = quiet(pytorch_lightning.Trainer, tmp_path, callbacks=[callback], max_epochs=2)
    trainer.fit(module, DataLoader(data, batch_size=4))
    assert [(found.epoch, found.n, found.n_features) for found in callback.history] == [(0, 40, 512), (1, 40, 512)]
    rows = logged(tmp_path)
    assert [float(row["qscore/q_mean"]) for row in rows] == [
        pytest.approx(found.q_mean, rel=1e-12) for found in callback.history
    ]
    assert module.backbone.training


def test_a_module_without_a_backbone_is_refused_before_the_training(tmp_path):
    callback = QScoreCallback(some_images(60, 1), encoder="encoder")
    with pytest.raises(QScoreError) as caught:
        train(tmp_path, [callback])
    assert str(caught.value) == (
        "encoder: SoloModule has no attribute 'encoder': SoloModule has no 'encoder'; its modules are backbone, "
        "projector, classifier; pass encoder= with a name, or a function of (module, x)"
    )
    assert callback.history == []


def test_every_is_a_number_of_epochs():
    with pytest.raises(QScoreError, match="^every: expected at least 1, got 0$"):
        QScoreCallback(some_images(4, 0), every=0)


def test_two_callbacks_keep_their_states_apart():
    one, other = (QScoreCallback(some_images(4, 0), prefix=prefix) for prefix in ("cats/", "dogs/"))
    assert one.state_key != other.state_key
