import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore import QScoreError, core, score, scoring
from qscore.scoring import features_path, summarize_scores
from qscore.tables import embeddings, read_features, read_scores, write_shard


@pytest.fixture
def H(relu_table):
    H = relu_table.copy()
    H[3], H[5, 2] = 0.25, np.nan
    return H


@pytest.fixture
def table(tmp_path, H):
    folder = tmp_path / "embeddings"
    for k in range(4):
        rows = np.arange(k * 50, (k + 1) * 50)
        columns = {"id": pa.array([f"i{i}" for i in rows]), "label": pa.array([f"class {i % 10}" for i in rows])}
        write_shard(folder / f"part-{k}.parquet", H[rows], columns, {"n_rows": 200, "encoder": "test"})
    return folder


@pytest.mark.parametrize("epsilon", [3.0, "auto"])
def test_tables_hold_what_the_paper_says(tmp_path, table, H, epsilon):
    summary = score(table, tmp_path / "scores.parquet", epsilon=epsilon)
    chosen = core.automatic_epsilon(H) if epsilon == "auto" else epsilon
    rates = core.activation_rates(H, chosen)
    D = core.discriminative_features(rates)
    L = core.highly_activating(H, chosen)
    q = core.q_score(H, D, chosen)

    rows, record = read_scores(tmp_path / "scores.parquet")
    features, fitted = read_features(features_path(tmp_path / "scores.parquet"))
    assert (record["epsilon"], fitted["epsilon"], fitted["n"]) == (chosen, chosen, 199)
    assert rows["id"].to_pylist() == [f"i{i}" for i in range(200)]
    assert rows["label"].to_pylist() == [f"class {i % 10}" for i in range(200)]
    assert rows["q_score"].null_count == 1 and not rows["valid"][5].as_py()
    np.testing.assert_allclose(rows["q_score"].to_numpy(), q, rtol=1e-6)
    np.testing.assert_array_equal(rows["n_active"], L.sum(1))
    np.testing.assert_array_equal(rows["n_discriminative"], L[:, D].sum(1))
    assert rows["active"].to_pylist() == [np.flatnonzero(row).tolist() for row in L]
    np.testing.assert_allclose(np.concatenate(rows["deviation"].to_pylist()), core.deviations(H)[L], rtol=1e-6)
    np.testing.assert_allclose(features["activation_rate"], rates)
    np.testing.assert_array_equal(np.flatnonzero(features["discriminative"]), D)
    np.testing.assert_array_equal(features["rank"], np.argsort(np.argsort(rates, stable=True)))

    assert (summary.n, summary.n_features, summary.n_invalid, summary.n_constant) == (200, 64, 1, 1)
    covered = L[:, D].any(1)
    assert summary.n_empty == 199 - covered.sum() and summary.coverage == pytest.approx(covered.sum() / 198)
    assert summary.quantiles["0.5"] == pytest.approx(np.nanmedian(q))
    assert summary.n_discriminative == len(D) and summary.n_dropped == 29 - len(D)
    assert summarize_scores(tmp_path / "scores.parquet") == summary


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_tables_do_not_depend_on_batches_or_threads(tmp_path, table, H, monkeypatch, batch_rows):
    score(table, tmp_path / "a.parquet", epsilon="auto")
    monkeypatch.setattr(embeddings, "BATCH_BYTES", batch_rows * 64 * 4)
    score(table, tmp_path / "b.parquet", epsilon="auto", threads=3)
    a, b = (read_scores(tmp_path / name)[0] for name in ("a.parquet", "b.parquet"))
    assert a.schema == b.schema
    for name in a.column_names:
        np.testing.assert_equal(a[name].to_pylist(), b[name].to_pylist(), err_msg=name)
    assert features_path(tmp_path / "a.parquet").read_bytes() == features_path(tmp_path / "b.parquet").read_bytes()


def test_a_stored_feature_table_scores_new_rows(tmp_path, table, H):
    score(table, tmp_path / "fit.parquet", epsilon="auto")
    stored = features_path(tmp_path / "fit.parquet")
    np.save(tmp_path / "new.npy", H[:17])
    summary = score(tmp_path / "new.npy", tmp_path / "new.parquet", features=stored)
    new, record = read_scores(tmp_path / "new.parquet")
    assert new["q_score"].equals(read_scores(tmp_path / "fit.parquet")[0]["q_score"].slice(0, 17))
    assert not summary.transductive
    assert features_path(tmp_path / "new.parquet").read_bytes() == stored.read_bytes()
    assert record["features_sha256"] == hashlib.sha256(stored.read_bytes()).hexdigest()


def test_mostly_empty_rows_are_noted_with_the_cure(tmp_path, rng):
    np.save(tmp_path / "e.npy", rng.random((50, 40)))
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet")
    assert summary.n_empty == 50 and "--epsilon auto" in summary.notes[0]
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon="auto", overwrite=True)
    assert "no epsilon from 4.0 to 1.5" in summary.notes[0]


def test_all_zero_and_all_invalid_tables(tmp_path):
    np.save(tmp_path / "zero.npy", np.zeros((5, 40)))
    summary = score(tmp_path / "zero.npy", tmp_path / "s.parquet")
    assert (summary.n_constant, summary.n_empty, summary.n_discriminative) == (5, 5, 0)
    np.save(tmp_path / "nan.npy", np.full((5, 40), np.nan))
    summary = score(tmp_path / "nan.npy", tmp_path / "t.parquet")
    assert summary.n_invalid == 5 and "5 rows hold NaN or infinity" in summary.notes[-1]


def test_negative_values_are_noted(tmp_path, rng):
    np.save(tmp_path / "e.npy", rng.normal(size=(50, 40)))
    assert "negative values" in score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2).notes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, "epsilon: expected a positive number"),
        ({"epsilon": 8.0}, "with 64 features no value lies more than 7.94"),
        ({"lower": 0.9, "upper": 0.5}, "0 <= lower < upper <= 1"),
        ({"engine": "locl"}, "engine: expected one of local, got 'locl'; did you mean 'local'"),
        ({"features": "nowhere.parquet"}, "nowhere.parquet: no such file"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, table, arguments, message):
    with pytest.raises(QScoreError, match=message):
        score(table, tmp_path / "scores.parquet", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]


def test_a_feature_table_of_another_width_is_refused(tmp_path, table, H):
    np.save(tmp_path / "narrow.npy", H[:, :32])
    score(tmp_path / "narrow.npy", tmp_path / "narrow.parquet")
    with pytest.raises(QScoreError, match="has 32 features, and .* has 64"):
        score(table, tmp_path / "s.parquet", features=features_path(tmp_path / "narrow.parquet"))


def test_too_few_features_for_automatic_epsilon(tmp_path):
    np.save(tmp_path / "e.npy", np.eye(3))
    with pytest.raises(QScoreError, match="at least 4 features, got 3"):
        score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon="auto")


def test_an_existing_output_needs_overwrite(tmp_path, table):
    score(table, tmp_path / "s.parquet", epsilon=3)
    before = (tmp_path / "s.parquet").read_bytes()
    with pytest.raises(QScoreError, match=r"s.parquet exists; .* --overwrite"):
        score(table, tmp_path / "s.parquet", epsilon=2)
    assert (tmp_path / "s.parquet").read_bytes() == before
    score(table, tmp_path / "s.parquet", epsilon=2, overwrite=True)
    assert (tmp_path / "s.parquet").read_bytes() != before


def test_a_failure_halfway_leaves_the_old_output(tmp_path, table, monkeypatch):
    score(table, tmp_path / "s.parquet", epsilon=3)
    before = {path: path.read_bytes() for path in tmp_path.glob("s.*")}
    monkeypatch.setattr(
        scoring, "_score_rows", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(QScoreError, match="cannot write .*s.parquet: No space left on device"):
        score(table, tmp_path / "s.parquet", epsilon=2, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("s.*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings", "s.parquet", "s.features.parquet"}


def test_something_else_is_not_a_score_table(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(QScoreError, match="expected a table of scores, as qscore score writes it"):
        read_scores(tmp_path / "x.parquet")
    with pytest.raises(QScoreError, match="expected a table of features"):
        read_features(tmp_path / "x.parquet")
