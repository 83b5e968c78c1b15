import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference import compression, paper

from qscore import DiscriminativeFeatureSelector, QScoreError, compress, score
from qscore.scoring import features_path
from qscore.tables import EmbeddingTable, formats, open_embeddings, write_shard


@pytest.fixture
def H(relu_table):
    H = relu_table.copy()
    H[3], H[5, 2] = 0.25, np.nan
    return H


def write_table(folder, H, shards=4):
    for k, rows in enumerate(np.array_split(np.arange(len(H)), shards)):
        columns = {
            "id": pa.array([f"i{i}" for i in rows]),
            "label": pa.array([f"class {i % 10}" for i in rows]),
            "path": pa.array([f"{i}.png" for i in rows]),
        }
        write_shard(folder / f"part-{k}.parquet", H[rows], columns, {"n_rows": len(H), "encoder": "test"})
    return folder


@pytest.fixture
def table(tmp_path, H):
    return write_table(tmp_path / "embeddings", H)


def expected_features(H, keep, epsilon):
    return compression.kept_features(paper.activation_rates(H.astype(float).tolist(), epsilon), keep)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("keep", [0.3, 0.6, 1.0])
def test_only_the_kept_features_are_left_and_all_else_stays(tmp_path, H, dtype, keep):
    H = H.astype(dtype)
    summary = compress(write_table(tmp_path / "e", H), tmp_path / "small.parquet", keep=keep, epsilon=3.0)
    small = open_embeddings(tmp_path / "small.parquet")
    kept = expected_features(H, keep, 3.0)
    rows, given = small.read(), open_embeddings(tmp_path / "e").read()
    assert rows.embedding.dtype == dtype
    np.testing.assert_array_equal(rows.embedding, H[:, kept])
    assert list(rows.columns) == ["id", "label", "path"]
    assert all(rows.columns[name].equals(given.columns[name]) for name in given.columns)
    assert small.record == {
        "version": 1,
        "kind": "embeddings",
        "encoder": "test",
        "n_rows": 200,
        "keep": keep,
        "kept_features": kept,
    }
    rates = np.array(paper.activation_rates(H.astype(float).tolist(), 3.0))
    assert (summary.n, summary.n_features, summary.n_kept) == (200, 64, len(kept))
    assert summary.n_silent == (rates[kept] == 0).sum() and summary.epsilon == 3.0 and not summary.signed


def test_a_feature_table_ranks_instead_and_the_table_is_read_once(tmp_path, table, H, monkeypatch):
    score(table, tmp_path / "s.parquet", epsilon="auto")
    stored = features_path(tmp_path / "s.parquet")
    compress(table, tmp_path / "a.parquet", epsilon="auto")
    reads, batches = [], EmbeddingTable.batches
    monkeypatch.setattr(EmbeddingTable, "batches", lambda self: reads.append(self.name) or batches(self))
    compress(table, tmp_path / "b.parquet", features=stored)
    assert reads == [str(table)]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()

    np.save(tmp_path / "new.npy", H[:9, ::-1])
    compress(tmp_path / "new.npy", tmp_path / "new.parquet", features=stored, keep=0.45)
    counts = pq.read_table(stored)["count"].to_pylist()
    new = open_embeddings(tmp_path / "new.parquet").read()
    np.testing.assert_array_equal(new.embedding, H[:9, ::-1][:, compression.kept_features(counts, 0.45)])
    assert new.columns["id"].to_pylist() == [str(i) for i in range(9)]


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_batches_do_not_matter(tmp_path, table, monkeypatch, batch_rows):
    compress(table, tmp_path / "a.parquet", epsilon=3.0)
    monkeypatch.setattr(formats, "BATCH_BYTES", batch_rows * 64 * 4)
    compress(table, tmp_path / "b.parquet", epsilon=3.0)
    a, b = (open_embeddings(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    np.testing.assert_array_equal(a.read().embedding, b.read().embedding)
    assert a.read().columns == b.read().columns and a.record == b.record
    groups = pq.ParquetFile(tmp_path / "b.parquet").metadata
    assert max(groups.row_group(k).num_rows for k in range(groups.num_row_groups)) <= batch_rows


def test_signed_tables_are_ranked_scaled_and_written_as_they_are(tmp_path, rng):
    H = rng.normal(size=(300, 40)) * 10.0 ** rng.integers(-2, 3, size=40) + rng.normal(size=40)
    np.save(tmp_path / "e.npy", H)
    summary = compress(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    selector = DiscriminativeFeatureSelector(epsilon=2.0).fit(H)
    assert summary.signed and selector.scorer_.signed_
    np.testing.assert_array_equal(open_embeddings(tmp_path / "s.parquet").read().embedding, selector.transform(H))


def test_compressing_twice_still_names_the_encoders_features(tmp_path, table, H):
    compress(table, tmp_path / "a.parquet", epsilon=3.0)
    compress(tmp_path / "a.parquet", tmp_path / "b.parquet", keep=0.5, epsilon=3.0)
    small = open_embeddings(tmp_path / "b.parquet")
    np.testing.assert_array_equal(small.read().embedding, H[:, small.record["kept_features"]])
    assert small.n_features < open_embeddings(tmp_path / "a.parquet").n_features < 64


def test_swapped_bytes_and_views_are_read(tmp_path, relu_table):
    np.save(tmp_path / "big.npy", relu_table.astype(">f4"))
    compress(tmp_path / "big.npy", tmp_path / "a.parquet", epsilon=3.0)
    columns = {"id": pa.array([str(i) for i in range(200)]), "view": pa.array(np.ones(200, np.int8))}
    write_shard(tmp_path / "views.parquet", relu_table, columns, {})
    compress(tmp_path / "views.parquet", tmp_path / "b.parquet", epsilon=3.0)
    a, b = (open_embeddings(tmp_path / name).read() for name in ("a.parquet", "b.parquet"))
    np.testing.assert_array_equal(a.embedding, b.embedding)
    assert b.columns["view"].to_pylist() == [1] * 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0}, r"keep: expected a share of the features in \(0, 1\], got 0"),
        ({"keep": 1.2}, r"\(0, 1\], got 1.2"),
        ({"epsilon": -1.0}, "epsilon: expected a positive number"),
        ({"epsilon": 9.0}, "with 64 features no value lies more than"),
        ({"features": "nowhere.parquet"}, "nowhere.parquet: no such file"),
        ({"features": "f.parquet", "epsilon": 3.0}, "the feature table settles epsilon"),
        ({"column": "vector"}, "no column 'vector'"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, table, arguments, message):
    with pytest.raises(QScoreError, match=message):
        compress(table, tmp_path / "small.parquet", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]


def test_a_feature_table_of_another_width_is_refused(tmp_path, table, H):
    np.save(tmp_path / "narrow.npy", H[:, :32])
    score(tmp_path / "narrow.npy", tmp_path / "s.parquet", epsilon=3.0)
    with pytest.raises(QScoreError, match=r"has 32 features, and .*embeddings has 64; both must come from the same"):
        compress(table, tmp_path / "small.parquet", features=features_path(tmp_path / "s.parquet"))


def test_one_feature_is_no_table(tmp_path):
    np.save(tmp_path / "e.npy", np.eye(4))
    with pytest.raises(QScoreError, match="keep: 0.05 leaves 1 of 4 features; a table needs at least 2"):
        compress(tmp_path / "e.npy", tmp_path / "small.parquet", keep=0.05, epsilon=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["e.npy"]


def test_inputs_are_never_overwritten_and_outputs_only_if_asked(tmp_path, table, H):
    write_table(tmp_path / "one", H, shards=1)
    one = tmp_path / "one" / "part-0.parquet"
    score(table, tmp_path / "s.parquet", epsilon=3.0)
    stored = features_path(tmp_path / "s.parquet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    for source, out, features in (
        (one, one, None),
        (table, table / "small.parquet", None),
        (table, stored, stored),
    ):
        with pytest.raises(QScoreError, match="choose another"):
            compress(source, out, features=features, overwrite=True)
    with pytest.raises(QScoreError, match=r"s.parquet exists; .* --overwrite"):
        compress(table, tmp_path / "s.parquet", features=stored)
    with pytest.raises(QScoreError, match="expected a name that ends in .parquet"):
        compress(table, tmp_path / "small.npy", features=stored)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    compress(table, tmp_path / "s.parquet", features=stored, overwrite=True)
    assert open_embeddings(tmp_path / "s.parquet").n_features == 39


def test_a_failure_halfway_leaves_the_old_output(tmp_path, table, monkeypatch):
    compress(table, tmp_path / "small.parquet", epsilon=3.0)
    before = (tmp_path / "small.parquet").read_bytes()
    score(table, tmp_path / "s.parquet", epsilon=3.0)
    monkeypatch.setattr(
        pq.ParquetWriter, "write_batch", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(QScoreError, match="cannot write .*small.parquet: No space left on device"):
        compress(table, tmp_path / "small.parquet", features=features_path(tmp_path / "s.parquet"), overwrite=True)
    assert (tmp_path / "small.parquet").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings", "small.parquet", "s.parquet"} | {
        "s.features.parquet"
    }


def test_shards_whose_labels_differ_in_type_are_refused(tmp_path, table, H):
    score(table, tmp_path / "s.parquet", epsilon=3.0)
    for k, labels in enumerate((list(range(200)), [str(i) for i in range(200)])):
        columns = {"id": pa.array([f"{k}-{i}" for i in range(200)]), "label": pa.array(labels)}
        write_shard(tmp_path / "e" / f"{k}.parquet", H, columns, {})
    with pytest.raises(QScoreError, match="shards differ in the type of 'label': int64 in some, string in others"):
        compress(tmp_path / "e", tmp_path / "small.parquet", features=features_path(tmp_path / "s.parquet"))
    assert not (tmp_path / "small.parquet").exists()


def test_what_never_fires_is_kept_and_counted(tmp_path):
    np.save(tmp_path / "nan.npy", np.full((5, 40), np.nan, dtype=np.float32))
    summary = compress(tmp_path / "nan.npy", tmp_path / "small.parquet")
    assert summary.n_kept == summary.n_silent == 24
    metadata = pq.read_schema(tmp_path / "small.parquet").metadata[b"qscore"]
    assert json.loads(metadata)["kept_features"] == list(range(14, 38))
