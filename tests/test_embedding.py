import csv
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from qscore import QScoreError, embed
from qscore._stores import StoreError
from qscore.embedding import Skipped, read_skipped, run, skipped_path, views_path
from qscore.embedding.forward import Plain, Views
from qscore.encoders import Encoder, Preprocessing, Source, build_backbone
from qscore.images import open_image, open_images, subset
from qscore.images.augment import Augmentation, Augmenter
from qscore.tables import open_embeddings


def make_encoder(seed=0, name="small:resnet10-4"):
    torch.manual_seed(seed)
    preprocessing = Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Encoder(build_backbone(name), Source("test", name, preprocessing))


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture
def digits():
    return subset(open_images("digits"), range(100))


def table_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_rows_are_the_encoders_output_with_ids_labels_and_paths(tmp_path, encoder, digits):
    table = open_embeddings(embed(digits, encoder, tmp_path / "e", batch_size=32))
    batch = table.read()
    with torch.no_grad():
        expected = encoder(torch.stack([encoder.preprocess(digits.image(i)) for i in range(100)]))
    np.testing.assert_allclose(batch.embedding, expected, atol=2e-6)
    records = [digits.record(i) for i in range(100)]
    assert batch.columns["id"].to_pylist() == [r.id for r in records]
    assert batch.columns["path"].to_pylist() == [r.path for r in records]
    assert batch.columns["label"].to_pylist() == [r.label for r in records]
    assert table.record["nonnegative"] and table.record["encoder"]["architecture"] == "small:resnet10-4"


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, encoder, digits, monkeypatch):
    monkeypatch.setattr(run, "SHARD_ROWS", 30)
    embed(digits, encoder, tmp_path / "whole", batch_size=8)
    forward, calls = encoder.backbone.forward, []

    def dies_in_the_third_shard(x):
        calls.append(len(x))
        if sum(calls) > 70:
            raise KeyboardInterrupt
        return forward(x)

    monkeypatch.setattr(encoder.backbone, "forward", dies_in_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        embed(digits, encoder, tmp_path / "broken", batch_size=8)
    assert sorted(table_bytes(tmp_path / "broken")) == ["part-00000.parquet", "part-00001.parquet"]
    with pytest.raises(QScoreError, match="60 of 100 rows are there"):
        open_embeddings(tmp_path / "broken")
    (tmp_path / "broken" / ".part-00002.parquet.0abc.tmp").write_bytes(b"half a shard")
    calls.clear()
    monkeypatch.setattr(encoder.backbone, "forward", lambda x: calls.append(len(x)) or forward(x))
    embed(digits, encoder, tmp_path / "broken", batch_size=8)
    assert sum(calls) == 40
    assert table_bytes(tmp_path / "broken") == table_bytes(tmp_path / "whole")


def test_a_finished_table_is_left_alone(tmp_path, encoder, digits, monkeypatch):
    embed(digits, encoder, tmp_path / "e")
    monkeypatch.setattr(encoder.backbone, "forward", lambda x: pytest.fail("computed again"))
    embed(digits, encoder, tmp_path / "e")


def test_worker_processes_give_the_same_table(tmp_path, encoder, digits):
    embed(digits, encoder, tmp_path / "a")
    embed(digits, encoder, tmp_path / "b", workers=2)
    assert table_bytes(tmp_path / "a") == table_bytes(tmp_path / "b")


@pytest.mark.parametrize("change", ["encoder", "images", "batch_size", "precision"])
def test_another_table_needs_overwrite(tmp_path, encoder, digits, change):
    embed(digits, encoder, tmp_path / "e")
    other = {
        "encoder": {"encoder": make_encoder(seed=1)},
        "images": {"images": subset(open_images("digits"), range(50))},
        "batch_size": {"batch_size": 7},
        "precision": {"precision": "bf16-mixed"},
    }[change]
    arguments = {"images": digits, "encoder": encoder, "out": tmp_path / "e", **other}
    with pytest.raises(QScoreError, match="other images, another encoder or other settings.*--overwrite"):
        embed(**arguments)
    embed(**arguments, overwrite=True)
    assert len(open_embeddings(tmp_path / "e")) == len(arguments["images"])


def test_a_folder_with_other_files_is_never_touched(tmp_path, encoder, digits):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(QScoreError, match=r"holds other files \(notes.txt\)"):
        embed(digits, encoder, tmp_path, overwrite=True)
    with pytest.raises(QScoreError, match="is no folder"):
        embed(digits, encoder, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_whole_shards_stay(tmp_path, encoder, monkeypatch, workers):
    monkeypatch.setattr(run, "SHARD_ROWS", 4)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (i, i, i)).save(images / f"{i}.png")
    (images / "5.png").write_bytes((images / "5.png").read_bytes()[:40])
    with pytest.raises(QScoreError, match=r"5\.png") as caught:
        embed(images, encoder, tmp_path / "e", workers=workers, on_error="raise")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"workers": -1}, "workers >= 0"),
        ({"precision": "fp8"}, "precision: expected one of 32-true, bf16-mixed, 16-mixed, got 'fp8'"),
        ({"views": 128}, "views: expected 0 to 127, got 128"),
        ({"on_error": "stop"}, "on_error: expected one of skip, raise, got 'stop'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "quantum"}, "device 'quantum' cannot be used here"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, encoder, digits, arguments, message):
    with pytest.raises(QScoreError, match=message):
        embed(digits, encoder, tmp_path / "e", **arguments)
    assert not (tmp_path / "e").exists()


def test_plain_pages_for_embeddings(tmp_path, encoder, digits):
    embed(digits, encoder, tmp_path / "e")
    metadata = pq.read_metadata(tmp_path / "e" / "part-00000.parquet")
    columns = [metadata.row_group(0).column(k) for k in range(metadata.num_columns)]
    (embedding_column,) = [c for c in columns if c.path_in_schema.startswith("embedding")]
    assert embedding_column.compression == "UNCOMPRESSED" and not embedding_column.has_dictionary_page


def test_a_table_to_be_replaced_stays_until_its_successor_is_whole(tmp_path, encoder, digits, monkeypatch):
    embed(digits, encoder, tmp_path / "e")
    before = table_bytes(tmp_path / "e")
    other = make_encoder(seed=1)
    forward = other.backbone.forward
    monkeypatch.setattr(other.backbone, "forward", lambda x: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(digits, other, tmp_path / "e", overwrite=True)
    assert {name: data for name, data in table_bytes(tmp_path / "e").items()} == before
    monkeypatch.setattr(other.backbone, "forward", forward)
    embed(digits, other, tmp_path / "e", overwrite=True)
    embed(digits, other, tmp_path / "whole")
    assert table_bytes(tmp_path / "e") == table_bytes(tmp_path / "whole")


@pytest.fixture
def photos(tmp_path):
    """Twelve images in two classes, and a way to damage some."""
    for i in range(12):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * i, i, 255 - i)).save(folder / f"{i:02d}.png")
    return tmp_path / "photos"


def damage(photos, *positions):
    """Truncate the images at these positions of the source, which come first a/00, a/02, ..., then b/01, ..."""
    source = open_images(photos)
    paths = [source.record(i).path for i in positions]
    for path in paths:
        os.truncate(path, 50)  # amid the pixels
    return paths


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


def test_the_first_batch_waits_for_no_fingerprint(tmp_path, encoder, digits):
    class Slow:
        name, labels, class_names, record = digits.name, digits.labels, None, digits.record
        begun = False

        @property
        def fingerprint(self):
            while not Slow.begun:  # the first image lets it go on
                pass
            return digits.fingerprint

        def __len__(self):
            return len(digits)

        def image(self, index):
            Slow.begun = True
            return digits.image(index)

    embed(Slow(), encoder, tmp_path / "a")
    embed(digits, encoder, tmp_path / "b")
    assert table_bytes(tmp_path / "a") == table_bytes(tmp_path / "b")


def make_views(encoder, views=3, seed=0):
    preprocess = encoder.preprocess
    return Views(preprocess, Augmenter(Augmentation(size=8), preprocess.mean, preprocess.std), views, seed)


def test_views_are_rows_of_a_second_table(tmp_path, encoder, digits):
    embed(digits, encoder, tmp_path / "plain")
    embed(digits, encoder, tmp_path / "e", views=3)
    assert table_bytes(tmp_path / "plain") == table_bytes(tmp_path / "e")
    assert views_path(tmp_path / "e") == tmp_path / "e-views"
    table = open_embeddings(tmp_path / "e-views")
    batch = table.read()
    ids = [digits.record(i).id for i in range(100)]
    assert batch.columns["id"].to_pylist() == [id for id in ids for _ in range(3)]
    assert batch.columns["view"].to_pylist() == [1, 2, 3] * 100
    assert batch.columns["label"].to_pylist() == [digits.record(i).label for i in range(100) for _ in range(3)]
    assert [open_image(path).size for path in batch.columns["path"].to_pylist()[:2]] == [(8, 8)] * 2
    assert pq.read_schema(tmp_path / "e-views" / "part-00000.parquet").field("view").type == "int8"
    assert table.record["views"] == 3 and table.record["augmentation"]["size"] == 8
    make = make_views(encoder)
    with torch.no_grad():
        expected = encoder(torch.cat([make(digits.image(i), ids[i]) for i in range(100)]))
    np.testing.assert_allclose(batch.embedding, expected, atol=2e-6)


def test_a_view_is_a_function_of_seed_image_and_number(encoder, digits):
    image, other = digits.image(3), digits.image(4)
    state = torch.get_rng_state()
    views = make_views(encoder)(image, "a")
    assert views.shape == (3, 3, 8, 8) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(views[0], views[1])
    torch.manual_seed(5)
    assert torch.equal(make_views(encoder)(image, "a"), views)
    assert torch.equal(make_views(encoder, views=2)(image, "a"), views[:2])
    assert not torch.equal(make_views(encoder)(image, "b"), views)
    assert not torch.equal(make_views(encoder, seed=1)(image, "a"), views)
    assert not torch.equal(make_views(encoder)(other, "a"), views)


def test_views_without_any_step_are_the_image_itself(encoder, digits):
    steps = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    preprocess = encoder.preprocess
    still = Views(preprocess, Augmenter(Augmentation(size=8, **steps), preprocess.mean, preprocess.std), 2, 0)
    for image in (digits.image(0), digits.image(0).resize((30, 20))):
        plain = Plain(preprocess)(image, "a")
        torch.testing.assert_close(still(image, "a"), plain.expand(2, 3, 8, 8), atol=1e-5, rtol=0)


def test_views_depend_neither_on_batches_nor_on_workers(tmp_path, encoder, digits, monkeypatch):
    monkeypatch.setattr(run, "SHARD_ROWS", 50)
    few = subset(digits, range(40))
    embed(few, encoder, tmp_path / "a", views=3)
    expected = open_embeddings(tmp_path / "a-views").read().embedding
    embed(few, encoder, tmp_path / "b", views=3, workers=2)
    assert table_bytes(tmp_path / "b-views") == table_bytes(tmp_path / "a-views")
    for batch_size in (1, 7):
        out = embed(few, encoder, tmp_path / f"c{batch_size}", views=3, batch_size=batch_size)
        np.testing.assert_allclose(open_embeddings(views_path(out)).read().embedding, expected, atol=2e-6)
    other = embed(few, encoder, tmp_path / "d", views=3, seed=1)
    assert not np.array_equal(open_embeddings(views_path(other)).read().embedding, expected)


def test_views_that_were_broken_off_resume_to_the_same_bytes(tmp_path, encoder, photos, monkeypatch):
    monkeypatch.setattr(run, "SHARD_ROWS", 6)
    damage(photos, 0, 5)
    embed(photos, encoder, tmp_path / "whole", views=2, batch_size=2)
    assert len(open_embeddings(tmp_path / "whole-views")) == 20
    assert [s.id for s in read_skipped(tmp_path / "whole-views")] == ["a/00.png", "a/10.png"]
    forward, calls = encoder.backbone.forward, []

    def dies_among_the_views(x):
        calls.append(x)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return forward(x)

    monkeypatch.setattr(encoder.backbone, "forward", dies_among_the_views)
    with pytest.raises(KeyboardInterrupt):
        embed(photos, encoder, tmp_path / "e", views=2, batch_size=2)
    assert 0 < len(table_bytes(tmp_path / "e-views")) < 4
    monkeypatch.setattr(encoder.backbone, "forward", forward)
    embed(photos, encoder, tmp_path / "e", views=2, batch_size=2)
    for name in ("", "-views"):
        assert table_bytes(tmp_path / f"e{name}") == table_bytes(tmp_path / f"whole{name}")


@pytest.mark.parametrize("change", [{"views": 3}, {"seed": 1}, {"augmentation": Augmentation(flip=0.0)}])
def test_other_views_need_overwrite(tmp_path, encoder, digits, change):
    embed(digits, encoder, tmp_path / "e", views=2)
    with pytest.raises(QScoreError, match="e-views holds a table of other images, another encoder or other settings"):
        embed(digits, encoder, tmp_path / "e", **{"views": 2} | change)
    embed(digits, encoder, tmp_path / "e", **{"views": 2} | change, overwrite=True)


def test_a_views_folder_that_is_taken_is_refused_before_any_work(tmp_path, encoder, digits, monkeypatch):
    (tmp_path / "e-views").mkdir()
    (tmp_path / "e-views" / "notes.txt").write_text("mine")
    monkeypatch.setattr(encoder.backbone, "forward", lambda x: pytest.fail("computed"))
    with pytest.raises(QScoreError, match=r"e-views holds other files \(notes.txt\)"):
        embed(digits, encoder, tmp_path / "e", views=1)
    assert not (tmp_path / "e").exists()
