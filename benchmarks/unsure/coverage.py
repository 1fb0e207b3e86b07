"""Whether sets of classes hold the right one as often as they promise: `python
benchmarks/unsure/coverage.py FILE.npz ...`.

Each FILE is a file of vectors (docs/data.md) with a test part. AAPE (a linear probe, where the file has
no text vectors) is fitted to 16 labelled images a class. All other labelled images, of val and test, are
parted at random into 4 a class on the mean to calibrate by and the rest to test on, 500 times; means over
these and over seeds 1 to 3. `lac` is what `predict --error` does; `aps` and `raps` (Romano et al. 2020;
Angelopoulos et al. 2021, with k = 1, lambda = 0.1; both randomised) are beside it. `val` and `folds` are
coverage as a run has it: calibrated by the val part, and by five folds of the training images, tested on
the test part."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import wordsight
from wordsight.backbones.arrays import read_arrays
from wordsight.data import open_dataset
from wordsight.data.features import image_features
from wordsight.doubts import Doubts, conformal
from wordsight.fitted import Fitted

ERRORS, SEEDS, SPLITS, A_CLASS = (0.05, 0.1, 0.2), (1, 2, 3), 500, 4


def chances(fitted: Fitted, *splits) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of all images of these parts."""
    vectors = torch.cat([image_features(fitted.backbone, one.pictures).vectors[:, 0] for one in splits])
    return fitted.logits(vectors).double().softmax(1).numpy(), np.concatenate([one.labels for one in splits])


def adaptive(found: np.ndarray, rng: np.random.Generator, penalty: float = 0.0) -> np.ndarray:
    """Scores [n, C] of APS, or with a penalty of RAPS: the mass of the classes before one and a random
    part of its own, and the penalty for each rank beyond the first."""
    order = (-found).argsort(1)
    ranked = np.take_along_axis(found, order, 1)
    mass = ranked.cumsum(1) - ranked * rng.random((len(found), 1)) + penalty * np.arange(found.shape[1])
    scores = np.empty_like(mass)
    np.put_along_axis(scores, order, mass, 1)
    return scores


def measured(found, labels, rng, error, scores):
    """Of one random parting: coverage, mean size, share unsure, accuracy of those that are sure."""
    order = rng.permutation(len(labels))
    some = A_CLASS * found.shape[1]
    known, tested = order[:some], order[some:]
    right = np.sort(-scores[known, labels[known]])
    inside = -scores[tested] >= conformal.lowest(right, error)
    sure = inside.sum(1) == 1
    hit = inside[np.arange(len(tested)), labels[tested]]
    return hit.mean(), inside.sum(1).mean(), 1 - sure.mean(), hit[sure].mean() if sure.any() else np.nan


def as_kept(doubts: Doubts, found, labels, error) -> float:
    inside = found[np.arange(len(labels)), labels] >= doubts.lowest(error)
    return inside.mean()


def main(files: list[str]) -> None:
    torch.set_num_threads(1)
    columns = ("set", "n to calibrate", "error", "coverage", "set size", "unsure", "right among sure")
    columns += ("val", "folds", "size aps", "size raps")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for file in files:
        arrays = read_arrays(file)
        method = "aape" if arrays.text is not None else "linear_probe"
        rows = {error: [] for error in ERRORS}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as out:
                common = {"data": file, "method": method, "shots": 16, "seed": seed, "references": False}
                run = wordsight.fit(**common, out=f"{out}/val")
                fitted, kept = Fitted.open(run), Doubts.read(run.folder)
                bare = Path(out) / "bare.npz"
                with np.load(file) as whole:  # the same without a val part
                    np.savez(bare, **{key: whole[key] for key in whole.files if not key.startswith("val")})
                folds = wordsight.fit(**common | {"data": str(bare)}, folds=5, out=f"{out}/folds")
                left_out = Doubts.read(folds.folder)
            data = open_dataset(file)
            parts = [data.test] if data.val is None else [data.val, data.test]
            found, labels = chances(fitted, *parts)
            tested = chances(fitted, data.test)
            for error in ERRORS:
                rng = np.random.default_rng(seed)
                ways = {"lac": -found, "aps": adaptive(found, rng), "raps": adaptive(found, rng, 0.1)}
                by = {
                    name: np.nanmean([measured(found, labels, rng, error, way) for _ in range(SPLITS)], 0)
                    for name, way in ways.items()
                }
                val = as_kept(kept, *tested, error) if kept.chances is not None else np.nan
                rows[error].append(
                    [*by["lac"], val, as_kept(left_out, *tested, error), by["aps"][1], by["raps"][1]]
                )
        for error, found in rows.items():
            cells = np.mean(found, 0)
            shown = [
                f"{100 * one:.1f}" if place not in (1, 6, 7) else f"{one:.2f}"
                for place, one in enumerate(cells)
            ]
            shown = [one if one != "nan" else "" for one in shown]
            print(
                f"| {Path(file).stem} | {A_CLASS * len(arrays.classes)} | {error} | {' | '.join(shown)} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
