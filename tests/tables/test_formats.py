import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from qscore import QScoreError, _stores
from qscore.tables import formats, open_embeddings


@pytest.fixture
def H(rng):
    return rng.gamma(0.3, size=(50, 6)).astype(np.float32)


def arrow(path, H):
    table = pa.table({"id": [f"a{i}" for i in range(len(H))], "embedding": list(H)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=20)


WRITERS = {
    "a.npz": lambda path, H: np.savez(path, embedding=H, labels=np.arange(len(H))),
    "b.npz": lambda path, H: np.savez_compressed(path, only=H, labels=np.arange(len(H))),
    "c.arrow": arrow,
    "d.feather": arrow,
    "e.pt": lambda path, H: torch.save(torch.as_tensor(H), path),
    "f.pth": lambda path, H: torch.save({"embedding": torch.as_tensor(H), "epoch": 3}, path),
    "g.safetensors": lambda path, H: save_file({"features": torch.as_tensor(H)}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, H, name, monkeypatch):
    monkeypatch.setattr(formats, "BATCH_BYTES", 7 * 6 * 4)
    WRITERS[name](tmp_path / name, H)
    table = open_embeddings(tmp_path / name)
    assert (len(table), table.n_features) == H.shape
    np.testing.assert_array_equal(table.read().embedding, H)


def test_a_uri_is_read_as_a_path_is(tmp_path, H):
    np.save(tmp_path / "a.npy", H)
    np.testing.assert_array_equal(open_embeddings((tmp_path / "a.npy").as_uri()).read().embedding, H)


def test_numbered_shards_are_read_in_the_order_of_their_numbers(tmp_path, H):
    for k in range(11):
        np.save(tmp_path / f"{k}.npy", H + k)
    first = open_embeddings(tmp_path).read().embedding[::50, 0]
    np.testing.assert_allclose(first, H[0, 0] + np.arange(11), rtol=1e-6)


def test_the_clip_retrieval_layout(tmp_path, H):
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    for k in range(2):
        np.save(tmp_path / "img_emb" / f"img_emb_{k}.npy", H[25 * k : 25 * k + 25])
        paths = [f"{i}.jpg" for i in range(25 * k, 25 * k + 25)]
        pq.write_table(pa.table({"image_path": paths}), tmp_path / "metadata" / f"metadata_{k}.parquet")
    batch = open_embeddings(tmp_path).read()
    np.testing.assert_array_equal(batch.embedding, H)
    assert batch.columns["path"].to_pylist() == [f"{i}.jpg" for i in range(50)]
    pq.write_table(pa.table({"image_path": ["x"]}), tmp_path / "metadata" / "metadata_1.parquet")
    with pytest.raises(QScoreError, match="metadata_1.parquet has 1 rows, and .*img_emb_1.npy 25"):
        open_embeddings(tmp_path)


def test_several_vector_columns_need_a_choice(tmp_path, H):
    pq.write_table(pa.table({"image": list(H), "text": list(H + 1)}), tmp_path / "t.parquet")
    with pytest.raises(QScoreError, match="several columns of vectors: image, text; choose one with --column"):
        open_embeddings(tmp_path / "t.parquet")
    np.testing.assert_array_equal(open_embeddings(tmp_path / "t.parquet", column="text").read().embedding, H + 1)
    with pytest.raises(QScoreError, match="no column 'txt'.*did you mean 'text'"):
        open_embeddings(tmp_path / "t.parquet", column="txt")


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: np.savez(p / "x.npz", a=np.zeros((2, 3)), b=np.zeros((2, 3))), "2 matrices"),
        (lambda p: np.savez(p / "x.npz", a=np.array([[{}]], dtype=object)), "nothing is unpickled"),
        (lambda p: np.save(p / "x.npy", np.float32(1)), "got a single number"),
        (lambda p: torch.save(torch.tensor(1.0), p / "x.pt"), "got a single number"),
        (lambda p: (p / "x.npz").write_bytes(b"PK\3\4nonsense"), "cannot read .*x.npz"),
        (lambda p: (p / "x.arrow").write_bytes(b"ARROW1nonsense"), "cannot read .*x.arrow"),
        (lambda p: torch.save(Payload(), p / "x.pt"), "nothing else is unpickled"),
        (lambda p: (p / "x.safetensors").write_bytes(b"nonsense"), "x.safetensors"),
    ],
)
def test_bad_files_run_nothing_and_are_named(tmp_path, capfd, write, message):
    write(tmp_path)
    with pytest.raises(QScoreError, match=message) as caught:
        open_embeddings(tmp_path)
    assert "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["parameter", "float8", "bfloat16"])
def test_tensors_of_any_float(tmp_path, H, kind):
    tensor = torch.from_numpy(H)
    kinds = {"float8": torch.float8_e4m3fn, "bfloat16": torch.bfloat16}
    stored = torch.nn.Parameter(tensor) if kind == "parameter" else tensor.to(kinds[kind])
    torch.save({"embedding": stored}, tmp_path / "e.pt")
    np.testing.assert_array_equal(open_embeddings(tmp_path / "e.pt").read().embedding, stored.detach().float().numpy())


def test_objects_beside_the_matrix_do_no_harm(tmp_path, H):
    np.savez(tmp_path / "e.npz", embedding=H, labels=np.array([{}], dtype=object))
    np.testing.assert_array_equal(open_embeddings(tmp_path / "e.npz").read().embedding, H)


def test_labels_that_pandas_made_floats(tmp_path, H):
    labels = pa.array([*range(48), None, None], pa.float64())
    pq.write_table(pa.table({"embedding": list(H), "label": labels}), tmp_path / "e.parquet")
    assert open_embeddings(tmp_path / "e.parquet").read().columns["label"].to_pylist() == [*range(48), None, None]
    pq.write_table(pa.table({"embedding": list(H), "label": np.arange(50) / 3}), tmp_path / "f.parquet")
    with pytest.raises(QScoreError, match="labels: expected integers or strings"):
        open_embeddings(tmp_path / "f.parquet").read()


def test_a_link_to_nothing_is_named(tmp_path, H):
    np.save(tmp_path / "0.npy", H)
    (tmp_path / "1.npy").symlink_to(tmp_path / "gone.npy")
    with pytest.raises(QScoreError, match="1.npy: a link to a file that is not there"):
        open_embeddings(tmp_path)


def test_metadata_of_another_number_is_not_taken(tmp_path, H):
    for name in ("img_emb", "metadata"):
        (tmp_path / name).mkdir()
    for k in range(2):
        np.save(tmp_path / "img_emb" / f"img_emb_{k}.npy", H)
        pq.write_table(
            pa.table({"id": [f"{k}-{i}" for i in range(50)]}), tmp_path / "metadata" / f"metadata_{k}.parquet"
        )
    assert open_embeddings(tmp_path).read().columns["id"][50].as_py() == "1-0"
    (tmp_path / "metadata" / "metadata_0.parquet").rename(tmp_path / "metadata" / "metadata_2.parquet")
    with pytest.raises(QScoreError, match="metadata_1.parquet would be taken for the metadata of .*img_emb_0.npy"):
        open_embeddings(tmp_path)


def test_a_table_beside_a_matrix_is_no_metadata(tmp_path, H):
    np.save(tmp_path / "labels.npy", H[:, :3])
    pq.write_table(pa.table({"embedding": list(H)}), tmp_path / "e.parquet")
    with pytest.raises(QScoreError, match="e.parquet holds embeddings, and so does .*labels.npy"):
        open_embeddings(tmp_path)


def test_a_row_group_too_large_to_hold_is_read_through_a_small_buffer(tmp_path, monkeypatch, H):
    opened, ParquetFile = [], pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda *args, **options: opened.append(options) or ParquetFile(*args, **options)
    )
    pq.write_table(pa.table({"embedding": list(H)}), tmp_path / "e.parquet")
    for limit, expected in ((2**20, {"pre_buffer": True}), (1, {"pre_buffer": False, "buffer_size": 2**22})):
        monkeypatch.setattr(formats, "SEGMENT_BYTES", limit)
        store = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())
        shard = formats.open_parquet(_stores.Location(store, "e.parquet", "store/e.parquet"), None)
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in shard.batches(0)]), H)
        assert {key: opened[-1].get(key) for key in expected} == expected
