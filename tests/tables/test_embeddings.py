import json
import mmap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore import QScoreError, _stores
from qscore.tables import StoreError, embeddings, formats, open_embeddings, vectors, write_shard


def columns(n, start=0):
    return {"id": pa.array([f"row-{i}" for i in range(start, start + n)]), "label": pa.array(np.arange(n) % 3)}


@pytest.fixture
def H(rng):
    return rng.gamma(0.3, size=(50, 6)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_and_parquet_give_the_same_rows(tmp_path, H, dtype):
    H = H.astype(dtype)
    np.save(tmp_path / "a.npy", H)
    write_shard(tmp_path / "a.parquet", H, columns(50), {"nonnegative": True})
    for name in ("a.npy", "a.parquet"):
        table = open_embeddings(tmp_path / name)
        assert (len(table), table.n_features) == H.shape
        batch = table.read()
        assert batch.embedding.dtype == dtype
        np.testing.assert_array_equal(batch.embedding, H)
    assert open_embeddings(tmp_path / "a.npy").read().columns["id"].to_pylist() == [str(i) for i in range(50)]
    assert batch.columns["id"].to_pylist() == [f"row-{i}" for i in range(50)]
    assert table.columns == ("id", "label") and table.record == {"version": 1, "nonnegative": True}


def test_a_directory_of_shards_is_one_table_in_name_order(tmp_path, H, monkeypatch):
    monkeypatch.setattr(formats, "BATCH_BYTES", 7 * 6 * 4)
    for k, start in enumerate(range(0, 50, 20)):
        part = H[start : start + 20]
        write_shard(tmp_path / f"part-{k}.parquet", part, columns(len(part), start), {})
    batches = list(open_embeddings(tmp_path).batches())
    assert max(map(len, batches)) == 7
    np.testing.assert_array_equal(np.concatenate([batch.embedding for batch in batches]), H)
    assert [i for batch in batches for i in batch.columns["id"].to_pylist()] == [f"row-{i}" for i in range(50)]


def test_vectors_honour_slices_and_share_memory(H):
    values = pa.array(H.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, 6)
    np.testing.assert_array_equal(vectors(column[10:20]), H[10:20])
    assert np.shares_memory(vectors(column), values.to_numpy())
    variable = pa.array(H.tolist(), pa.list_(pa.float32()))
    np.testing.assert_array_equal(vectors(variable[5:]), H[5:])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), "1 of 2 vectors are null, the first in row 1"),
        (pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32())), "ragged vectors: 2 values in one row, 1 in another"),
        (pa.array([[1.0, None]], pa.list_(pa.float32(), 2)), "1 values inside vectors are null"),
        (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), "expected floating-point vectors, got int32"),
        (pa.array(["a"]), "expected vectors .* got string"),
    ],
)
def test_bad_vectors_are_refused(column, message):
    with pytest.raises(QScoreError, match=message):
        vectors(column)


def npy(path, array):
    np.save(path / "bad.npy", array, allow_pickle=True)


def parquet(path, table):
    pq.write_table(table, path / "bad.parquet")


BAD_FILES = {
    "1-D": (lambda p: npy(p, np.zeros(3)), r"2-D matrix .* got shape \(3,\)"),
    "3-D": (lambda p: npy(p, np.zeros((2, 2, 2))), r"2-D matrix .* got shape \(2, 2, 2\)"),
    "no rows": (lambda p: npy(p, np.zeros((0, 4))), "at least one row"),
    "integers": (lambda p: npy(p, np.zeros((2, 4), dtype=int)), "floating-point values, got int64"),
    "objects": (lambda p: npy(p, np.array([[1], ["a"]], dtype=object)), "cannot read .*bad.npy: .*Python objects"),
    "corrupt npy": (lambda p: (p / "bad.npy").write_bytes(b"nonsense"), "cannot read .*bad.npy"),
    "corrupt parquet": (lambda p: (p / "bad.parquet").write_bytes(b"nonsense"), "cannot read .*bad.parquet"),
    "no embedding column": (
        lambda p: parquet(p, pa.table({"x": [1.0]})),
        "expected a column 'embedding' of vectors, got x",
    ),
    "empty parquet": (
        lambda p: parquet(p, pa.table({"embedding": pa.array([], pa.list_(pa.float32(), 4))})),
        "at least one row",
    ),
    "no files": (lambda p: (p / "notes.txt").write_text("x"), "no embedding files"),
    "other version": (
        lambda p: parquet(
            p,
            pa.table({"embedding": pa.array([[1.0, 2.0]])}).replace_schema_metadata(
                {"qscore": json.dumps({"version": 99})}
            ),
        ),
        "schema version 99; this software reads version 1",
    ),
    "damaged record": (
        lambda p: parquet(p, pa.table({"embedding": pa.array([[1.0, 2.0]])}).replace_schema_metadata({"qscore": "{"})),
        "damaged metadata",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_by_name(tmp_path, case):
    make, message = BAD_FILES[case]
    make(tmp_path)
    with pytest.raises(QScoreError, match=message) as caught:
        open_embeddings(tmp_path)
    assert "\n" not in str(caught.value)


def test_shards_that_differ_are_refused(tmp_path, H):
    write_shard(tmp_path / "a.parquet", H, columns(50), {})
    write_shard(tmp_path / "b.parquet", H[:, :5], columns(50), {})
    with pytest.raises(QScoreError, match="differ in n_features: a.parquet has 6, b.parquet 5"):
        open_embeddings(tmp_path)
    write_shard(tmp_path / "b.parquet", H.astype(np.float16), columns(50), {})
    with pytest.raises(QScoreError, match="differ in dtype"):
        open_embeddings(tmp_path)


def test_an_unfinished_table_is_refused(tmp_path, H):
    write_shard(tmp_path / "a.parquet", H, columns(50), {"n_rows": 100})
    with pytest.raises(QScoreError, match="50 of 100 rows are there; run the same qscore embed again"):
        open_embeddings(tmp_path)


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(QScoreError, match="no such file or folder"):
        open_embeddings(tmp_path / "nothing")
    (tmp_path / "a.xyz").touch()
    with pytest.raises(QScoreError, match=r"expected an embedding table \(.parquet, .npy, .*\), got .xyz"):
        open_embeddings(tmp_path / "a.xyz")


def test_a_shard_corrupted_after_opening_is_named(tmp_path, H):
    write_shard(tmp_path / "a.parquet", H, columns(50), {})
    table = open_embeddings(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1nonsensePAR1")
    with pytest.raises(QScoreError, match="cannot read .*a.parquet"):
        table.read()


def test_a_failed_write_leaves_nothing(tmp_path, H):
    with pytest.raises(pa.ArrowInvalid):
        write_shard(tmp_path / "a.parquet", H, {"id": pa.array(["only one"])}, {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(QScoreError, match="cannot write"):
        write_shard(tmp_path / "file" / "a.parquet", H, columns(50), {})


@pytest.mark.parametrize("extension", ["parquet", "npy", "arrow"])
def test_reading_can_begin_at_any_segment(tmp_path, monkeypatch, extension):
    monkeypatch.setattr(formats, "BATCH_BYTES", 4 * 3 * 4)
    monkeypatch.setattr(formats, "SEGMENT_BYTES", 8 * 3 * 4)
    monkeypatch.setattr(embeddings, "PART_BYTES", 1)
    H = np.arange(90, dtype=np.float32).reshape(30, 3)
    for k, rows in enumerate((H[:11], H[11:])):
        table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 3)})
        if extension == "parquet":
            pq.write_table(table, tmp_path / f"{k}.parquet", row_group_size=3)
        elif extension == "arrow":
            with pa.OSFile(str(tmp_path / f"{k}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        else:
            np.save(tmp_path / f"{k}.npy", rows)
    table = open_embeddings(tmp_path)
    whole = list(table.batches())
    np.testing.assert_array_equal(np.concatenate([batch.embedding for batch in whole]), H)
    assert [batch.part for batch in whole] == sorted(batch.part for batch in whole)
    assert {batch.part for batch in whole} == set(range(len(table.parts)))
    assert len(table.parts) >= 4
    for first in range(len(table.parts)):
        rest = list(table.batches(first))
        expected = [batch for batch in whole if batch.part >= first]
        assert [len(batch) for batch in rest] == [len(batch) for batch in expected]
        for one, other in zip(rest, expected, strict=True):
            np.testing.assert_array_equal(one.embedding, other.embedding)
            assert one.columns["id"].equals(other.columns["id"])


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_store_that_fails_is_asked_three_times(tmp_path, monkeypatch, failures):
    H = np.arange(90, dtype=np.float32).reshape(30, 3)
    write_shard(tmp_path / "e.parquet", H, {"id": pa.array(map(str, range(30)))}, {})
    monkeypatch.setattr(formats, "BATCH_BYTES", 4 * 3 * 4)
    table, left = open_embeddings(tmp_path / "e.parquet"), [failures]
    iter_batches = pq.ParquetFile.iter_batches

    def failing(self, *args, **options):
        for number, batch in enumerate(iter_batches(self, *args, **options)):
            if number == 5 and left[0]:
                left[0] -= 1
                raise OSError(110, "Connection timed out")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    if failures < 3:
        np.testing.assert_array_equal(table.read().embedding, H)
    else:
        with pytest.raises(StoreError, match=r"cannot read .*e.parquet: .*Connection timed out"):
            table.read()


def test_pages_of_a_mapped_file_are_let_go(tmp_path, monkeypatch):
    H = np.random.default_rng(0).random((300, 50)).astype(np.float32)
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(H.reshape(-1)), 50)})
    with pa.OSFile(str(tmp_path / "e.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    forgotten = []

    class Map(mmap.mmap):
        def madvise(self, option):
            forgotten.append(option)
            return super().madvise(option)

    monkeypatch.setattr(_stores.mmap, "mmap", Map)
    monkeypatch.setattr(_stores, "FORGET_BYTES", 1)
    monkeypatch.setattr(formats, "BATCH_BYTES", 10 * 50 * 4)
    # Read on after each page was let go of: what was given stays as it was.
    batches = list(open_embeddings(tmp_path / "e.arrow").batches())
    np.testing.assert_array_equal(np.concatenate([batch.embedding for batch in batches]), H)
    assert forgotten == [mmap.MADV_DONTNEED] * 30
