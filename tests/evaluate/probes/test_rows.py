import re

import numpy as np
import pyarrow as pa
import pytest

from qscore import QScoreError
from qscore.evaluate.probes import fit_probe, mapped_rows, rows
from qscore.evaluate.probes.rows import training_rows
from qscore.tables import open_embeddings, write_shard

H4 = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 8.0]])
NAN = float("nan")
MIXED = "labels: expected all integers or all strings"


@pytest.mark.parametrize(
    ("H", "labels", "message"),
    [
        (H4, [4] * 4, "the probe needs at least two classes, got 1: [4]"),
        (H4, [1, 2, 3], "labels: expected 4 labels, one for each row, got shape (3,)"),
        (H4, ["a", 1, "b", 2.5], f"{MIXED}, got float, int and str; convert them to strings"),
        (H4, np.array(["a", 1, "b", True], object), f"{MIXED}, got bool, int and str; convert them to strings"),
        (H4, np.array(["a", None, "b", None], object), "labels: 2 of 4 rows have no label; leave them out"),
        (H4, np.array([None] * 4), "labels: none of the 4 rows has a label; a probe learns from labelled rows"),
        (H4, np.array([NAN] * 4), "labels: none of the 4 rows has a label; a probe learns from labelled rows"),
        (H4, np.array([1.0, NAN, 2.0, 1.0]), "labels: 1 of 4 rows have no label; leave them out"),
        (H4, np.array([1.0, 1.5, 2.0, 1.0]), "labels: expected integers or strings, got float64"),
        (H4, np.array([1.0, np.inf, 2.0, 1.0]), "labels: expected integers or strings, got float64"),
        (H4, np.array([1, 2, 1, 2], "M8[s]"), "labels: expected integers or strings, got datetime64[s]"),
        (H4 * NAN, [1, 2, 1, 2], "H: none of the 4 rows is valid, all hold NaN or infinity"),
        (H4 * 0 + 7, [1, 2, 1, 2], "H: all 4 rows are the same, so no probe can tell their classes apart"),
        (np.array([[NAN, 1], [2, 3], [4, 5]]), ["a", "b", "b"], "the probe needs at least two classes, got 1: ['b']"),
        (H4.astype(int), [1, 2, 1, 2], "H: expected floating-point values, got int64; convert it to float32 first"),
    ],
)
@pytest.mark.parametrize("kind", ["logistic", "knn", "sgd"])
def test_what_cannot_be_learned_from_is_refused(kind, H, labels, message):
    with pytest.raises(QScoreError, match=f"^{re.escape(message)}$"):
        fit_probe(kind, H, labels)


@pytest.mark.parametrize(
    "labels",
    [
        [3, 5, 3, 5],
        np.array([3.0, 5.0, 3.0, 5.0]),
        np.array([3, np.int64(5), np.uint8(3), 5], object),
        np.array([3, 5, 3, 5], np.uint8),
    ],
)
def test_whole_numbers_are_labels_however_they_are_stored(labels):
    assert training_rows(H4, labels).classes.tolist() == [3, 5]
    assert training_rows(H4, labels).codes.tolist() == [0, 1, 0, 1]


def test_names_are_labels_however_they_are_stored():
    for labels in (["b", "a", "b", "a"], np.array(["b", "a", "b", "a"], object), np.array([b"b", b"a", b"b", b"a"])):
        assert training_rows(H4, labels).codes.tolist() == [1, 0, 1, 0]


def test_rows_with_nan_or_infinity_are_left_out_and_counted(rng):
    H, labels = rng.normal(size=(60, 3)), np.arange(60) % 2
    H[labels == 1] += 5
    H[[7, 9], [0, 2]] = np.nan, -np.inf
    kept = np.delete(np.arange(60), [7, 9])
    one, other = fit_probe("logistic", H, labels), fit_probe("logistic", H[kept], labels[kept])
    np.testing.assert_array_equal(one.predict(H[kept])[1], other.predict(H[kept])[1])
    assert one.describe()["n_invalid"] == 2 and one.n_train == 58
    assert "Of the training rows, 2 with NaN or infinity took no part." in one.sentences()
    with pytest.raises(QScoreError, match="^H: 2 of 60 rows hold NaN or infinity, the first is row 7; leave them out$"):
        one.predict(H)
    with pytest.raises(QScoreError, match="^H: expected the 3 features that the probe was fitted on, got 2; both must"):
        one.predict(H[:, :2])


def test_classes_that_no_training_row_has_are_counted_and_named(rng):
    H, labels = rng.normal(size=(40, 3)), np.array(["a", "b"] * 20)
    probe = fit_probe("knn", H, labels, test_labels=["a", "x", "y", "x", "b"])
    described = probe.describe()
    assert (described["unseen_classes"], described["n_unseen"], described["majority"]) == (["x", "y"], 3, 0.2)
    assert probe.sentences()[-1] == (
        "2 of the classes under test (x, y) cannot be learned, for want of training rows: "
        "their 3 rows always count as wrong."
    )
    assert "x" not in probe.predict(H)[0]
    many = fit_probe("knn", H, labels, test_labels=list("cdefghij"))
    assert "8 of the classes under test (c, d, e, f, g, ...) cannot" in many.sentences()[-1]
    assert fit_probe("knn", H, labels).describe()["n_unseen"] == 0


def test_names_and_numbers_do_not_mix(rng):
    with pytest.raises(QScoreError) as error:
        fit_probe("knn", rng.normal(size=(40, 3)), ["1", "2"] * 20, test_labels=[1, 2])
    assert str(error.value) == (
        "labels: those of the training rows are names, those of the rows under test numbers; write both the same way"
    )


@pytest.mark.parametrize("held", [2**30, 0])
def test_a_table_is_read_or_mapped(tmp_path, rng, monkeypatch, held):
    monkeypatch.setattr(rows, "HELD_IN_MEMORY", held)
    H = rng.normal(size=(50, 6)).astype(np.float16)
    for k in range(2):
        columns = {"id": pa.array([f"{i + 25 * k}" for i in range(25)]), "label": pa.array(["a", "b"] * 12 + ["c"])}
        write_shard(tmp_path / f"{k}.parquet", H[25 * k : 25 * (k + 1)], columns, {})
    with mapped_rows(open_embeddings(tmp_path)) as (found, columns):
        np.testing.assert_array_equal(found, H)
        assert found.dtype == np.float16 and isinstance(found, np.memmap) == (held == 0)
        assert columns["id"].to_pylist() == [str(i) for i in range(50)]
        labels = columns["label"].to_numpy()
        mapped = fit_probe("knn", found, labels).predict(H)
        place = getattr(found, "filename", None)
    np.testing.assert_array_equal(mapped[1], fit_probe("knn", H, labels).predict(H)[1])
    assert place is None or not place.exists()


def test_blocks_of_any_size_give_the_same_probe(rng, monkeypatch):
    H, labels = rng.normal(size=(80, 5)).astype(np.float32), np.arange(80) % 4
    H[np.arange(80), labels] += 2
    whole = fit_probe("logistic", H, labels)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 8 * 5 * 11)
    pieces = fit_probe("logistic", H, labels)
    assert whole.describe() == pieces.describe()
    np.testing.assert_allclose(whole.predict(H)[1], pieces.predict(H)[1], atol=1e-4)
