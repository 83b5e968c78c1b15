import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore import QScoreError, core, count_features, load_scorer, merge_features, score
from qscore.scoring import features_path
from qscore.tables import read_features, read_scores, write_features


@pytest.fixture
def days(tmp_path, relu_table):
    """Feature tables of three parts of a table, and of the whole."""
    H = relu_table.copy()
    H[5, 2] = np.nan
    parts = {"a": H[:60], "b": H[60:61], "c": H[61:], "whole": H}
    for name, rows in parts.items():
        np.save(tmp_path / f"{name}.npy", rows)
        score(tmp_path / f"{name}.npy", tmp_path / f"{name}.parquet", epsilon=3.0)
    return {name: features_path(tmp_path / f"{name}.parquet") for name in parts}


def write_signed(path, counts, n, *, center=None, scale=None, **settings):
    """A feature table of 8 signed features."""
    settings = {"epsilon": 1.5, "lower": 0.5, "upper": 0.95, **settings}
    center = np.linspace(-1, 1, 8) if center is None else center
    scale = np.linspace(1, 2, 8) if scale is None else scale
    D = core.discriminative_features(counts, settings["lower"], settings["upper"])
    write_features(path, counts, D, {"n": n, "signed": True, **settings}, (center, scale))
    return path


def test_merged_parts_are_the_table_of_the_whole(tmp_path, days):
    summary = merge_features([days["a"], days["b"], days["c"]], tmp_path / "merged.parquet")
    table, record = read_features(tmp_path / "merged.parquet")
    whole, expected = read_features(days["whole"])
    assert table.equals(whole, check_metadata=True) and record == expected
    assert (tmp_path / "merged.parquet").read_bytes() == days["whole"].read_bytes()
    assert (summary.n_tables, summary.n, summary.n_features) == (3, 199, 64)
    assert summary.n_discriminative == np.sum(whole["discriminative"].to_numpy())


def test_order_and_grouping_do_not_matter(tmp_path, days):
    outcomes = set()
    for k, order in enumerate(itertools.permutations("abc")):
        merge_features([days[name] for name in order], tmp_path / f"{k}.parquet")
        outcomes.add((tmp_path / f"{k}.parquet").read_bytes())
        merge_features([days[order[0]], days[order[1]]], tmp_path / f"pair-{k}.parquet")
        merge_features([tmp_path / f"pair-{k}.parquet", days[order[2]]], tmp_path / f"grouped-{k}.parquet")
        outcomes.add((tmp_path / f"grouped-{k}.parquet").read_bytes())
    assert outcomes == {days["whole"].read_bytes()}


def test_signed_tables_of_one_scaling_merge(tmp_path, rng):
    one, other = rng.integers(0, 50, 8), rng.integers(0, 30, 8)
    a, b = write_signed(tmp_path / "a.parquet", one, 50), write_signed(tmp_path / "b.parquet", other, 30)
    merge_features([b, a], tmp_path / "c.parquet")
    write_signed(tmp_path / "expected.parquet", one + other, 80)
    assert (tmp_path / "c.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 1.6}, "epsilon is 1.5 in the one, and 1.6 in the other"),
        ({"lower": 0.4}, "lower is 0.5 in the one, and 0.4 in the other"),
        ({"upper": 0.9}, "upper is 0.95 in the one, and 0.9 in the other"),
        ({"center": np.nextafter(np.linspace(-1, 1, 8), 2)}, r"the center of feature 0 \(of 8 that differ\) is -1.0"),
        ({"scale": np.linspace(1, 2, 8) * np.array([1] * 7 + [2])}, "the scale of feature 7 .* is 2.0 in .* and 4.0"),
    ],
)
def test_tables_that_do_not_add_up_are_refused_by_name(tmp_path, changes, message):
    a = write_signed(tmp_path / "a.parquet", np.arange(8), 50)
    b = write_signed(tmp_path / "b.parquet", np.arange(8), 50, **changes)
    with pytest.raises(QScoreError, match=f"a.parquet and .*b.parquet cannot be merged: {message}"):
        merge_features([a, b], tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


def test_other_widths_and_signs_are_refused(tmp_path, days):
    signed = write_signed(tmp_path / "signed.parquet", np.arange(8), 50)
    with pytest.raises(QScoreError, match="the number of features is 64 in the one, and 8 in the other"):
        merge_features([days["a"], signed], tmp_path / "merged.parquet")
    record = {"n": 50, "epsilon": 1.5, "lower": 0.5, "upper": 0.95, "signed": False}
    write_features(tmp_path / "plain.parquet", np.arange(8), np.array([5]), record)
    with pytest.raises(QScoreError, match="signed is True in the one, and False in the other"):
        merge_features([signed, tmp_path / "plain.parquet"], tmp_path / "merged.parquet")


def test_notes_survive_where_all_tables_agree(tmp_path):
    for name, encoder in (("a", "one"), ("b", "two")):
        write_signed(tmp_path / f"{name}.parquet", np.arange(8), 50, site="lab", encoder=encoder)
    merge_features([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "merged.parquet")
    _, record = read_features(tmp_path / "merged.parquet")
    assert record["site"] == "lab" and "encoder" not in record


def test_inputs_are_neither_counted_twice_nor_overwritten(tmp_path, days):
    before = days["a"].read_bytes()
    with pytest.raises(QScoreError, match="are the same table, and its rows would count twice"):
        merge_features([days["a"], tmp_path / "." / days["a"].name], tmp_path / "merged.parquet")
    with pytest.raises(QScoreError, match="is an input, and would be overwritten"):
        merge_features([days["a"], days["b"]], days["a"], overwrite=True)
    with pytest.raises(QScoreError, match="exists; .* --overwrite"):
        merge_features([days["a"], days["b"]], days["c"])
    with pytest.raises(QScoreError, match="expected feature tables to merge, got none"):
        merge_features([], tmp_path / "merged.parquet")
    assert days["a"].read_bytes() == before and not (tmp_path / "merged.parquet").exists()


def test_something_else_or_damaged_is_refused(tmp_path, days):
    for read in (load_scorer, lambda path: merge_features([days["a"], path], tmp_path / "merged.parquet")):
        with pytest.raises(QScoreError, match="no such file"):
            read(tmp_path / "nowhere.parquet")
        with pytest.raises(QScoreError, match="expected a table of features"):
            read(tmp_path / "a.parquet")
    table, _ = read_features(days["a"])
    pq.write_table(table.drop_columns("count"), tmp_path / "cut.parquet")
    with pytest.raises(QScoreError, match="cut.parquet: a damaged feature table .*count.*; run qscore score again"):
        load_scorer(tmp_path / "cut.parquet")


@pytest.mark.parametrize("epsilon", [3.0, "auto"])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_loaded_scorer_gives_the_score_tables_scores(tmp_path, relu_table, rng, epsilon, shift):
    H = relu_table - np.float32(shift) * rng.random(64, dtype=np.float32)
    np.save(tmp_path / "e.npy", H)
    summary = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=epsilon, lower=0.4)
    scorer = load_scorer(features_path(tmp_path / "s.parquet"))
    rows, record = read_scores(tmp_path / "s.parquet")
    assert scorer.signed_ == summary.signed == (shift > 0) and scorer.epsilon_ == record["epsilon"]
    assert np.unique(rows["q_score"]).size > 100
    np.testing.assert_array_equal(scorer.score_samples(H).astype(np.float32), rows["q_score"].to_numpy())
    assert (scorer.lower, scorer.upper, scorer.n_samples_seen_) == (0.4, 0.95, 200)
    drift = scorer.drift(H)
    np.testing.assert_array_equal(drift.rate_now, drift.rate_before)


def test_an_edited_set_of_features_is_used_as_the_command_uses_it(tmp_path, relu_table, days):
    table, _ = read_features(days["whole"])
    chosen = pa.array(np.arange(64) < 30)
    edited = table.set_column(table.column_names.index("discriminative"), "discriminative", chosen)
    pq.write_table(edited, tmp_path / "edited.parquet")
    np.save(tmp_path / "new.npy", relu_table)
    score(tmp_path / "new.npy", tmp_path / "n.parquet", features=tmp_path / "edited.parquet")
    scores = load_scorer(tmp_path / "edited.parquet").score_samples(relu_table)
    np.testing.assert_array_equal(scores.astype(np.float32), read_scores(tmp_path / "n.parquet")[0]["q_score"])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_new_rows_are_counted_as_the_stored_ones_were(tmp_path, relu_table, shift):
    H = relu_table - np.float32(shift)
    for name, rows in {"monday": H[:120], "tuesday": H[120:]}.items():
        np.save(tmp_path / f"{name}.npy", rows)
    score(tmp_path / "monday.npy", tmp_path / "monday.parquet", epsilon=2.0)
    monday, tuesday = tmp_path / "monday.features.parquet", tmp_path / "tuesday.features.parquet"
    assert count_features(tmp_path / "tuesday.npy", monday, tuesday).n == 80
    merge_features([monday, tuesday], tmp_path / "week.parquet")
    scorer = load_scorer(monday)
    both = scorer._scan(H)  # all rows, under Monday's scaling
    np.testing.assert_array_equal(load_scorer(tmp_path / "week.parquet").counts_, both.counts)


def test_a_copied_table_is_not_counted_twice(tmp_path, relu_table):
    np.save(tmp_path / "e.npy", relu_table)
    score(tmp_path / "e.npy", tmp_path / "monday.parquet", epsilon=2.0)
    score(tmp_path / "e.npy", tmp_path / "tuesday.parquet", features=tmp_path / "monday.features.parquet")
    with pytest.raises(QScoreError, match="are the same table, and its rows would count twice"):
        merge_features(sorted(tmp_path.glob("*.features.parquet")), tmp_path / "week.parquet")
