import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qscore


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("start", ["import qscore", "from qscore.cli import app"])
def test_starting_loads_neither_torch_nor_scikit_learn(start):
    heavy = "{'torch', 'sklearn', 'numba', 'pyarrow', 'lightning', 'altair'}"
    assert run(f"{start}; import sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_every_public_name_is_there_and_typed():
    stub = ast.parse(Path(qscore.__file__).with_suffix(".pyi").read_text())
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed | {"__version__"} == set(qscore.__all__) == set(dir(qscore))
    for name in qscore.__all__:
        assert getattr(qscore, name) is not None


def test_no_public_function_shares_a_modules_name():
    folder = Path(qscore.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(qscore.__all__)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'qscore' has no attribute 'nothing'"):
        qscore.nothing  # noqa: B018
