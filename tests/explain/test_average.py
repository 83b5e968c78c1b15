import numpy as np
import pyarrow as pa
import pytest
from reference import cards as naive

from qscore import QScoreError
from qscore.explain.average import (
    average_representations,
    average_table,
    class_groups,
    draw_average,
    find_clusters,
)
from qscore.tables import write_shard

D = np.array([1, 4, 5, 8, 9])


@pytest.fixture
def run(tmp_path, rng):
    """90 rows of three classes in another order than their embeddings; class k has features k and k + 3 of D high."""
    labels = [None if i % 10 == 0 else "abc"[i % 3] for i in range(90)]
    H = rng.random((120, 10)).astype(np.float32)
    for i in range(90):
        H[i, D[[k for k in (i % 3, i % 3 + 3) if k < 5]]] += 3
    correct = [None if i % 8 == 7 else bool(rng.random() < (0.7, 0.2, 0.5)[i % 3]) for i in range(90)]
    order = rng.permutation(120)
    for part, at in enumerate(np.array_split(order, 2)):
        columns = {"id": pa.array([f"i{i}" for i in at])}
        write_shard(tmp_path / "e" / f"part-{part:05d}.parquet", H[at], columns, {})
    rows = pa.table(
        {
            "id": [f"i{i}" for i in range(90)],
            "label": labels,
            "q_score": pa.array(rng.random(90), pa.float32()),
            "correct": pa.array(correct, pa.bool_()),
        }
    )
    return tmp_path / "e", rows, H[:90], labels, correct


def test_means_are_what_a_loop_finds(run):
    table, rows, H, labels, correct = run
    groups = class_groups(rows)
    found = average_representations(table, rows, groups, D, 10)
    words = [None if value is None else ("misclassified", "correct")[value] for value in correct]
    expected = naive.means(H, labels, words, found.features)
    for o, outcome in enumerate(found.outcomes):
        for g, name in enumerate(groups.names):
            n, means = expected[outcome, name]
            assert found.counts[o, g] == n
            np.testing.assert_allclose(found.means[o, g], means, rtol=1e-6)
    assert found.outcomes == ["correct", "misclassified"] and sorted(found.features) == D.tolist()
    for g, name in enumerate(groups.names):
        q = [rows["q_score"][i].as_py() for i in range(90) if labels[i] == name]
        assert found.q[g] == pytest.approx(np.mean(q))


def test_classes_are_sorted_by_accuracy_and_features_stand_in_blocks(run):
    table, rows, _, labels, correct = run
    known = [(label, value) for label, value in zip(labels, correct, strict=True) if label and value is not None]
    accuracy = {name: np.mean([value for label, value in known if label == name]) for name in "abc"}
    groups = class_groups(rows)
    assert groups.names == sorted("abc", key=lambda name: -accuracy[name]) and groups.left_out == 0
    assert [name and groups.names.index(name) for name in labels] == [
        None if code < 0 else code for code in groups.codes.tolist()
    ]
    found = average_representations(table, rows, groups, D, 10)
    home = {1: "a", 8: "a", 4: "b", 9: "b", 5: "c"}
    assert [groups.names.index(home[j]) for j in found.features.tolist()] == sorted(
        groups.names.index(of) for of in home.values()
    )


def test_outcomes_of_rows_without_a_label_are_no_outcomes_of_classes(run):
    table, rows, _, labels, _ = run
    correct = pa.array([True if label is None else None for label in labels], pa.bool_())
    rows = rows.set_column(rows.column_names.index("correct"), "correct", correct)
    groups = class_groups(rows)
    assert groups.names == class_groups(rows.drop_columns(["correct"])).names  # by mean Q
    found = average_representations(table, rows, groups, D, 10)
    assert found.outcomes == ["all rows"] and found.counts.sum() == sum(label is not None for label in labels)
    assert draw_average(found).width > 0


def test_classes_without_outcomes_are_sorted_by_q(run):
    table, rows, H, labels, _ = run
    rows = rows.drop_columns(["correct"])
    groups = class_groups(rows)
    q = {name: np.mean([rows["q_score"][i].as_py() for i in range(90) if labels[i] == name]) for name in "abc"}
    assert groups.names == sorted("abc", key=lambda name: -q[name])
    found = average_representations(table, rows, groups, D, 10)
    expected = naive.means(H, labels, ["all"] * 90, found.features)
    assert found.outcomes == ["all rows"]
    np.testing.assert_allclose(found.means[0, 0], expected["all", groups.names[0]][1], rtol=1e-6)


def test_without_labels_rows_are_grouped_by_k_means(run):
    table, rows, H, _, _ = run
    rows = rows.drop_columns(["label"])
    assert class_groups(rows) is None
    groups = find_clusters(table, rows, D, 10, 0)
    again = find_clusters(table, rows, D, 10, 0)
    assert groups.kind == "clusters" and groups.names == [f"cluster {k}" for k in range(1, 11)]
    assert (groups.codes == again.codes).all() and groups.codes.min() == 0
    q = rows["q_score"].to_numpy()
    means = [q[groups.codes == k].mean() for k in range(10)]
    assert means == sorted(means, reverse=True)
    X = H[:, D].astype(np.float64)
    centres = np.array([X[groups.codes == k].mean(0) for k in range(10)])
    nearest = ((X[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == groups.codes).mean() > 0.9
    picture = draw_average(average_representations(table, rows, groups, D, 10))
    assert picture.width > 600


def test_rows_that_are_all_the_same_are_one_cluster(tmp_path):
    columns = {"id": pa.array(list("abcd"))}
    write_shard(tmp_path / "e.parquet", np.ones((4, 10), np.float32), columns, {})
    rows = pa.table({"id": list("abcd"), "q_score": pa.array([0.0] * 4, pa.float32())})
    groups = find_clusters(tmp_path / "e.parquet", rows, D, 10, 0)
    assert groups.names == ["cluster 1"] and groups.count == "1 cluster"
    assert draw_average(average_representations(tmp_path / "e.parquet", rows, groups, D, 10)).width > 0


def test_of_many_classes_the_first_and_the_last_are_drawn(rng):
    labels = [f"c{k % 130:03d}" for k in range(390)]
    q = pa.array([1 - int(label[1:]) / 1000 for label in labels], pa.float32())
    groups = class_groups(pa.table({"id": [str(k) for k in range(390)], "label": labels, "q_score": q}))
    assert groups.names == [f"c{k:03d}" for k in (*range(50), *range(80, 130))] and groups.left_out == 30
    assert (groups.codes == -1).sum() == 90
    expected = [groups.names.index(label) if label in groups.names else -1 for label in labels]
    assert groups.codes.tolist() == expected


def test_the_table_holds_the_picture(run):
    table, rows, _, _, _ = run
    # Nobody of the class of lowest accuracy is misclassified as far as is known: those means do not exist.
    kept = rows.filter(pa.array([not (r["label"] == "a" and r["correct"] is False) for r in rows.to_pylist()]))
    found = average_representations(table, kept, class_groups(kept), D, 10)
    records = average_table(found).to_pylist()
    assert len(records) == 2 * 3 * 5
    for k, record in enumerate(records):
        o, g, f = np.unravel_index(k, (2, 3, 5))
        assert (record["outcome"], record["position"]) == (found.outcomes[o], g)
        assert (record["group"], record["n"]) == (found.groups.names[g], found.counts[o, g])
        assert record["accuracy"] == found.counts[0, g] / found.counts[:, g].sum()
        assert record["mean_q"] == found.q[g] and record["feature"] == found.features[f]
        missing = (record["group"], record["outcome"]) == ("a", "misclassified")
        assert (record["mean"] is None) == (record["n"] == 0) == missing
    draw_average(found)


def test_rows_without_a_score_are_refused(run):
    table, rows, *_ = run
    at = rows.column_names.index("q_score")
    broken = rows.set_column(at, "q_score", pa.array([None, *[0.5] * 89], pa.float32()))
    with pytest.raises(QScoreError, match="expected valid rows of a score table, got some without a score"):
        average_representations(table, broken, class_groups(broken), D, 10)
