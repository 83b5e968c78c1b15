import numpy as np
import pytest

from qscore import score
from qscore.scoring import summarize_scores, summary
from qscore.tables import read_scores


@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_quantiles_are_exact(tmp_path, relu_table, n):
    H = relu_table[:n].copy()
    H[n // 2, 0] = np.nan if n > 2 else H[n // 2, 0]
    np.save(tmp_path / "e.npy", H)
    found = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=1.5, lower=0.0, upper=1.0).quantiles
    q = read_scores(tmp_path / "s.parquet")[0].column("q_score").drop_null().to_numpy().astype(np.float64)
    assert len(q) == (n if n <= 2 else n - 1)
    for level, value in found.items():
        assert value == pytest.approx(np.quantile(q, float(level)), rel=1e-15)


def test_a_summary_reads_in_batches(tmp_path, relu_table, monkeypatch):
    np.save(tmp_path / "e.npy", relu_table)
    whole = score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    monkeypatch.setattr("qscore.tables.results.BATCH_ROWS", 7)
    assert len(list(summary.iter_scores(tmp_path / "s.parquet"))) == 29
    assert summarize_scores(tmp_path / "s.parquet") == whole
