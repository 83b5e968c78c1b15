import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from reference.tables import make_encoder, table_bytes
from timm.models import VisionTransformer
from torch import nn

from qscore import QScoreError, embed
from qscore.embedding import run, shards, skipped_path, views_path
from qscore.encoders import Encoder, build_backbone
from qscore.encoders.readout import read_out
from qscore.images import open_images, subset
from qscore.tables import open_embeddings


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


def read_at(**choices):
    """An encoder read at one of two layers or tokens, whose weights, keys and width are the same."""
    torch.manual_seed(0)
    if "tokens" in choices:
        network = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=0)
    else:
        network = build_backbone("small:resnet10-4")
    chosen = {"layer": None, "tokens": None} | choices
    return Encoder(read_out(network, **chosen), replace(make_encoder().source, **chosen))


@pytest.mark.parametrize(
    "choices", [("layer", "features.stage1.0.conv1", "features.stage1.0.conv2"), ("tokens", "class", "patches")]
)
def test_another_layer_or_other_tokens_do_not_go_on_with_a_partial_table(tmp_path, digits, monkeypatch, choices):
    monkeypatch.setattr(run, "SHARD_ROWS", 30)
    name, *values = choices
    encoder, other = (read_at(**{name: value}) for value in values)
    weights, others = encoder.state_dict(), other.state_dict()
    assert list(weights) == list(others) and all(torch.equal(weights[key], others[key]) for key in weights)
    embed(digits, encoder, tmp_path / "e", batch_size=8)
    for shard in ("part-00002.parquet", "part-00003.parquet"):
        (tmp_path / "e" / shard).unlink()
    with pytest.raises(QScoreError, match="another encoder or other settings"):
        embed(digits, other, tmp_path / "e", batch_size=8)
    embed(digits, other, tmp_path / "e", batch_size=8, overwrite=True)
    embed(digits, other, tmp_path / "whole", batch_size=8)
    assert table_bytes(tmp_path / "e") == table_bytes(tmp_path / "whole")


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


def replaced_halfway(tmp_path, digits, moved):
    """Return a table some of whose shards have been replaced by a whole successor's; the others are still to come."""
    other = make_encoder(seed=1)
    embed(digits, other, tmp_path / "whole")
    (tmp_path / "e" / ".successor").mkdir(parents=True)
    for k, shard in enumerate(sorted((tmp_path / "whole").iterdir())):
        folder = tmp_path / "e" if k < moved else tmp_path / "e" / ".successor"
        (folder / shard.name).write_bytes(shard.read_bytes())
    return other


@pytest.mark.parametrize("moved", range(5))
def test_a_replacement_killed_while_it_moved_loses_nothing(tmp_path, digits, monkeypatch, moved):
    monkeypatch.setattr(run, "SHARD_ROWS", 30)
    other = replaced_halfway(tmp_path, digits, moved)
    monkeypatch.setattr(other.backbone, "forward", lambda x: pytest.fail("computed again"))
    embed(digits, other, tmp_path / "e", overwrite=True)
    assert table_bytes(tmp_path / "e") == table_bytes(tmp_path / "whole")
    assert not (tmp_path / "e" / ".successor").exists()


def test_a_replacement_killed_while_it_wrote_is_resumed(tmp_path, encoder, digits, monkeypatch):
    monkeypatch.setattr(run, "SHARD_ROWS", 30)
    other = replaced_halfway(tmp_path, digits, 0)
    embed(digits, encoder, tmp_path / "old")
    for shard in (tmp_path / "old").iterdir():
        shard.rename(tmp_path / "e" / shard.name)
    (tmp_path / "e" / ".successor" / ".part-00003.parquet.0abc.tmp").write_bytes(b"half a shard")
    (tmp_path / "e" / ".successor" / "part-00003.parquet").unlink()
    embed(digits, other, tmp_path / "e", overwrite=True)
    assert table_bytes(tmp_path / "e") == table_bytes(tmp_path / "whole")
    assert not (tmp_path / "e" / ".successor").exists()


@pytest.mark.parametrize("name", ["part-0.parquet", "part-00000-8f2e-c000.snappy.parquet", "part-notes.parquet"])
def test_tables_by_others_are_never_replaced(tmp_path, encoder, digits, name):
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(QScoreError, match=rf"holds other files \({name}\)"):
        embed(digits, encoder, tmp_path, overwrite=True)
    assert (tmp_path / name).read_bytes() == b"theirs"


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    names = [f"part-{k:05d}.parquet" for k in (99_998, 99_999, 100_000, 100_001)]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in shards._list_shards(tmp_path)] == names


def test_the_working_folder_has_a_name_too(tmp_path, encoder, digits, monkeypatch):
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    for folder, out in (("here", "."), ("here/deeper", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert views_path(out) == tmp_path / "here-views" and skipped_path(out) == tmp_path / "here.skipped.csv"
    (tmp_path / "here" / "deeper").rmdir()
    monkeypatch.chdir(tmp_path / "here")
    embed(digits, encoder, ".", views=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "here-views", *["part-00000.parquet"] * 2]


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, encoder, digits, monkeypatch):
    embed(digits, encoder, tmp_path / "done")
    (tmp_path / "file").touch()
    monkeypatch.setattr(encoder.backbone, "forward", lambda x: pytest.fail("computed"))
    with pytest.raises(QScoreError, match="cannot write .*file/e: .*file is no folder"):
        embed(digits, encoder, tmp_path / "file" / "e")
    monkeypatch.setattr(shards.os, "access", lambda *_: False)
    with pytest.raises(QScoreError, match="cannot write .*new/e: .* may not be written to; choose another place"):
        embed(digits, encoder, tmp_path / "new" / "e")
    embed(digits, encoder, tmp_path / "done")  # nothing is to be written


@pytest.mark.parametrize("label", [2**63, -(2**63) - 1])
def test_labels_too_large_are_refused_before_any_work(tmp_path, encoder, digits, monkeypatch, label):
    digits.labels[3] = label
    monkeypatch.setattr(encoder.backbone, "forward", lambda x: pytest.fail("computed"))
    with pytest.raises(QScoreError, match=rf"digits: expected labels from -2\*\*63 to 2\*\*63 - 1, got {label}"):
        embed(digits, encoder, tmp_path / "e")


def test_a_single_feature_is_refused_before_any_work(tmp_path, digits):
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), make_encoder().source)
    with pytest.raises(QScoreError, match="encoder: expected at least 2 features, got 1"):
        embed(digits, encoder, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_several_sources_end_to_end(tmp_path, encoder, photos):
    embed([photos / "a", photos / "b"], encoder, tmp_path / "e")
    ids = open_embeddings(tmp_path / "e").read().columns["id"].to_pylist()
    assert ids == [f"{i:02d}.png" for i in (*range(0, 12, 2), *range(1, 12, 2))]


def test_an_interrupted_run_waits_for_no_fingerprint(tmp_path, encoder, digits):
    ended = threading.Event()

    class Interrupted:
        name, labels, class_names, record = digits.name, digits.labels, None, digits.record
        waited = None

        @property
        def fingerprint(self):
            Interrupted.waited = not ended.wait(20)
            return digits.fingerprint

        def __len__(self):
            return len(digits)

        def image(self, index):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(Interrupted(), encoder, tmp_path / "e")
    assert Interrupted.waited is None
    ended.set()


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
