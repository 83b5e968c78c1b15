import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from reference.tables import damage, table_bytes

from qscore import QScoreError, embed
from qscore.embedding import read_skipped, run, views_path
from qscore.embedding.forward import Plain, Views
from qscore.images import open_image, subset
from qscore.images.augment import Augmentation, Augmenter
from qscore.tables import open_embeddings


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
