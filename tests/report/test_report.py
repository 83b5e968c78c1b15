import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qscore import QScoreError, evaluate_scores, score
from qscore.report import write_report
from qscore.tables import write_shard


@pytest.fixture
def run_dir(tmp_path, rng):
    """A run of 300 rows over ten classes, with pictures, and mistakes where the class feature is faint."""
    run = tmp_path / "my <run>"
    run.mkdir()
    labels = rng.integers(0, 10, 300)
    H = rng.gamma(0.3, 0.1, size=(300, 60)).astype(np.float32)
    shown = np.where(rng.random(300) < 0.2, rng.integers(0, 10, 300), labels)
    H[np.arange(300), 30 + 2 * shown] += rng.uniform(2, 3, 300)
    for i in range(300):
        Image.new("RGB", (8, 8), (i % 256, 40, 90)).save(run / f"{i}.png")
    columns = {
        "id": pa.array([f"<image {i}>" for i in range(300)]),
        "label": pa.array([f"class <{k}>" for k in labels]),
        "path": pa.array([str(run / f"{i}.png") for i in range(300)]),
    }
    write_shard(run / "embeddings" / "part-00000.parquet", H, columns, {})
    score(run / "embeddings", run / "scores.parquet", epsilon="auto")
    return run


def test_the_report_needs_nothing_else_and_says_the_verdict(run_dir):
    metrics = evaluate_scores(run_dir / "scores.parquet", run_dir / "embeddings", resamples=50)
    html = write_report(run_dir).read_text()
    without_script = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!data:)""", without_script)
    assert "@import" not in without_script and "url(" not in without_script
    for sentence in metrics["sentences"]:
        assert sentence.replace("'", "&#39;") in html
    assert without_script.count("<figure") == 40 and without_script.count("data:image/png;base64,") == 40
    evaluation = pq.read_table(run_dir / "evaluation.parquet")
    rows = zip(evaluation["id"].to_pylist(), evaluation["correct"].to_pylist(), strict=True)
    outcomes = {key.replace("<", "&lt;").replace(">", "&gt;"): correct for key, correct in rows}
    framed = re.findall(r'<figure class="(\w+)" title="([^"]*)"', html)
    assert len(framed) == 40 and all(outcomes[key] == (frame == "correct") for frame, key in framed)
    assert html.count("taken for") == sum(not outcomes[key] for _, key in framed) > 0
    assert "class &lt;3&gt;" in html and "<image 3>" not in html
    for title in ("Q of the scored rows", "Activation rate A of each feature", "Errors among the rows kept, by score"):
        assert title in html
    with Image.open(run_dir / "overview.png") as image:
        assert image.width > 1000


def test_a_run_without_labels_or_pictures_has_a_report_too(run_dir):
    for path in run_dir.glob("*.png"):
        path.unlink()
    html = write_report(run_dir).read_text()
    assert "Verdict" not in html and html.count('<span class="gone">') == 40
    assert "Errors among the rows kept" not in html


def test_lowest_and_highest_rows_are_the_extremes_of_q(run_dir):
    html = write_report(run_dir).read_text()
    table = pq.read_table(run_dir / "scores.parquet")
    scores = dict(zip([f"&lt;image {i}&gt;" for i in range(300)], table["q_score"].to_pylist(), strict=True))
    shown = [scores[key] for key in re.findall(r'<figure class="" title="([^"]*)"', html)]
    ordered = sorted(scores.values())
    assert shown == [*ordered[:20], *ordered[::-1][:20]]


def test_an_evaluation_of_other_scores_is_refused(run_dir):
    evaluate_scores(run_dir / "scores.parquet", run_dir / "embeddings", resamples=10)
    score(run_dir / "embeddings", run_dir / "scores.parquet", epsilon=1.5, overwrite=True)
    with pytest.raises(QScoreError, match="belongs to other scores; run qscore evaluate again"):
        write_report(run_dir)
    (run_dir / "metrics.json").write_text("{}")
    with pytest.raises(QScoreError, match="is not what qscore evaluate wrote"):
        write_report(run_dir)


def test_not_a_run(tmp_path):
    with pytest.raises(QScoreError, match="no such run directory"):
        write_report(tmp_path / "nothing")
    with pytest.raises(QScoreError, match="no scores.parquet in this directory"):
        write_report(tmp_path)


@pytest.mark.browser
def test_the_charts_are_drawn_in_a_browser_without_a_network(run_dir, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    evaluate_scores(run_dir / "scores.parquet", run_dir / "embeddings", resamples=50)
    report = shutil.copy(write_report(run_dir), tmp_path / "report.html")
    dom = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", report.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    drawn = re.findall(r'<div id="chart-(\w+)"[^>]*class="[^"]*vega-embed', dom)
    assert drawn == ["q", "activation", "compression", "risk", "forest", "reliability"]
    assert len(re.findall(r"<(svg|canvas)[^>]*class=.marks", dom)) == 6
    assert json.loads((run_dir / "metrics.json").read_text())["sentences"][0] in dom


def unlabelled(tmp_path, rng, wrong, paths=False):
    """A run of 120 rows without labels, of which a file calls some wrong."""
    H = rng.gamma(0.3, 1.0, size=(120, 40)).astype(np.float32)
    columns = {"id": pa.array([f"i{k}" for k in range(120)])}
    if paths:
        columns["path"] = pa.array([str(tmp_path / f"gone {k}.png") for k in range(120)])
    write_shard(tmp_path / "embeddings.parquet", H, columns, {})
    score(tmp_path / "embeddings.parquet", tmp_path / "scores.parquet", epsilon=2.0)
    lines = "".join(f"i{k},{int(k not in wrong)}\n" for k in range(120))
    (tmp_path / "mine.csv").write_text("id,correct\n" + lines)
    return tmp_path / "scores.parquet", tmp_path / "embeddings.parquet"


def test_few_wrong_rows_have_a_report_and_nothing_is_taken_for_none(tmp_path, rng):
    tables = unlabelled(tmp_path, rng, range(4), paths=True)
    metrics = evaluate_scores(*tables, correct=tmp_path / "mine.csv", resamples=20)
    assert metrics["gain"] == {}
    html = write_report(tmp_path).read_text()
    assert "How well each score predicts mistakes" in html and "what Q adds to it" not in html
    assert '<figure class="wrong"' in html and "taken for" not in html


def test_intervals_and_effects_that_are_not_defined_do_not_stop_the_report(tmp_path, rng):
    evaluate_scores(*unlabelled(tmp_path, rng, range(40)), correct=tmp_path / "mine.csv", resamples=20)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for found in (metrics["scores"]["q_score"]["auroc"], metrics["q_minus"]["l2_norm"]["auroc"]):
        found |= {"low": None, "high": None}  # no resample had both outcomes
    records = metrics["claims"]["records"]
    for record in records:
        if record["quantity"] == "deviation":
            record |= {"value": None, "low": None, "high": None}  # no wrong row has a highly active feature
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    html = write_report(tmp_path).read_text()
    q = metrics["scores"]["q_score"]["auroc"]["value"]
    assert f"<td>{q:.3f}</td>" in html
    assert "<td>mean deviation of L_i in sigmas</td><td><em>undefined</em></td><td><em>undefined</em></td>" in html


def test_numbers_that_mean_nothing_are_not_shown(run_dir, rng):
    table = pq.read_table(run_dir / "embeddings" / "part-00000.parquet")
    shuffled = pa.array(rng.permutation(table["label"].to_pylist()))
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, "label", shuffled), run_dir / "embeddings" / "part-00000.parquet")
    metrics = evaluate_scores(run_dir / "scores.parquet", run_dir / "embeddings", resamples=20)
    assert metrics["undefined"] in metrics["sentences"] and metrics["scores"]
    html = write_report(run_dir).read_text()
    assert "failure prediction is undefined" in html
    assert "How well each score predicts mistakes" not in html and "AUROC of Q against" not in html
    assert "Features of correct and of wrong rows" not in html


def test_an_evaluation_without_labels_has_a_report(tmp_path, rng):
    evaluate_scores(*unlabelled(tmp_path, rng, ()), resamples=5)
    html = write_report(tmp_path).read_text()
    assert "whether Q predicts failures was not tested" in html and "The representation as a whole" in html
