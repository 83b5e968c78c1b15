import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore.encoders import Preprocessing, build_backbone, save_encoder
from qscore.images import open_images


def qscore(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "qscore", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture
def matrix(tmp_path, relu_table):
    np.save(tmp_path / "e.npy", relu_table)
    return tmp_path / "e.npy"


@pytest.mark.parametrize(
    "verb", ["demo", "pretrain", "embed", "score", "compress", "features merge", "evaluate", "report"]
)
def test_every_verb_has_help_with_an_example(verb):
    done = qscore(*verb.split(), "--help")
    assert done.returncode == 0
    assert f"qscore {verb}" in done.stdout.split("Example:")[1]


def test_score_prints_a_summary_or_json(tmp_path, matrix):
    done = qscore("score", matrix, "--out", tmp_path / "s.parquet", "--epsilon", "auto")
    assert done.returncode == 0 and "200 (0 invalid, 0 constant)" in done.stdout
    done = qscore("score", matrix, "--out", tmp_path / "t.parquet", "--epsilon", "3", "--json")
    data = json.loads(done.stdout)
    assert data["n"] == 200 and data["epsilon"] == 3.0 and done.stdout.count("\n") == 1


def test_evaluate_without_labels_measures_the_representation(tmp_path, matrix):
    qscore("score", matrix, "--out", tmp_path / "s.parquet", "--epsilon", "3")
    done = qscore("evaluate", tmp_path / "s.parquet", "--embeddings", matrix)
    assert done.returncode == 0 and "e.npy has no labels" in done.stdout
    for words in (
        "RankMe",
        "1 to 64, higher fills more directions",
        "Hoyer sparsity",
        "they say nothing of single rows",
    ):
        assert words in done.stdout
    assert "alignment" not in done.stdout
    views = tmp_path / "v.parquet"
    table = {
        "id": [str(k) for k in range(200) for _ in range(2)],
        "embedding": np.load(matrix).repeat(2, axis=0).tolist(),
    }
    pq.write_table(pa.table(table), views)
    done = qscore(
        *("evaluate", tmp_path / "s.parquet", "--embeddings", matrix, "--view-embeddings", views),
        *("--overwrite", "--json"),
    )
    assert json.loads(done.stdout)["representation"]["alignment"]["value"] == 0.0


def test_compress_and_merge_print_what_they_wrote(tmp_path, matrix):
    done = qscore("compress", matrix, "--keep", "0.5", "--out", tmp_path / "small.parquet", "--epsilon", "3")
    assert done.returncode == 0 and "200 rows, 33 of 64 features kept" in done.stdout
    for name, rows in {"a": slice(80), "b": slice(80, None)}.items():
        np.save(tmp_path / f"{name}.npy", np.load(matrix)[rows])
        qscore("score", f"{name}.npy", "--out", f"{name}.parquet", "--epsilon", "3", cwd=tmp_path)
    merge = ["features", "merge", "a.features.parquet", "b.features.parquet", "--json", "--out"]
    data = json.loads(qscore(*merge, "all.parquet", cwd=tmp_path).stdout)
    assert data["features"] == "all.parquet" and (data["n_tables"], data["n"], data["n_features"]) == (2, 200, 64)
    done = qscore("compress", matrix, "--features", "all.parquet", "--out", "t.parquet", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["n_kept"] == 39


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "nowhere.npy", "--out", "s.parquet"], "error: nowhere.npy: no such file or folder"),
        (
            ["score", "e.npy", "--out", "s.parquet", "--epsilon", "much"],
            "expected a positive number, 'auto' or 'paper', got 'much'",
        ),
        (["score", "e.npy", "--out", "s.parquet", "--epsilon", "9"], "with 64 features no value lies more than"),
        (["compress", "nowhere.npy", "--out", "s.parquet"], "error: nowhere.npy: no such file or folder"),
        (["compress", "e.npy", "--out", "s.parquet", "--keep", "1.5"], "keep: expected a share of the features in"),
        (["compress", "e.npy", "--out", "s.parquet", "--features", "no.parquet"], "no.parquet: no such file"),
        (["features", "merge", "a.parquet", "b.parquet", "--out", "c.parquet"], "a.parquet: no such file"),
        (["evaluate", "nowhere.parquet", "--embeddings", "e.npy"], "nowhere.parquet: no such file"),
        (["report", "nowhere"], "nowhere: no such run directory"),
        (["embed", "nowhere", "--encoder", "x", "--out", "out"], "nowhere"),
        (["embed", "digits", "--encoder", "nowhere", "--out", "out"], "nowhere"),
        (["pretrain", "simclrr", "--images", "digits", "--out", "out"], "did you mean 'simclr'"),
    ],
)
def test_bad_input_is_one_line_exit_1_and_nothing_half_written(tmp_path, matrix, arguments, message):
    done = qscore(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["e.npy"]


def test_embed_tells_what_it_left_out_and_where_the_views_are(tmp_path):
    weights = build_backbone("small:resnet10-4").state_dict()
    save_encoder(tmp_path / "enc", "small:resnet10-4", weights, Preprocessing(crop=8), method=None)
    (tmp_path / "list.csv").write_text("path,label\ndigits#3,3\ngone.png,4\ndigits#5,5\n")
    command = ["embed", "list.csv", "--encoder", "enc", "--out", "e", "--views", "2"]
    done = qscore(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 images (1 left out: e.skipped.csv), 32 features: e\n2 views of each: e-views\n" in done.stdout
    assert "gone.png,gone.png,cannot read the image: No such file" in (tmp_path / "e.skipped.csv").read_text()
    data = json.loads(qscore(*command, "--json", cwd=tmp_path).stdout)
    assert (data["n"], data["n_skipped"], data["skipped"], data["views"]) == (2, 1, "e.skipped.csv", "e-views")
    done = qscore(*command, "--on-error", "raise", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: gone.png: cannot read the image")


def test_odd_paths_are_printed_as_they_are_and_json_is_json(tmp_path):
    np.save(tmp_path / "n.npy", np.full((5, 40), np.nan))
    done = qscore("score", "n.npy", "--out", "sp ace/[b][/y].parquet", cwd=tmp_path)
    assert done.returncode == 0 and "sp ace/[b][/y].parquet" in done.stdout
    done = qscore("score", "n.npy", "--out", "x.parquet", "--json", cwd=tmp_path)
    assert json.loads(done.stdout, parse_constant=pytest.fail)["coverage"] is None


def test_debug_shows_the_traceback(tmp_path):
    done = qscore("report", tmp_path / "nowhere", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [["score"], ["scor"], ["score", "e.npy", "--out", "s", "--threads", "0"]])
def test_bad_usage_is_exit_2(arguments):
    done = qscore(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_version():
    assert qscore("--version").stdout.startswith("qscore 0.")


def test_the_chain_from_images_to_report(tmp_path, data_folder):
    assert len(open_images(str(data_folder / "cifar10" / "test.npz"))) == 10_000
    train, test = tmp_path / "train", tmp_path / "test"
    source = np.load(data_folder / "cifar10" / "test.npz")
    order = np.random.default_rng(0).permutation(10_000)
    for folder, rows in ((train, order[:600]), (test, order[600:1000])):
        for i in rows:
            name = source["class_names"][source["labels"][i]]
            (folder / str(name)).mkdir(parents=True, exist_ok=True)
            png = source["data"][source["offsets"][i] : source["offsets"][i + 1]].tobytes()
            (folder / str(name) / f"{i}.png").write_bytes(png)
    commands = [
        ["pretrain", "simclr", "--images", "train", "--out", "enc", "--epochs", "1", "--backbone", "small:resnet10-8"],
        ["embed", "train", "--encoder", "enc", "--out", "train-embeddings"],
        ["embed", "test", "--encoder", "enc", "--out", "run/embeddings"],
        ["score", "train-embeddings", "--out", "train-scores.parquet", "--epsilon", "auto"],
        ["score", "run/embeddings", "--out", "run/scores.parquet", "--features", "train-scores.features.parquet"],
        ["evaluate", "run/scores.parquet", "--embeddings", "run/embeddings", "--train-embeddings", "train-embeddings"],
        ["report", "run"],
    ]
    for command in commands:
        done = qscore(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["n"] == 400
    assert (tmp_path / "run" / "report.html").stat().st_size > 500_000


def test_where_failure_prediction_is_undefined_no_figures_are_printed():
    from qscore.cli.tables import verdict

    said = ["The probe is at chance."]
    assert verdict({"undefined": said[0], "scores": {"q_score": {}}, "sentences": said}) == said
