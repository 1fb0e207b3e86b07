"""One plot for each suite and dataset of benchmarks/suites/run.sh, as the report draws it. python
benchmarks/suites/plots.py [runs/benchmarks]
"""

import sys
from pathlib import Path

from wordsight.report import read_rows
from wordsight.report.plots import accuracy_plot

for suite in ("base-to-new", "few-shot"):
    for folder in sorted((Path(sys.argv[1] if len(sys.argv) > 1 else "runs/benchmarks") / suite).iterdir()):
        _, figure = accuracy_plot(read_rows([folder]))
        figure.savefig(Path(__file__).parent / f"{suite}-{folder.name}.png", dpi=110)
