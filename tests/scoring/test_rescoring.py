import numpy as np
import pytest

from qscore import QScoreError, score
from qscore.scoring import features_path
from qscore.tables import open_embeddings, read_features, read_scores

COLUMNS = ["id", "n_active", "n_discriminative", "mean", "std", "max", "l1_norm", "l2_norm", "active", "valid"]


@pytest.fixture(params=["plain", "signed"])
def table(tmp_path, relu_table, request):
    H = relu_table.copy()
    H[3], H[5, 2] = 0.25, np.nan
    np.save(tmp_path / "e.npy", H - 0.05 if request.param == "signed" else H)
    return tmp_path / "e.npy"


@pytest.mark.parametrize("band", [{"lower": 0.25}, {"upper": 0.8}, {"lower": 0.0, "upper": 1.0}])
def test_another_band_is_what_the_embeddings_give(tmp_path, table, band):
    score(table, tmp_path / "a.parquet", epsilon=2.0)
    expected = score(table, tmp_path / "direct.parquet", epsilon=2.0, **band)
    table.unlink()  # no embeddings, no reading them
    summary = score(tmp_path / "a.parquet", tmp_path / "b.parquet", **band)
    assert summary.n_discriminative == expected.n_discriminative
    assert summary.coverage == expected.coverage
    (got, record), (wanted, direct) = (read_scores(tmp_path / f"{name}.parquet") for name in ("b", "direct"))
    for name in COLUMNS:
        assert repr(got.column(name).to_pylist()) == repr(wanted.column(name).to_pylist()), name
    q, reference = (rows.column("q_score").to_numpy() for rows in (got, wanted))
    np.testing.assert_allclose(q, reference, rtol=1e-6, equal_nan=True)
    assert np.isnan(reference).sum() == 1
    assert {key: record[key] for key in ("lower", "upper", "signed", "transductive")} == {
        key: direct[key] for key in ("lower", "upper", "signed", "transductive")
    }
    ours, theirs = (read_features(features_path(tmp_path / f"{name}.parquet"))[0] for name in ("b", "direct"))
    assert ours.equals(theirs)


def test_another_d_is_what_the_embeddings_give(tmp_path, relu_table):
    for name, rows in {"train": relu_table[:120], "test": relu_table[120:]}.items():
        np.save(tmp_path / f"{name}.npy", rows)
        score(tmp_path / f"{name}.npy", tmp_path / f"{name}.parquet", epsilon=2.0)
    train = features_path(tmp_path / "train.parquet")
    score(tmp_path / "test.npy", tmp_path / "direct.parquet", features=train)
    summary = score(tmp_path / "test.parquet", tmp_path / "b.parquet", features=train)
    assert not summary.transductive
    q, reference = (
        read_scores(tmp_path / f"{name}.parquet")[0].column("q_score").to_numpy() for name in ("b", "direct")
    )
    np.testing.assert_allclose(q, reference, rtol=1e-6)


def test_what_needs_the_embeddings_is_refused(tmp_path, relu_table):
    np.save(tmp_path / "e.npy", relu_table)
    score(tmp_path / "e.npy", tmp_path / "a.parquet", epsilon=2.0)
    score(tmp_path / "e.npy", tmp_path / "other.parquet", epsilon=3.0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for options, message in (
        ({"epsilon": 3.0}, "epsilon, signed and column need the embeddings"),
        ({"features": features_path(tmp_path / "other.parquet")}, "epsilon is 3.0, and the score table was made with"),
        ({"lower": 0.9, "upper": 0.5}, "0 <= lower < upper <= 1"),
    ):
        with pytest.raises(QScoreError, match=message):
            score(tmp_path / "a.parquet", tmp_path / "b.parquet", **options)
    for out in ("a.parquet", "a.features.parquet"):
        with pytest.raises(QScoreError, match="is an input"):
            score(tmp_path / "a.parquet", tmp_path / out, lower=0.2, overwrite=True)
    with pytest.raises(QScoreError, match="several columns of vectors"):
        open_embeddings(tmp_path / "a.parquet")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
