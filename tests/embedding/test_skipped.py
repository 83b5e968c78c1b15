import csv

import numpy as np
import pytest
from PIL import Image
from reference.tables import damage, table_bytes

from qscore import QScoreError, embed
from qscore._stores import StoreError
from qscore.embedding import Skipped, read_skipped, run, skipped_path
from qscore.images import open_images, subset
from qscore.images.sources import ImageRecord
from qscore.tables import open_embeddings


def test_images_that_cannot_be_read_are_left_out_and_listed(tmp_path, encoder, photos, caplog):
    whole = open_embeddings(embed(photos, encoder, tmp_path / "whole")).read()
    assert not skipped_path(tmp_path / "whole").exists()
    paths = damage(photos, 0, 4, 11)
    (photos / "b" / "03.png").write_bytes(b"<html>")
    table = open_embeddings(embed(photos, encoder, tmp_path / "e"))
    kept = [i for i in range(12) if i not in (0, 4, 7, 11)]
    batch = table.read()
    assert batch.columns["id"].to_pylist() == [whole.columns["id"][i].as_py() for i in kept]
    assert batch.columns["label"].to_pylist() == [whole.columns["label"][i].as_py() for i in kept]
    np.testing.assert_allclose(batch.embedding, whole.embedding[kept], atol=2e-6)
    assert table.record["n_rows"] == 8
    skipped = read_skipped(tmp_path / "e")
    assert [s.path for s in skipped] == [paths[0], paths[1], str(photos / "b" / "03.png"), paths[2]]
    assert skipped[2] == Skipped(
        "b/03.png",
        str(photos / "b" / "03.png"),
        "expected an image, got a file of no known image format; leave it out",
    )
    rows = list(csv.reader((tmp_path / "e.skipped.csv").read_text().splitlines()))
    assert rows[0] == ["id", "path", "reason"] and rows[1:] == [[s.id, s.path, s.reason] for s in skipped]
    assert f"left out, since they could not be read: 4, see {tmp_path / 'e.skipped.csv'}" in caplog.text


def test_what_is_left_out_depends_neither_on_batches_nor_on_workers(tmp_path, encoder, photos, monkeypatch):
    monkeypatch.setattr(run, "SHARD_ROWS", 5)
    damage(photos, 1, 5, 6, 7)
    tables = []
    for name, options in {"a": {}, "b": {"batch_size": 1}, "c": {"batch_size": 3}, "d": {"workers": 2}}.items():
        tables.append(open_embeddings(embed(photos, encoder, tmp_path / name, **options)).read())
        assert read_skipped(tmp_path / name) == read_skipped(tmp_path / "a")
        assert sorted(table_bytes(tmp_path / name)) == [
            "part-00000.parquet",
            "part-00001.parquet",
            "part-00002.parquet",
        ]
    assert table_bytes(tmp_path / "a") == table_bytes(tmp_path / "d")
    for table in tables:
        assert table.columns["id"] == tables[0].columns["id"]
        np.testing.assert_allclose(table.embedding, tables[0].embedding, atol=2e-6)


@pytest.mark.parametrize(
    "damaged", [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (0, 1, 2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
)
def test_shards_without_a_single_image(tmp_path, encoder, photos, monkeypatch, damaged):
    monkeypatch.setattr(run, "SHARD_ROWS", 4)
    paths = damage(photos, *damaged)
    embed(photos, encoder, tmp_path / "whole", batch_size=2)
    assert len(open_embeddings(tmp_path / "whole")) == 12 - len(damaged)
    assert [s.path for s in read_skipped(tmp_path / "whole")] == paths
    forward = encoder.backbone.forward
    monkeypatch.setattr(encoder.backbone, "forward", lambda x: pytest.fail("computed again"))
    embed(photos, encoder, tmp_path / "whole", batch_size=2)
    for kill in range(1, 7):
        calls = []

        def dies(x, kill=kill, calls=calls):
            calls.append(x)
            if len(calls) == kill:
                raise KeyboardInterrupt
            return forward(x)

        monkeypatch.setattr(encoder.backbone, "forward", dies)
        out = tmp_path / f"broken-{kill}"
        try:
            embed(photos, encoder, out, batch_size=2)
        except KeyboardInterrupt:
            if out.exists():
                with pytest.raises(QScoreError, match="rows are there|no embedding files"):
                    open_embeddings(out)
            monkeypatch.setattr(encoder.backbone, "forward", forward)
            embed(photos, encoder, out, batch_size=2)
        assert table_bytes(out) == table_bytes(tmp_path / "whole")
        assert skipped_path(out).read_bytes() == skipped_path(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("out", ["e", "old"])
def test_no_image_at_all(tmp_path, encoder, photos, digits, out):
    embed(digits, encoder, tmp_path / "old")
    before = table_bytes(tmp_path / "old")
    damage(photos, *range(12))
    with pytest.raises(QScoreError, match=r"none of 12 images can be read; the first: .*00\.png: the image is damaged"):
        embed(photos, encoder, tmp_path / out, overwrite=True)
    assert table_bytes(tmp_path / "old") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "photos"]


def test_on_error_raise_also_minds_what_was_left_out_before(tmp_path, encoder, photos):
    damage(photos, 3)
    embed(photos, encoder, tmp_path / "e")
    with pytest.raises(QScoreError, match=r"06\.png: the image is damaged"):
        embed(photos, encoder, tmp_path / "e", on_error="raise")


def test_a_list_of_an_earlier_table_goes_with_it(tmp_path, encoder, photos):
    damage(photos, 3)
    embed(photos, encoder, tmp_path / "e")
    assert skipped_path(tmp_path / "e").exists()
    Image.new("RGB", (9, 9)).save(photos / "a" / "06.png")
    embed(photos, encoder, tmp_path / "e", overwrite=True)
    assert not skipped_path(tmp_path / "e").exists() and read_skipped(tmp_path / "e") == []
    skipped_path(tmp_path / "e").write_text("mine")
    embed(photos, encoder, tmp_path / "e")
    assert skipped_path(tmp_path / "e").read_text() == "mine"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_fails_ends_the_run_and_leaves_no_image_out(tmp_path, encoder, monkeypatch, workers):
    monkeypatch.setattr(run, "SHARD_ROWS", 30)

    class Failing:
        def __init__(self, source):
            self.source, self.name, self.labels = source, source.name, source.labels
            self.fingerprint, self.record = source.fingerprint, source.record

        def __len__(self):
            return len(self.source)

        def image(self, index):
            if index == 70:
                raise StoreError("the store does not answer")
            return self.source.image(index)

    digits = subset(open_images("digits"), range(100))
    with pytest.raises(StoreError, match="^the store does not answer$"):
        embed(Failing(digits), encoder, tmp_path / "e", batch_size=8, workers=workers)
    assert sorted(table_bytes(tmp_path / "e")) == ["part-00000.parquet", "part-00001.parquet"]
    embed(digits, encoder, tmp_path / "e", batch_size=8)
    assert len(open_embeddings(tmp_path / "e")) == 100 and read_skipped(tmp_path / "e") == []


def test_images_too_elongated_to_resize_are_left_out(tmp_path, encoder, photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (1, 400)).save(photos / "a" / "99.png")
    embed(photos, encoder, tmp_path / "e")
    [skipped] = read_skipped(tmp_path / "e")
    assert skipped.id == "a/99.png" and "is too elongated" in skipped.reason
    with pytest.raises(QScoreError, match=r"99\.png: an image of 1 x 400 pixels is too elongated"):
        embed(photos, encoder, tmp_path / "e2", on_error="raise")


def test_many_images_in_a_row_that_cannot_be_read_fit_into_a_shard(tmp_path, encoder, photos):
    class Mostly:
        name, labels, class_names, fingerprint = "mostly", None, None, "none"

        def __len__(self):
            return 20_000

        def record(self, index):
            return ImageRecord(f"images/{index:09d}.jpg", f"/data/images/{index:09d}.jpg", None)

        def image(self, index):
            if index == 0:
                return Image.new("RGB", (8, 8))
            raise QScoreError(f"/data/images/{index:09d}.jpg: cannot read the image: Permission denied")

    embed(Mostly(), encoder, tmp_path / "e")
    assert len(read_skipped(tmp_path / "e")) == 19_999
    # Readers refuse metadata of 100 MB, which a million such images would then have.
    assert (tmp_path / "e" / "part-00000.parquet").stat().st_size < 20_000 * 100
