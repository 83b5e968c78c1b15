import numpy as np
import pyarrow as pa
import pytest
from reference import cards as naive
from sklearn.metrics import adjusted_mutual_info_score

from qscore import QScoreError
from qscore.explain.attributes import attribute_codes, carried
from qscore.explain.cards import correlations, feature_cards, read_activity
from qscore.explain.joining import iter_joined
from qscore.images import open_images
from qscore.tables import write_shard

R = 20


def tables(rng, n=150, labels=None, correct=None):
    """A score table with ties in its deviations, and a feature table."""
    active = [sorted(rng.choice(R, rng.integers(0, 6), replace=False).tolist()) for _ in range(n)]
    active[3] = []
    active = [[j for j in features if j != 11] for features in active]  # a feature of D that never fires here
    deviation = [[float(np.float32(rng.integers(1, 9) / 8)) for _ in features] for features in active]
    columns = {
        "id": [f"i{k}" for k in range(n)],
        "q_score": pa.array(rng.random(n), pa.float32()),
        "active": pa.array(active, pa.list_(pa.int32())),
        "deviation": pa.array(deviation, pa.list_(pa.float32())),
        "valid": [True] * n,
    }
    columns |= {} if labels is None else {"label": labels}
    columns |= {} if correct is None else {"correct": pa.array(correct, pa.bool_())}
    order = rng.permutation(R)  # a feature table need not be in order
    rank = np.argsort(rng.permutation(R))
    features = pa.table(
        {
            "feature": pa.array(order, pa.int32()),
            "count": pa.array(order * 3, pa.int64()),
            "activation_rate": order * 3 / 100,
            "rank": pa.array(rank[order], pa.int32()),
            "discriminative": np.isin(order, [1, 4, 5, 11, 17]),
        }
    )
    return pa.table(columns), features, active, deviation, rank


@pytest.mark.parametrize("kind", [str, int])
def test_cards_are_what_a_loop_finds(rng, kind):
    labels = [None if k % 9 == 0 else kind(rng.integers(0, 4)) for k in range(150)]
    correct = [None if k % 7 == 0 else bool(rng.random() < 0.6) for k in range(150)]
    rows, features, active, deviation, rank = tables(rng, labels=labels, correct=correct)
    found = feature_cards(rows, features)
    shares = naive.q_shares(active, deviation, [1, 4, 5, 11, 17])
    assert [card["feature"] for card in found.to_pylist()] == sorted(shares, key=lambda j: -shares[j])
    known = [value for value in correct if value is not None]
    for card in found.to_pylist():
        j = card["feature"]
        expected = naive.card(j, rows["id"].to_pylist(), active, deviation, labels, correct)
        assert (card["rank"], card["count"], card["activation_rate"]) == (rank[j], 3 * j, 3 * j / 100)
        for name, value in (expected | {"q_share": shares[j], "correct_base": np.mean(known)}).items():
            assert card[name] == (pytest.approx(value) if value is not None else None), (j, name)
    assert sum(found["q_share"].to_pylist()) == pytest.approx(1)
    never = next(card for card in found.to_pylist() if card["feature"] == 11)
    assert never["classes"] == never["top_ids"] == [] and never["lift"] is never["correct_share"] is None


def test_without_labels_and_outcomes_there_are_no_such_columns(rng):
    rows, features, *_ = tables(rng)
    assert feature_cards(rows, features).column_names == [
        *("feature", "rank", "count", "activation_rate", "n_active", "q_share", "mean_deviation"),
        *("top_ids", "top_deviations"),
    ]
    empty = pa.array([None] * rows.num_rows, pa.string())
    assert feature_cards(rows.append_column("label", empty), features).column_names[-1] == "top_deviations"


def test_without_discriminative_features_there_are_no_cards(rng):
    rows, features, *_ = tables(rng, labels=["a"] * 150, correct=[True] * 150)
    at = features.column_names.index("discriminative")
    none = feature_cards(rows, features.set_column(at, "discriminative", pa.array([False] * R)))
    assert none.num_rows == 0 and "classes" in none.column_names


def test_slices_of_a_table_and_null_lists_are_read_as_they_are(rng):
    rows, features, active, deviation, _ = tables(rng)
    cut = rows.slice(40, 60)
    found = read_activity(cut, features).deviation.toarray()
    for i in range(60):
        expected = np.zeros(R)
        expected[active[40 + i]] = deviation[40 + i]
        assert (found[i] == expected).all()
    holes = pa.array([[1, 2], None, [3]], pa.list_(pa.int32()))
    values = pa.array([[0.5, 0.25], None, [2.0]], pa.list_(pa.float32()))
    table = pa.table({"active": holes, "deviation": values})
    assert read_activity(table, features).deviation.toarray()[:, 1:4].tolist() == [[0.5, 0.25, 0], [0] * 3, [0, 0, 2]]


def test_strongest_features_and_top_rows(rng):
    rows, features, active, deviation, _ = tables(rng)
    found = read_activity(rows, features)
    for row in range(20):
        pairs = [(j, v) for j, v in zip(active[row], deviation[row], strict=True) if j in (1, 4, 5, 11, 17)]
        assert found.strongest(row, 2) == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:2]
    column = [(i, deviation[i][active[i].index(4)]) for i in range(150) if 4 in active[i]]
    assert found.top(4, 5) == sorted(column, key=lambda pair: (-pair[1], pair[0]))[:5]


def embeddings(path, rng, n=150, extra=20, width=R):
    """A table in another order, with rows that were not scored; returns H of the scored rows in order."""
    H = (rng.random((n + extra, width)) + 100).astype(np.float32)
    H[:, 2] = 5.0  # never varies
    order = rng.permutation(n + extra)
    for part, rows in enumerate(np.array_split(order, 3)):
        columns = {"id": pa.array([f"i{k}" for k in rows])}
        write_shard(path / f"part-{part:05d}.parquet", H[rows], columns, {})
    return H[:n]


def test_correlations_are_pearsons_over_the_scored_rows(rng, tmp_path):
    rows, features, *_ = tables(rng)
    H = embeddings(tmp_path / "e", rng)
    found = correlations(tmp_path / "e", rows, np.array([1, 4, 5, 11, 17]), R)
    others = [j for j in range(R) if j != 2]
    expected = np.corrcoef(H.T.astype(np.float64)[others])
    np.testing.assert_allclose(found[:, others], expected[[others.index(j) for j in (1, 4, 5, 11, 17)]], atol=1e-12)
    assert np.isnan(found[:, 2]).all()
    cards = feature_cards(rows, features, correlation=found)
    for card in cards.to_pylist():
        k = others.index(card["feature"])
        order = sorted((m for m in range(len(others)) if m != k), key=lambda m: -abs(expected[k, m]))[:3]
        assert card["correlated"] == [others[m] for m in order]
        assert card["correlation"] == pytest.approx([expected[k, m] for m in order])


def test_few_features_have_few_neighbours():
    rows = pa.table(
        {
            "id": ["a", "b"],
            "q_score": pa.array([0.5, 0.5], pa.float32()),
            "active": pa.array([[0], [1]], pa.list_(pa.int32())),
            "deviation": pa.array([[0.5], [0.5]], pa.list_(pa.float32())),
        }
    )
    of = {"feature": [0, 1], "rank": [0, 1], "count": [1, 1], "activation_rate": [0.5, 0.5]}
    features = pa.table(of | {"discriminative": [True, True]})
    cards = feature_cards(rows, features, correlation=np.array([[1.0, np.nan], [np.nan, np.nan]]))
    assert cards["correlated"].to_pylist() == [[], []]


def test_tables_that_do_not_belong_together_are_refused(rng, tmp_path):
    rows, *_ = tables(rng)
    embeddings(tmp_path / "short", rng, n=140, extra=0)
    embeddings(tmp_path / "narrow", rng, width=7)
    columns = {"id": pa.array([f"i{k % 150}" for k in range(300)])}
    write_shard(tmp_path / "twice.parquet", np.ones((300, R), np.float32), columns, {})
    views = {"id": pa.array(["i0", "i0"]), "view": pa.array([1, 2], pa.int8())}
    write_shard(tmp_path / "views.parquet", np.ones((2, R), np.float32), views, {})
    for name, message in (
        ("short", r"10 of 150 scored rows are not in this table, the first is 'i140'; name the table that was scored"),
        ("narrow", "expected the 20 features of the feature table, got 7"),
        ("twice.parquet", "expected each id once, got some twice"),
        ("views.parquet", "expected one row for each image, got views of images"),
    ):
        with pytest.raises(QScoreError, match=message):
            list(iter_joined(tmp_path / name, rows, R))


def test_the_attribute_that_a_feature_tells_of(rng):
    """Feature 4 fires for striped backgrounds, feature 5 for large shapes, feature 1 at random."""
    images = open_images("shapes:n=400,spurious=0")
    codes = attribute_codes(images)
    fires = {j: rng.random(400) < 0.1 for j in range(R)}
    fires[4] = (codes["background"] == 2) ^ (rng.random(400) < 0.05)
    fires[5] = (codes["size"] == 2) & (rng.random(400) < 0.7)
    fires[17] = np.arange(400) < 9  # too few
    active = [[j for j in range(R) if fires[j][i]] for i in range(400)]
    rows, features, *_ = tables(rng, n=400)
    for name, values, kind in (
        ("active", active, pa.int32()),
        ("deviation", [[1.0] * len(of) for of in active], pa.float32()),
    ):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.list_(kind)))
    found = {card["feature"]: card for card in feature_cards(rows, features, attributes=codes).to_pylist()}
    background = next(images.attributes(i)["background"] for i in range(400) if codes["background"][i] == 2)
    assert (found[4]["attribute"], found[4]["attribute_value"]) == ("background", background)
    assert (found[5]["attribute"], found[5]["attribute_value"]) == ("size", "large")
    assert found[17]["attribute"] is found[17]["adjusted_information"] is None
    for j in (1, 4, 5, 11):
        told = {name: adjusted_mutual_info_score(fires[j], of, average_method="min") for name, of in codes.items()}
        best = max(told, key=told.get)
        assert found[j]["attribute"] == best and found[j]["adjusted_information"] == pytest.approx(told[best])
    indptr, flat = np.cumsum([0, *map(len, active)]), np.array([j for of in active for j in of])
    same = carried(indptr, flat, R, codes)
    for j in (1, 4, 5, 11, 17):
        assert found[j]["attribute"] == same.best[j]
