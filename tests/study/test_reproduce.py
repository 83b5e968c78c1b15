import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_training import crash

from qscore import QScoreError, load_encoder, pretrain
from qscore.images import open_images
from qscore.study.reproduce import export_run, join_encoder, reproduce
from qscore.study.reproduce.run import TABLE
from qscore.study.reproduce.training import make_random
from qscore.study.settings import Unfit
from qscore.tables import open_embeddings

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
    metrics = json.loads((out / "work" / "small" / "curve" / "simclr-24" / "epoch-0002" / "metrics.json").read_text())
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
    assert [path.parent.name for path in (out / "work").glob("small/curve/simclr-24/*/embeddings")] == ["epoch-0002"]


def test_what_is_finished_is_not_computed_again(out, monkeypatch):
    before = {path: path.read_bytes() for path in (out / "results").iterdir()}
    monkeypatch.setattr("qscore.study.reproduce.curve.measure_encoder", crash)
    monkeypatch.setattr("qscore.study.reproduce.training.pretrain", crash)
    found = reproduce("digits", out, **COMMON)
    assert len(found["done"]) == 2
    assert {path: path.read_bytes() for path in (out / "results").iterdir()} == before


def test_the_training_is_that_of_the_command_and_may_be_put_there(out, tmp_path, monkeypatch):
    there, images = tmp_path / "encoders" / "small" / "curve" / "simclr-24", some_digits()
    options = {"backbone": "small:resnet10-2-r24", "recipe": "small", "epochs": 2, "keep_every": 1, "device": "cpu"}
    pretrain("simclr", images, there, **options)
    ours = out / "encoders" / "small" / "curve" / "simclr-24"
    assert json.loads((there / "pretrain.json").read_text()) == json.loads((ours / "pretrain.json").read_text())
    assert load_file(there / "encoder.safetensors").keys() == load_file(ours / "encoder.safetensors").keys()
    monkeypatch.setattr("qscore.ssl.train.fit", crash)
    monkeypatch.setattr("qscore.study.reproduce.curve.measure_encoder", stop)
    with pytest.raises(KeyboardInterrupt):  # when it comes to measuring: nothing was trained
        reproduce("digits", tmp_path, **COMMON | {"methods": "simclr"})
    assert (tmp_path / "work" / "small" / "curve" / "simclr-24" / "trained-elsewhere").exists()


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
    alone = COMMON | {"methods": "simclr"}
    with pytest.raises(
        QScoreError, match="is another result: settings views is 2 there and 3 here; name another --out"
    ):
        reproduce("digits", out, **alone | {"overrides": changed})
    with pytest.raises(QScoreError, match=r"is another result: images train is .* there and .* here"):
        reproduce("digits", out, **alone | {"overrides": TINY | {"n_train": 59}})
    shutil.copy(out / "results" / "small-curve-simclr-24-seed0.json", out / "copy")
    try:
        (out / "results" / "small-curve-simclr-24-seed0.json").write_text("{")
        with pytest.raises(QScoreError, match="cannot read this result; remove it to make it anew"):
            reproduce("digits", out, **alone)
        found = reproduce("digits", out, **COMMON)  # of several, the others go on; the page cannot be made
        assert found["done"] == ["small-curve-random-24-seed0"] and found["page"] is None
        assert "cannot read this result" in found["refused"]["small-curve-simclr-24-seed0"]
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
        (
            {"overrides": TINY | {"tune_optimizer": "adam"}},
            "tune_optimizer 'adam': expected one of lars, adamw, sgd; did",
        ),
        (
            {"overrides": TINY | {"shapes_recipe": "cifr"}},
            "shapes_recipe 'cifr': expected one of auto, imagenet, cifar",
        ),
        ({"overrides": TINY | {"shapes_free": "shapes:n=x"}}, "shapes:n=x"),
        ({"overrides": TINY | {"tune_batch_size": 1}}, "tune_batch_size: expected at least 2, got 1"),
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
    made = file.read_text()
    for there, other in (('"curve-simclr-24"', '"curve-simclr-2"'), ('"resamples": 20', '"resamples": 21')):
        assert there in made
        file.write_text(made.replace(there, other))
        reproduce("digits", out, **COMMON | {"stage": "sensitivity", "methods": "simclr"})  # it is of something else
        assert json.loads(file.read_text())["found"] == json.loads(made)["found"]
        assert there in file.read_text()
    shown = source["settings"]["raw, epsilon auto, band 50-95, q"]["test"]["value"]
    assert shown == pytest.approx(result(out)["found"]["checkpoints"][-1]["scores"]["q_score"]["auroc"]["value"])


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
    assert (out / "work" / "small" / "repair" / "simclr" / "seconds").exists()


def test_the_random_initialisation_is_the_one_that_trainings_start_from(out, tmp_path, monkeypatch):
    states = []

    def note(training, *_):
        states.append({name: value.clone() for name, value in training.method.backbone.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("qscore.ssl.train.fit", note)
    with pytest.raises(KeyboardInterrupt):
        pretrain("simclr", some_digits(), tmp_path, backbone="small:resnet10-2-r24", recipe="small", device="cpu")
    random = load_file(out / "encoders" / "small" / "curve" / "random-24" / "encoder.safetensors")
    assert all(torch.equal(random[name], value) for name, value in states[0].items())
    ours, theirs = (
        load_encoder(out / "encoders" / "small" / "curve" / name).preprocess for name in ("random-24", "simclr-24")
    )
    assert ours == theirs
    assert (
        make_random(None, "small:resnet10-2-r24", out / "encoders" / "small" / "curve" / "random-24").name
        == "random-24"
    )  # it is there
    with pytest.raises(QScoreError, match="holds another network, small:resnet10-2-r24; remove it"):
        make_random(None, "small:resnet10-4-r24", out / "encoders" / "small" / "curve" / "random-24")


RANDOM = COMMON | {"methods": "random"}
RANDOM_KEY = "small-curve-random-24-seed0"


def test_measurements_of_other_settings_or_encoders_are_made_anew(out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results" / f"{RANDOM_KEY}.json").unlink()
    reproduce("digits", tmp_path, **RANDOM | {"overrides": TINY | {"n_test": 40, "views": 3}})
    assert result(tmp_path, RANDOM_KEY)["found"]["checkpoints"][0]["n_test"] == 40
    before = result(out, RANDOM_KEY)["found"]
    (tmp_path / "results" / f"{RANDOM_KEY}.json").unlink()
    theirs = tmp_path / "encoders" / "small" / "curve"
    shutil.rmtree(theirs / "random-24")
    shutil.copytree(theirs / "simclr-24", theirs / "random-24")
    reproduce("digits", tmp_path, **RANDOM)
    last = result(out)["found"]["checkpoints"][-1]
    now = result(tmp_path, RANDOM_KEY)["found"]["checkpoints"][0]
    assert now["accuracy"] == last["accuracy"] and now["scores"] == last["scores"]
    assert before["checkpoints"][0]["scores"] != now["scores"]


def test_a_damaged_or_half_removed_measurement_is_made_anew(out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results" / f"{RANDOM_KEY}.json").unlink()
    folder = tmp_path / "work" / "small" / "curve" / "random-24" / "epoch-0000"
    (folder / "summary.json").write_text('{"n_test": 5')
    reproduce("digits", tmp_path, **RANDOM)
    assert result(tmp_path, RANDOM_KEY)["found"] == result(out, RANDOM_KEY)["found"]
    (tmp_path / "results" / f"{RANDOM_KEY}.json").unlink()
    (folder / "views.parquet").write_text("left by a kill")
    reproduce("digits", tmp_path, **RANDOM)
    assert not (folder / "views.parquet").exists()


def test_scales_share_a_folder_and_nothing_else(out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    small = TINY | {"recipe": "small", "precision": "32-true"}
    reproduce(
        "digits", tmp_path, scale="medium", **RANDOM | {"overrides": small | {"backbone": "small:resnet10-4-r24"}}
    )
    assert result(tmp_path, "medium-curve-random-24-seed0")["found"] != result(out, RANDOM_KEY)["found"]
    assert load_encoder(tmp_path / "encoders/medium/curve/random-24").source.architecture == "small:resnet10-4-r24"


def test_results_of_some_classes_stand_beside_those_of_all(out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    (tmp_path / "few.txt").write_text("0\n1\n2\n3")
    options = RANDOM | {"classes": str(tmp_path / "few.txt"), "stage": "curve,sensitivity"}
    reproduce("digits", tmp_path, **options)
    assert result(tmp_path, RANDOM_KEY) == result(out, RANDOM_KEY)
    few = result(tmp_path, "small-curve-random-24-few-seed0")
    assert few["subset"] == "few" and few["found"]["checkpoints"][0]["majority"] > 0.2
    assert (tmp_path / "work" / "small" / "curve" / "random-24-few" / "epoch-0000" / "embeddings").exists()
    page = (tmp_path / "results.md").read_text()
    assert "| random-24 (control) |" in page and "| random-24, few (control) |" in page


def test_without_embeddings_a_finished_sensitivity_stays(out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    options = COMMON | {"stage": "sensitivity", "methods": "simclr"}
    reproduce("digits", tmp_path, **options)
    shutil.rmtree(tmp_path / "work")
    assert reproduce("digits", tmp_path, **options)["done"] == ["small-sensitivity-simclr-seed0"]


@pytest.mark.parametrize("error", [OSError("gone"), torch.OutOfMemoryError("CUDA out of memory"), QScoreError("no")])
def test_a_unit_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, error):
    def run(_context, unit, save):
        if unit.method == "byol":
            raise error
        save({}, True)

    monkeypatch.setitem(TABLE, "methods", TABLE["methods"]._replace(run=run))
    monkeypatch.setattr("qscore.study.reproduce.run.write_page", lambda folder: folder)
    options = COMMON | {"stage": "methods"}
    found = reproduce("digits", tmp_path, **options | {"methods": "byol,simsiam"})
    assert found["done"] == ["small-methods-simsiam-seed0"]
    assert found["refused"] == {"small-methods-byol-seed0": str(error)} and found["left"] == [*found["refused"]]
    with pytest.raises(type(error)):
        reproduce("digits", tmp_path, **options | {"methods": "byol"})


def test_a_collapsed_encoder_is_a_result(out, tmp_path, monkeypatch):
    dead = tmp_path / "encoders" / "small" / "curve" / "random-24"
    shutil.copytree(out / "encoders" / "small" / "curve" / "random-24", dead)
    state = load_file(dead / "encoder.safetensors")
    with safe_open(dead / "encoder.safetensors", "pt") as file:
        about = file.metadata()
    save_file({name: torch.zeros_like(value) for name, value in state.items()}, dead / "encoder.safetensors", about)
    reproduce("digits", tmp_path, **RANDOM)
    [point] = result(tmp_path, RANDOM_KEY)["found"]["checkpoints"]
    assert point == {"epoch": 0, "rise": None, "failed": "all 60 representations are the same"}
    released = {"stage": "methods", "methods": "byol", "checkpoints": {"byol": str(dead)}}
    reproduce("digits", tmp_path, **RANDOM | released)
    byol = result(tmp_path, "small-methods-byol-seed0")
    assert byol["complete"] and byol["found"] == {"rise": None, "failed": "all 60 representations are the same"}


def test_only_findings_are_kept_of_a_fine_tuning_that_was_refused(out, tmp_path, monkeypatch):
    def fails(error):
        def compare(*_arguments, **_options):
            raise error

        monkeypatch.setattr("qscore.study.reproduce.methods.compare", compare)
        options = {"stage": "methods", "methods": "simclr"}
        options["checkpoints"] = {"simclr": str(out / "encoders" / "small" / "curve" / "simclr-24")}
        return reproduce("digits", tmp_path, **COMMON | options)

    with pytest.raises(QScoreError, match="the disk is full"):
        fails(QScoreError("the disk is full"))
    assert not result(tmp_path, "small-methods-simclr-seed0")["complete"]
    fails(Unfit("D is empty"))
    found = result(tmp_path, "small-methods-simclr-seed0")
    assert found["complete"] and found["found"]["tuned"]["refused"] == "D is empty"


def test_several_checkpoints_are_options_each(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLE, "methods", TABLE["methods"]._replace(run=lambda _context, _unit, save: save({}, True)))
    released = {"simclr": "a.pth", "byol": "b.pth"}
    options = {"stage": "methods", "methods": "byol", "checkpoints": released}
    monkeypatch.setattr("qscore.study.reproduce.run.write_page", lambda folder: folder)
    reproduce("digits", tmp_path, **COMMON | options)
    assert (
        "--checkpoint simclr=a.pth --checkpoint byol=b.pth " in result(tmp_path, "small-methods-byol-seed0")["command"]
    )


def test_a_launcher_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(QScoreError, match="run it without a launcher, with devices"):
        reproduce("digits", tmp_path, **COMMON)


def test_several_devices_train_in_a_command_of_their_own(out, tmp_path, monkeypatch):
    asked, trained = [], []

    def run_command(options):
        asked.append(options)
        shutil.copytree(out / "encoders", tmp_path / "encoders")
        return 0

    monkeypatch.setattr("qscore.study.reproduce.training.run_command", run_command)
    monkeypatch.setattr("qscore.study.reproduce.training.pretrain", lambda *_, **options: trained.append(options))
    options = COMMON | {"methods": "simclr", "devices": 2}
    assert reproduce("digits", tmp_path, **options)["done"] == ["small-curve-simclr-24-seed0"]
    [command] = asked
    assert command[:6] == ["--stage", "curve", "--methods", "simclr", "--train-only", "curve/simclr-24"]
    assert [options["devices"] for options in trained] == [2]  # which finds it finished
    assert {"--devices=2", "--images=digits", "--set=n_train=60", f"--out={tmp_path}"} <= set(command)
    monkeypatch.setattr("qscore.study.reproduce.training.run_command", lambda _: 3)
    shutil.rmtree(tmp_path / "encoders")
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(QScoreError, match="training curve/simclr-24 on 2 devices ended with code 3"):
        reproduce("digits", tmp_path, **options)
    with pytest.raises(QScoreError, match="devices: images must be named by strings"):
        reproduce(open_images("digits"), tmp_path, **options)


def test_one_training_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("qscore.study.reproduce.curve.measure_encoder", crash)
    found = reproduce("digits", tmp_path, **COMMON | {"train_only": "curve/simclr-24"})
    assert found["page"] is None and not (tmp_path / "results").exists()
    assert [path.name for path in (tmp_path / "encoders" / "small" / "curve").iterdir()] == ["simclr-24"]
    assert (tmp_path / "encoders" / "small" / "curve" / "simclr-24" / "encoder.safetensors").exists()


def test_what_leaves_the_machine_is_small_and_whole(out, tmp_path, monkeypatch):
    monkeypatch.setattr("qscore.study.reproduce.exports.SHARD_BYTES", 4000)
    files = export_run(out, tmp_path)
    names = {str(file.relative_to(tmp_path)) for file in files}
    assert "results/small-curve-simclr-24-seed0.json" in names
    parts = tmp_path / "small-curve-simclr-24-epoch-0002.float16"
    assert {file.name for file in parts.iterdir()} == {"part-00000.parquet", "part-00001.parquet"}
    table = pq.read_table(parts)
    np.testing.assert_array_equal(
        open_embeddings(parts).read().embedding,
        open_embeddings(out / "work/small/curve/simclr-24/epoch-0002/embeddings").read().embedding.astype(np.float16),
    )
    assert (
        table.num_rows == 50 and str(table.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[24]"
    )
    shards = tmp_path / "small-curve-simclr-24"
    assert len(list(shards.glob("encoder-*.safetensors"))) > 2
    ours = out / "encoders" / "small" / "curve" / "simclr-24"
    join_encoder(shards)
    assert load_encoder(shards).preprocess == load_encoder(ours).preprocess
    before, after = load_file(ours / "encoder.safetensors"), load_file(shards / "encoder.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    (shards / "encoder-01.safetensors").unlink()
    with pytest.raises(QScoreError, match="cannot read the parts of this encoder"):
        join_encoder(shards)
    with pytest.raises(QScoreError, match="expected result files in"):
        export_run(tmp_path / "nowhere", tmp_path)
