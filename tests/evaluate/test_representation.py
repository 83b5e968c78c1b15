import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from qscore import QScoreError, evaluate_scores, representation_metrics, score
from qscore.evaluate.representation import representation_sentences
from qscore.tables import write_shard


@pytest.fixture
def tables(tmp_path, relu_table):
    """A table, its scores, and three views of each row, two in one shard and one in the next."""
    ids = [f"i{k}" for k in range(200)]
    write_shard(tmp_path / "e.parquet", relu_table, {"id": pa.array(ids)}, {})
    score(tmp_path / "e.parquet", tmp_path / "s.parquet", epsilon=2.0)
    views = np.repeat(relu_table, 3, axis=0) + np.random.default_rng(1).gamma(0.1, size=(600, 64)).astype(np.float32)
    (tmp_path / "v").mkdir()
    for k, rows in enumerate((slice(0, 302), slice(302, 600))):
        write_shard(tmp_path / f"v/{k}.parquet", views[rows], {"id": pa.array(np.repeat(ids, 3)[rows])}, {})
    return tmp_path, relu_table, views


def evaluated(folder, **options):
    return evaluate_scores(folder / "s.parquet", folder / "e.parquet", resamples=50, **options)


def test_without_labels_the_representation_is_measured(tables):
    folder, H, views = tables
    (folder / "evaluation.parquet").write_text("of an earlier evaluation")
    metrics = evaluated(folder, view_embeddings=folder / "v", overwrite=True)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert not (folder / "evaluation.parquet").exists()
    found = metrics["representation"]
    expected = representation_metrics(H, [(views, np.repeat(np.arange(200), 3))], resamples=50)
    silent = found["n_silent"]
    assert {**found, "sentences": None} == {**dataclasses.asdict(expected), "n_silent": silent, "sentences": None}
    assert 0 < silent < 64 and found["n_alignment"] == 200
    assert "no labels, so whether Q predicts failures was not tested" in metrics["sentences"][0]
    assert metrics["score_table"]["n"] == metrics["n"] == 200


def test_views_and_labels_are_optional(tables):
    folder, *_ = tables
    metrics = evaluated(folder)
    assert metrics["representation"]["alignment"] is None and "scores" not in metrics


def test_with_labels_it_stands_beside_the_verdict(tables, rng):
    folder, H, _ = tables
    columns = {"id": pa.array([f"i{k}" for k in range(200)]), "label": pa.array(rng.integers(0, 2, 200))}
    write_shard(folder / "l.parquet", H, columns, {})
    metrics = evaluate_scores(folder / "s.parquet", folder / "l.parquet", resamples=50)
    assert metrics["n"] == 40 and metrics["representation"]["n"] == 200
    assert metrics["representation"] == evaluated(folder, overwrite=True)["representation"]


def test_results_that_are_there_need_overwrite(tables):
    folder, *_ = tables
    evaluated(folder)
    with pytest.raises(QScoreError, match="metrics.json exists"):
        evaluated(folder)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["i0", "i0", "x", "x", "y"], "2 of 3 images of .*w.parquet are not in .*e.parquet, the first is 'x'"),
        (["i0", "i1", "i0", "i1"], r"views of one image must follow one another; sort the table by id \(2 do not\)"),
        (["i0", "i1", "i2"], "no image has two views to compare"),
    ],
)
def test_views_that_do_not_fit_are_refused(tables, ids, message):
    folder, H, _ = tables
    write_shard(folder / "w.parquet", H[: len(ids)], {"id": pa.array(ids)}, {})
    with pytest.raises(QScoreError, match=message):
        evaluated(folder, view_embeddings=folder / "w.parquet")
    assert not (folder / "metrics.json").exists()


def test_tables_of_other_widths_or_rows_are_refused(tables):
    folder, H, _ = tables
    write_shard(folder / "narrow.parquet", H[:, :9], {"id": pa.array([f"i{k}" for k in range(200)])}, {})
    with pytest.raises(QScoreError, match="narrow.parquet: 9 features, and .*e.parquet has 64"):
        evaluated(folder, view_embeddings=folder / "narrow.parquet")
    with pytest.raises(QScoreError, match="the features of .*s.parquet: 64 features, and .*narrow.parquet has 9"):
        evaluate_scores(folder / "s.parquet", folder / "narrow.parquet")
    write_shard(folder / "other.parquet", H, {"id": pa.array([f"j{k}" for k in range(200)])}, {})
    with pytest.raises(QScoreError, match="200 of 200 scored ids are not in .*other.parquet, the first is 'i0'"):
        evaluate_scores(folder / "s.parquet", folder / "other.parquet")


def said(H, **options):
    return " ".join(representation_sentences(dataclasses.asdict(representation_metrics(H, resamples=20, **options))))


def test_sentences_say_what_was_found(rng):
    text = said(rng.normal(size=(500, 32)), counts=np.arange(32))
    assert "of at most 32: about so many directions are filled" in text and "slower than 1 / rank" in text
    assert "0 of 32 features are zero in every row, 0 never vary, and 1 are never highly active." in text
    assert "collapse" not in text and "fewer valid rows" not in text and "hold NaN" not in text
    text = said(rng.normal(size=(500, 32)) * np.arange(1, 33) ** -2.0)
    assert "faster than 1 / rank" in text and "highly active" not in text
    assert "fewer valid rows (20) than features (32)" in said(rng.normal(size=(20, 32)))
    views = np.repeat(rng.normal(size=(30, 8)), 2, axis=0)
    assert "0.000 (95 % interval 0.000 to 0.000) on the unit sphere, over 30 images" in said(
        views, views=[(views, np.repeat(np.arange(30), 2))]
    )


def test_sentences_of_collapsed_and_degenerate_rows(rng):
    assert "a collapse to one direction" in said(np.full((50, 4), 0.3))
    assert "rows share most of their direction" in said(rng.normal(size=(50, 4)) + 9)
    H = np.zeros((5, 4))
    H[0, 0] = math.nan
    text = said(H)
    assert "there is no spectrum" in text and "Of 5 rows, 1 hold NaN or infinity and 4 are zero." in text
    assert "nan" not in text
    assert "nan" not in said(np.array([[1.0, 2.0, 0.0]]))
