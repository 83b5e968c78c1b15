import re
import shlex
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.S)


@pytest.mark.filterwarnings("ignore:.* of the rows have no highly active discriminative feature")
def test_the_python_example_runs(tmp_path, monkeypatch, relu_table):
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    np.save("embeddings.npy", relu_table)
    names = {}
    exec(example, names)
    assert names["scores"].shape == (200,) and len(names["worst"]) == 20


def test_the_commands_exist_with_these_options():
    from typer.main import get_command

    from qscore.cli import app

    verbs = get_command(app).commands
    commands = re.findall(r"^qscore .*?(?=\s{2,}#|$)", "\n".join(blocks("console")), flags=re.M)
    assert len(commands) == 8
    for command in commands:
        _, verb, *arguments = shlex.split(command)
        verbs[verb].make_context(verb, arguments)


def test_the_verdicts_are_those_of_the_results_page():
    page = (README.parent / "docs" / "results.md").read_text()
    [table] = [part for part in page.split("\n\n") if part.startswith("| | claim | in the paper |")]
    assert table in README.read_text(), "copy the table of verdicts from docs/results.md"
