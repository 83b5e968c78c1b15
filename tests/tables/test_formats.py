import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from qscore import QScoreError
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
        (lambda p: np.savez(p / "x.npz", a=np.array([{}], dtype=object)), "nothing is unpickled"),
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
