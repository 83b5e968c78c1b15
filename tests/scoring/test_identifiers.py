import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from qscore import QScoreError
from qscore.scoring import identifiers


def check(ids, views=None, size=7):
    columns = {"id": pa.array(ids)} if views is None else {"id": pa.array(ids), "view": pa.array(views, pa.int8())}
    table = pa.table(columns)
    identifiers.check_identifiers(lambda: table.to_batches(size), len(ids), "table")


@pytest.mark.parametrize("chunk", [5, 2**24])
def test_ids_that_come_twice_are_named(monkeypatch, chunk):
    monkeypatch.setattr(identifiers, "CHUNK_ROWS", chunk)
    ids = [f"image {i}" for i in range(100)]
    check(ids)
    check(["", *ids])
    for first, second in ((0, 99), (13, 14)):
        with pytest.raises(QScoreError, match=f"table: 1 ids come more than once, the first is 'image {first}'"):
            check([ids[first] if i == second else text for i, text in enumerate(ids)])


def test_views_tell_ids_apart():
    check(["a", "a", "b", "b"], [1, 2, 1, 2])
    with pytest.raises(QScoreError, match=r"the first is 'a \(view 1\)'"):
        check(["a", "b", "a", "b"], [1, 1, 1, 2])


def test_equal_hashes_of_different_ids_are_not_duplicates(monkeypatch):
    monkeypatch.setattr(identifiers, "_hashes", lambda batch: np.zeros(len(batch), np.uint64))
    check([str(i) for i in range(50)])
    with pytest.raises(QScoreError, match="'7'"):
        check([str(i) for i in range(50)] + ["7"])


def test_hashes_are_fnv_1a():
    ids = ["", "a", "foobar", "Ångström"]
    for text, value in zip(ids, identifiers._hashes(pa.record_batch({"id": pa.array(ids)})), strict=True):
        expected = 0xCBF29CE484222325
        for byte in text.encode():
            expected = (expected ^ byte) * 0x100000001B3 % 2**64
        assert int(value) == expected
    sliced = pa.record_batch({"id": pa.array(["x", *ids])}).slice(1)
    np.testing.assert_array_equal(
        identifiers._hashes(sliced), identifiers._hashes(pa.record_batch({"id": pa.array(ids)}))
    )


def test_many_repeated_ids_are_found(monkeypatch):
    monkeypatch.setattr(identifiers, "NAMED", 10)
    with pytest.raises(QScoreError, match="10 or more ids come more than once"):
        check([str(i % 500) for i in range(1000)])


@pytest.mark.parametrize("views", [["1", "2"], [1, None]])
def test_views_that_are_no_numbers(views):
    table = pa.table({"id": ["a", "b"], "view": views})
    with pytest.raises(QScoreError, match="views: expected integers without gaps"):
        identifiers.check_identifiers(table.to_batches, 2, "table")


def test_a_sample_is_chosen_by_ids_alone(rng):
    ids = pa.array(f"image-{i:06d}.png" for i in range(20_000))
    chosen = identifiers.sampled_rows({"id": ids}, 0.3)
    order = rng.permutation(20_000)
    np.testing.assert_array_equal(identifiers.sampled_rows({"id": ids.take(order)}, 0.3), chosen[order])
    assert stats.binomtest(int(chosen.sum()), 20_000, 0.3).pvalue > 1e-4
    # Neighbouring ids are not chosen together.
    assert stats.binomtest(int((chosen[1:] & chosen[:-1]).sum()), 19_999, 0.09).pvalue > 1e-4
    assert identifiers.sampled_rows({"id": ids}, 1.0).all()
