"""Run benchmarks and put what they print into README.md: `python benchmarks/run.py [NAME ...]`."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("scan", "score", "growth", "startup", "embed", "pretrain", "heatmaps", "regularizer")


def main():
    page = HERE / "README.md"
    for name in sys.argv[1:] or NAMES:
        printed = subprocess.run(
            [sys.executable, HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        before, _, rest = page.read_text().partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- end of {name} -->\n")
        page.write_text(f"{before}<!-- {name} -->\n\n{printed.strip()}\n\n<!-- end of {name} -->\n{after}")
        print(printed, flush=True)


if __name__ == "__main__":
    main()
