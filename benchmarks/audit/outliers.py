"""Outliers: `python benchmarks/audit/outliers.py FILE.npz ...`, files of vectors of one backbone.

Twenty training images of the other files are put among the training images of each, under labels at
random: how many of them `find_outliers` finds, how many images of the set itself, and the AUROC of the
distance to the nearest class mean. Mean over seeds 1 to 5."""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from wordsight.audit.outliers import find_outliers, from_classes

PLANTED = 20


def main(files: list[str]) -> None:
    torch.set_num_threads(1)
    sets = {}
    for file in files:
        held = np.load(file)
        sets[Path(file).stem] = torch.from_numpy(held["train"]), held["train_label"]
    for name, (vectors, labels) in sets.items():
        rest = torch.cat([others for other, (others, _) in sets.items() if other != name])
        figures = []
        for seed in range(1, 6):
            rng = np.random.default_rng(seed)
            strange = rest[rng.choice(len(rest), PLANTED, replace=False)]
            whole = torch.cat([vectors, strange])
            given = np.append(labels, rng.integers(0, labels.max() + 1, PLANTED))
            found = {one.row for one in find_outliers(whole, given)}
            planted = set(range(len(vectors), len(whole)))
            marked = np.arange(len(whole)) >= len(vectors)
            area = roc_auc_score(marked, from_classes(whole, given))
            figures.append([len(found & planted), len(found - planted), area])
        mean = np.mean(figures, 0)
        own = f"{mean[1]:.1f} of {len(vectors)} own ones"
        print(f"{name}: {mean[0]:.1f} of {PLANTED} found, {own}, AUROC {mean[2]:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
