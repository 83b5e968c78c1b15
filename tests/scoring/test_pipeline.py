import hashlib
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore import QScoreError, QScorer, core, score
from qscore.scoring import features_path, summarize_scores
from qscore.tables import formats, read_features, read_scores, write_shard


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
    monkeypatch.setattr(formats, "BATCH_BYTES", batch_rows * 64 * 4)
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
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon="paper")
    assert summary.epsilon == 4.0 and summary.n_empty == 50 and "--epsilon auto" in summary.notes[0]
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", overwrite=True)
    assert "no epsilon from 4.0 to 1.5" in summary.notes[0]


def test_all_zero_and_all_invalid_tables(tmp_path):
    np.save(tmp_path / "zero.npy", np.zeros((5, 40)))
    summary = score(tmp_path / "zero.npy", tmp_path / "s.parquet")
    assert (summary.n_constant, summary.n_empty, summary.n_discriminative) == (5, 5, 0)
    assert summary.coverage is None
    np.save(tmp_path / "nan.npy", np.full((5, 40), np.nan))
    summary = score(tmp_path / "nan.npy", tmp_path / "t.parquet")
    assert summary.n_invalid == 5 and "5 rows hold NaN or infinity" in summary.notes[-1]


def outlier_table(rng):
    """Signed features, of which one fires in every row and swallows sigma; class evidence of either sign elsewhere."""
    H = rng.normal(size=(400, 60))
    H[:, 0] += 60.0
    labels = rng.integers(0, 10, 400)
    H[np.arange(400), 10 + labels] += 6.0
    H[np.arange(400), 30 + labels] -= 6.0
    return H


def test_signed_tables_are_scaled_where_the_plain_score_finds_nothing(tmp_path, rng):
    H = outlier_table(rng)
    np.save(tmp_path / "e.npy", H)
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=3.0)
    rows, record = read_scores(tmp_path / "s.parquet")
    features, _ = read_features(features_path(tmp_path / "s.parquet"))
    scorer = QScorer(epsilon=3.0).fit(H)
    assert summary.signed and record["signed"] and summary.coverage > 0.8
    np.testing.assert_allclose(rows["q_score"], scorer.score_samples(H), rtol=1e-6)
    np.testing.assert_array_equal(features["scale"], scorer.scale_)
    np.testing.assert_allclose(rows["mean"], H.mean(1), rtol=1e-6, atol=1e-6)
    D = core.discriminative_features(core.activation_rates(H, 3.0))
    assert not np.any(rows["q_score_plain"]) and not core.q_score(H, D, 3.0).any()

    np.save(tmp_path / "new.npy", H[:9])
    score(tmp_path / "new.npy", tmp_path / "n.parquet", features=features_path(tmp_path / "s.parquet"))
    new, _ = read_scores(tmp_path / "n.parquet")
    np.testing.assert_array_equal(new["q_score"], rows["q_score"].slice(0, 9))

    summary = score(tmp_path / "e.npy", tmp_path / "off.parquet", epsilon=3.0, signed=False)
    assert not summary.signed and "scored one-sided, as asked" in summary.notes[0]
    assert "q_score_plain" not in read_scores(tmp_path / "off.parquet")[0].column_names


def test_a_negative_value_in_an_invalid_row_does_not_make_a_table_signed(tmp_path, H):
    H[5, 7] = -3.0
    np.save(tmp_path / "e.npy", H)
    assert not score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=3.0).signed


def test_metadata_decides_about_signs(tmp_path, H):
    write_shard(tmp_path / "e.parquet", H, {"id": pa.array([str(i) for i in range(200)])}, {"nonnegative": False})
    assert score(tmp_path / "e.parquet", tmp_path / "s.parquet", epsilon=3.0).signed


def test_unit_norm_is_named(tmp_path, relu_table):
    np.save(tmp_path / "e.npy", relu_table / np.linalg.norm(relu_table, axis=1, keepdims=True))
    assert "unit L2 norm" in score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=3.0).notes[0]


@pytest.mark.parametrize("out", ["embeddings/s.parquet", "e.parquet", "fit.features.parquet"])
def test_inputs_are_never_overwritten(tmp_path, table, H, out):
    write_shard(tmp_path / "e.parquet", H, {"id": pa.array([str(i) for i in range(200)])}, {})
    score(tmp_path / "e.parquet", tmp_path / "fit.parquet", epsilon=3.0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    source = table if out.startswith("embeddings") else tmp_path / "e.parquet"
    features = features_path(tmp_path / "fit.parquet") if out.startswith("fit") else None
    with pytest.raises(QScoreError, match="choose another"):
        score(source, tmp_path / out, features=features, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_duplicate_and_null_ids_are_refused(tmp_path, H):
    write_shard(tmp_path / "e.parquet", H, {"id": pa.array([str(i % 150) for i in range(200)])}, {})
    with pytest.raises(QScoreError, match="50 ids come more than once, the first is '0'"):
        score(tmp_path / "e.parquet", tmp_path / "s.parquet")
    write_shard(tmp_path / "f.parquet", H, {"id": pa.array([None, *map(str, range(199))])}, {})
    with pytest.raises(QScoreError, match="1 ids are null"):
        score(tmp_path / "f.parquet", tmp_path / "s.parquet")


def test_tables_that_do_not_belong_together_are_refused(tmp_path, table):
    score(table, tmp_path / "a.parquet", epsilon=3.0)
    score(table, tmp_path / "b.parquet", epsilon=2.0)
    features_path(tmp_path / "a.parquet").write_bytes(features_path(tmp_path / "b.parquet").read_bytes())
    with pytest.raises(QScoreError, match="does not belong to .*a.parquet"):
        summarize_scores(tmp_path / "a.parquet")


def test_what_the_feature_table_settles_is_not_asked_twice(tmp_path, table):
    score(table, tmp_path / "a.parquet", epsilon=3.0)
    with pytest.raises(QScoreError, match="the feature table settles epsilon"):
        score(table, tmp_path / "b.parquet", features=features_path(tmp_path / "a.parquet"), epsilon=2.0)


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
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(sys.modules["qscore.scoring.pipeline"], "_score_rows", lambda *a: (_ for _ in ()).throw(full))
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


def test_shards_whose_labels_differ_in_type_are_refused(tmp_path, H):
    for k, labels in enumerate((list(range(200)), [str(i) for i in range(200)])):
        columns = {"id": pa.array([f"{k}-{i}" for i in range(200)]), "label": pa.array(labels)}
        write_shard(tmp_path / "e" / f"{k}.parquet", H, columns, {})
    with pytest.raises(QScoreError, match="shards differ in the type of 'label': int64 in some, string in others"):
        score(tmp_path / "e", tmp_path / "s.parquet", epsilon=3.0)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
def test_tables_without_anything_to_score(tmp_path, value):
    np.save(tmp_path / "e.npy", np.full((20, 40), value, np.float32))
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    invalid = 20 if np.isnan(value) else 0
    assert (summary.n_invalid, summary.n_constant, summary.n_empty) == (invalid, 20 - invalid, 20 - invalid)
    assert (summary.n_discriminative, summary.coverage) == (0, None)
    q = read_scores(tmp_path / "s.parquet")[0].column("q_score")
    assert q.to_pylist() == [None if invalid else 0.0] * 20


def test_values_that_float32_cannot_hold(tmp_path, rng):
    np.save(tmp_path / "e.npy", rng.gamma(0.3, size=(20, 40)) * 1e100)
    score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    rows, _ = read_scores(tmp_path / "s.parquet")
    assert np.isinf(rows.column("l2_norm").to_numpy()).all()
    assert rows.column("valid").to_numpy().all()


@pytest.mark.parametrize("damage", ["half", "foreign", "empty"])
def test_a_damaged_shard_is_named_and_nothing_is_left(tmp_path, table, damage):
    shard = table / "part-2.parquet"
    whole = shard.read_bytes()
    if damage == "empty":
        pq.write_table(pq.read_table(shard).slice(0, 0), shard)
    else:
        shard.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"<html>not found</html>")
    with pytest.raises(QScoreError, match=r"part-2.parquet"):
        score(table, tmp_path / "s.parquet", epsilon=3.0)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]


def test_a_full_disk_under_the_scans_leaves_nothing(tmp_path, table, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qscore.scoring.spill.pa.ipc.new_file", full)
    with pytest.raises(QScoreError, match="cannot write .*: No space left on device"):
        score(table, tmp_path / "s.parquet", epsilon=3.0)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]


def test_a_constant_row_of_a_signed_table_scores_nothing(tmp_path, rng):
    H = (rng.normal(size=(200, 64)) + 1).astype(np.float32)
    H[5], H[6] = 0.0, 2.5
    np.save(tmp_path / "e.npy", H)
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=1.5)
    assert (summary.signed, summary.n_constant) == (True, 2)
    rows = read_scores(tmp_path / "s.parquet")[0].slice(5, 2)
    assert rows.column("n_active").to_pylist() == rows.column("q_score").to_pylist() == [0, 0]
    scorer = QScorer(epsilon=1.5).fit(H)
    assert [scorer.score_one(H[5]), *scorer.score_samples(H[5:7])] == [0, 0, 0]


def test_signed_may_be_any_truth(tmp_path, relu_table):
    np.save(tmp_path / "e.npy", relu_table)
    for name, signed in {"a": 1, "b": True, "c": np.True_}.items():
        assert score(tmp_path / "e.npy", tmp_path / f"{name}.parquet", epsilon=2.0, signed=signed).signed


@pytest.mark.parametrize(
    ("options", "message"), [({"lower": "0.5"}, "lower, upper: expected"), ({"threads": "2"}, "threads: expected")]
)
def test_arguments_of_the_wrong_type(tmp_path, table, options, message):
    with pytest.raises(QScoreError, match=message):
        score(table, tmp_path / "s.parquet", **options)
