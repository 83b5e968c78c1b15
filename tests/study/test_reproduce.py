import json
import shutil
import signal
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import crash

from qscore import QScoreError, load_encoder, pretrain
from qscore.images import open_images, subset
from qscore.ssl.module import Share
from qscore.study.reproduce import export_run, join_encoder, reproduce
from qscore.study.reproduce.budget import OutOfTime, time_budget
from qscore.study.reproduce.run import TABLE
from qscore.study.reproduce.training import Labelled, make_random

TINY = {
    "backbone": "small:resnet10-2-r24",
    "wide_backbone": None,
    "recipe": "small",
    "n_train": 60,
    "n_test": 50,
    "resamples": 20,
    "views": 2,
    "curve_epochs": 2,
    "curve_keep": 1,
    "curve_warmup": None,
    "supervised_epochs": 1,
}
COMMON = {"stage": "curve", "methods": "simclr,random", "overrides": TINY, "device": "cpu"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished curve of two checkpoints, and its random initialisation."""
    folder = tmp_path_factory.mktemp("reproduced")
    found = reproduce("digits", folder, **COMMON)
    assert found["done"] == ["small-curve-random-24-seed0", "small-curve-simclr-24-seed0"] and not found["left"]
    return folder


def result(folder, key="small-curve-simclr-24-seed0"):
    return json.loads((folder / "results" / f"{key}.json").read_text())


def test_a_result_tells_how_it_came_about(out):
    found = result(out)
    assert (found["complete"], found["method"], found["found"]["width"]) == (True, "simclr", 24)
    assert [point["epoch"] for point in found["found"]["checkpoints"]] == [1, 2]
    assert found["command"].startswith("qscore reproduce --scale small --stage curve --methods simclr --images digits ")
    assert "--set wide_backbone=none" in found["command"] and str(out) not in json.dumps(found)
    assert found["software"]["torch"] == torch.__version__.partition("+")[0] and found["hardware"]["device"] == "cpu"
    assert found["seconds"] > 0 and found["trained_here"] and found["settings"]["curve_epochs"] == 2
    assert {name: of["n"] for name, of in found["images"].items()} == {"train": 60, "test": 50}
    assert (out / "results.md").exists() and (out / "results.svg").exists()


def test_numbers_are_those_of_the_evaluation(out):
    point = result(out)["found"]["checkpoints"][1]
    metrics = json.loads((out / "work" / "curve" / "simclr-24" / "epoch-0002" / "metrics.json").read_text())
    assert point["accuracy"] == pytest.approx(metrics["probe"]["accuracy"], rel=1e-5)
    assert point["scores"].keys() == metrics["scores"].keys() >= {"neighborhood_consistency", "augmentation_cosine"}
    for name, of in point["scores"].items():
        assert of["auroc"] == pytest.approx(metrics["scores"][name]["auroc"], rel=1e-5)
    curve = {(row["method"], row["keep"]): row for row in metrics["compression"]}
    for judged in point["compression"]:
        rank, random = curve["rank", judged["keep"]], curve["random", judged["keep"]]
        assert judged["holds"] == (rank["change_low"] > -0.01 and rank["accuracy"] > random["high"])
    assert point["rise"]["rise"] == pytest.approx(
        point["accuracy"] - result(out)["found"]["checkpoints"][0]["accuracy"]
    )
    assert not list((out / "work").glob("**/views.parquet"))
    assert [path.parent.name for path in (out / "work").glob("curve/simclr-24/*/embeddings")] == ["epoch-0002"]


def test_what_is_finished_is_not_computed_again(out, monkeypatch):
    before = {path: path.read_bytes() for path in (out / "results").iterdir()}
    monkeypatch.setattr("qscore.study.reproduce.curve.measure_encoder", crash)
    monkeypatch.setattr("qscore.study.reproduce.training.pretrain", crash)
    found = reproduce("digits", out, **COMMON)
    assert len(found["done"]) == 2
    assert {path: path.read_bytes() for path in (out / "results").iterdir()} == before


def test_the_training_is_that_of_the_command_and_may_be_put_there(out, tmp_path, monkeypatch):
    there, images = tmp_path / "encoders" / "curve" / "simclr-24", some_digits()
    options = {"backbone": "small:resnet10-2-r24", "recipe": "small", "epochs": 2, "keep_every": 1, "device": "cpu"}
    pretrain("simclr", images, there, **options)
    ours = out / "encoders" / "curve" / "simclr-24"
    assert json.loads((there / "pretrain.json").read_text()) == json.loads((ours / "pretrain.json").read_text())
    assert load_file(there / "encoder.safetensors").keys() == load_file(ours / "encoder.safetensors").keys()
    monkeypatch.setattr("qscore.ssl.train.fit", crash)
    monkeypatch.setattr("qscore.study.reproduce.curve.measure_encoder", stop)
    with pytest.raises(KeyboardInterrupt):  # when it comes to measuring: nothing was trained
        reproduce("digits", tmp_path, **COMMON | {"methods": "simclr"})
    assert (tmp_path / "work" / "curve" / "simclr-24" / "trained-elsewhere").exists()


def some_digits():
    """The images that the reproduction takes."""
    from qscore.study.reproduce.context import some_images
    from qscore.study.splits import train_and_test

    return some_images(train_and_test("digits", None, 0)[0], 60, "training")


def stop(*_arguments, **_options):
    raise KeyboardInterrupt


def test_a_kill_between_checkpoints_leaves_the_first(out, tmp_path, monkeypatch):
    shutil.copytree(out / "encoders", tmp_path / "encoders")
    from qscore.study.reproduce import curve

    measured, calls = curve.measure_encoder, []

    def second_dies(context, encoder, *arguments, **options):
        calls.append(encoder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(context, encoder, *arguments, **options)

    monkeypatch.setattr(curve, "measure_encoder", second_dies)
    options = COMMON | {"methods": "simclr"}
    with pytest.raises(KeyboardInterrupt):
        reproduce("digits", tmp_path, **options)
    first = result(tmp_path)
    assert not first["complete"] and len(first["found"]["checkpoints"]) == 1 and not first["trained_here"]
    reproduce("digits", tmp_path, **options)
    assert calls == ["epoch-0001", "epoch-0002", "epoch-0001", "epoch-0002"]
    assert result(tmp_path)["complete"] and result(tmp_path)["seconds"] > first["seconds"]
    assert result(tmp_path)["found"] == result(out)["found"]


def test_a_result_of_other_settings_or_images_is_not_taken(out):
    changed = TINY | {"views": 3}
    with pytest.raises(
        QScoreError, match="is another result: settings views is 2 there and 3 here; name another --out"
    ):
        reproduce("digits", out, **COMMON | {"overrides": changed})
    with pytest.raises(QScoreError, match=r"is another result: images train is .* there and .* here"):
        reproduce("digits", out, **COMMON | {"overrides": TINY | {"n_train": 59}})
    shutil.copy(out / "results" / "small-curve-simclr-24-seed0.json", out / "copy")
    try:
        (out / "results" / "small-curve-simclr-24-seed0.json").write_text("{")
        with pytest.raises(QScoreError, match="cannot read this result; remove it to make it anew"):
            reproduce("digits", out, **COMMON)
    finally:
        (out / "copy").rename(out / "results" / "small-curve-simclr-24-seed0.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "curv"}, "stage 'curv': expected all, or some of curve, repair, methods, shapes, sensitivity; did"),
        ({"stage": " "}, "stage: expected all, or some of curve"),
        (
            {"stage": "repair", "methods": "byol"},
            "methods 'byol': none of them has a part in stage repair at scale small",
        ),
        ({"methods": "simcler"}, "methods: expected all, or some of simclr"),
        ({"minutes": 0}, "minutes: expected a number above 0, got 0"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"processes": 0}, "processes: expected at least 1, got 0"),
        ({"device": "cuda:77"}, "device 'cuda:77': torch finds"),
        ({"checkpoints": {"supervised": "a"}}, "checkpoints: expected all, or some of simclr"),
        ({"overrides": TINY | {"curve_keep": 3}}, "curve_keep: expected a divisor of curve_epochs"),
        (
            {"overrides": {"wide_backbone": "small:resnet10-8-r512"}},
            "wide_backbone: expected another width than that of",
        ),
        (
            {"stage": "repair", "methods": "simclr"},
            "holds no finished encoder, from which this stage starts; run --stage",
        ),
        ({"stage": "sensitivity", "methods": "dino"}, "no embeddings of dino are there; run --stage curve or methods"),
    ],
)
def test_bad_input_is_refused(options, message, tmp_path):
    with pytest.raises(QScoreError, match=message):
        reproduce("digits", tmp_path, **COMMON | options)
    assert not (tmp_path / "results").exists()


def test_of_several_units_those_that_can_be_made_are_made(out, monkeypatch):
    found = reproduce("digits", out, **COMMON | {"stage": "sensitivity", "methods": "simclr,vicreg"})
    assert found["done"] == ["small-sensitivity-simclr-seed0"] and found["left"] == ["small-sensitivity-vicreg-seed0"]
    assert found["refused"]["small-sensitivity-vicreg-seed0"].startswith("no embeddings of vicreg are there")
    [source] = result(out, "small-sensitivity-simclr-seed0")["found"]["sources"]
    assert (source["source"], source["n_train"], source["n_held_out"], source["n_test"]) == (
        "curve-simclr-24",
        60,
        12,
        50,
    )
    file = out / "results" / "small-sensitivity-simclr-seed0.json"
    file.write_text(file.read_text().replace('"curve-simclr-24"', '"curve-simclr-2"'))
    reproduce("digits", out, **COMMON | {"stage": "sensitivity", "methods": "simclr"})  # more embeddings are there now
    assert "curve-simclr-24" in file.read_text()
    shown = source["settings"]["raw, epsilon auto, band 50-95, q"]["test"]["value"]
    assert shown == pytest.approx(result(out)["found"]["checkpoints"][-1]["scores"]["q_score"]["auroc"]["value"])


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])  # the latter in the background
def test_time_that_is_up_ends_a_block_as_ctrl_c_does(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(OutOfTime), time_budget(1e-9):
            while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                pass
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt), time_budget(60):
        raise KeyboardInterrupt
    with time_budget(None):
        pass


def test_out_of_time_the_rest_is_left(out, monkeypatch):
    timers = []

    class Clock:
        def __init__(self, seconds, action):
            self.seconds, self.action = seconds, action
            timers.append(self)

        def start(self):
            pass

        cancel = start

    def endless(*_):
        timers[0].action()
        while True:
            pass

    monkeypatch.setattr("qscore.study.reproduce.budget.threading.Timer", Clock)
    monkeypatch.setitem(TABLE, "repair", TABLE["repair"]._replace(run=endless))
    found = reproduce("digits", out, **COMMON | {"stage": "curve,repair", "minutes": 9})
    assert timers[0].seconds == 540
    assert found["out_of_time"] and found["left"] == ["small-repair-simclr-seed0"]
    assert (out / "work" / "repair" / "simclr" / "seconds").exists()


def test_the_random_initialisation_is_the_one_that_trainings_start_from(out, tmp_path, monkeypatch):
    states = []

    def note(training, *_):
        states.append({name: value.clone() for name, value in training.method.backbone.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("qscore.ssl.train.fit", note)
    with pytest.raises(KeyboardInterrupt):
        pretrain("simclr", some_digits(), tmp_path, backbone="small:resnet10-2-r24", recipe="small", device="cpu")
    random = load_file(out / "encoders" / "curve" / "random-24" / "encoder.safetensors")
    assert all(torch.equal(random[name], value) for name, value in states[0].items())
    ours, theirs = (load_encoder(out / "encoders" / "curve" / name).preprocess for name in ("random-24", "simclr-24"))
    assert ours == theirs
    assert make_random(None, "unused", out / "encoders" / "curve" / "random-24").name == "random-24"  # it is there


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


def test_what_leaves_the_machine_is_small_and_whole(out, tmp_path, monkeypatch):
    monkeypatch.setattr("qscore.study.reproduce.exports.SHARD_BYTES", 4000)
    files = export_run(out, tmp_path)
    names = {str(file.relative_to(tmp_path)) for file in files}
    assert "results/small-curve-simclr-24-seed0.json" in names
    assert "curve-simclr-24-epoch-0002.float16.parquet" in names
    table = pq.read_table(tmp_path / "curve-simclr-24-epoch-0002.float16.parquet")
    assert (
        table.num_rows == 50 and str(table.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[24]"
    )
    shards = tmp_path / "curve-simclr-24"
    assert len(list(shards.glob("encoder-*.safetensors"))) > 2
    ours = out / "encoders" / "curve" / "simclr-24"
    join_encoder(shards)
    assert load_encoder(shards).preprocess == load_encoder(ours).preprocess
    before, after = load_file(ours / "encoder.safetensors"), load_file(shards / "encoder.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    (shards / "encoder-01.safetensors").unlink()
    with pytest.raises(QScoreError, match="cannot read the parts of this encoder"):
        join_encoder(shards)
    with pytest.raises(QScoreError, match="expected result files in"):
        export_run(tmp_path / "nowhere", tmp_path)
