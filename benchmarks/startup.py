"""How long the command line and the import take, and how long one embedding."""

import sys
import timeit

import numpy as np
from measure import machine, markdown, synthetic
from score import run

import qscore


def main():
    python = sys.executable
    commands = {
        "python -c pass": [python, "-c", "pass"],
        "import qscore": [python, "-c", "import qscore"],
        "import numpy": [python, "-c", "import numpy"],
        "**qscore --help**": [python, "-m", "qscore", "--help"],
        "qscore score --help": [python, "-m", "qscore", "score", "--help"],
    }
    found = {name: min(run(*command)[0] for _ in range(7)) for name, command in commands.items()}
    print(f"{machine()}.\n")
    markdown(("", "seconds"), [(name, f"{seconds:.3f}") for name, seconds in found.items()])
    rows = []
    for r in (512, 2048):
        H = synthetic(5000, r)
        noise = np.random.default_rng(0).standard_normal(H.shape).astype(np.float32)
        for name, X in {"": H, ", signed": noise + 2 * H}.items():
            scorer = qscore.QScorer(epsilon=3.0).fit(X)
            one = min(timeit.repeat(lambda s=scorer, x=X[7]: s.score_one(x), number=2000, repeat=5)) / 2000
            table = min(timeit.repeat(lambda s=scorer, x=X[7:8]: s.score_samples(x), number=200, repeat=5)) / 200
            rows.append((f"{r}{name}", f"{one * 1e6:.1f} us", f"{table * 1e6:.0f} us"))
    markdown(("one embedding of width", "score_one", "score_samples"), rows)


if __name__ == "__main__":
    main()
