"""Wrong labels: `python benchmarks/audit/errors.py FILE.npz ...`, files of vectors (docs/data.md).

A tenth of the training labels is set to another class at random (seeds 1, 2, 3). AAPE scores each image in
5-fold cross-validation; then: the share of the labels in doubt that are wrong (precision), the share of
the wrong ones that are in doubt (recall) and how many are, by confident learning as `audit` has it;
precision of the lowest probability of the label alone, told how many labels are wrong; AUROC of that
probability; how often the suggested class is right. Last, what is in doubt of the labels as they are."""

import sys

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from wordsight.audit.errors import wrong_labels
from wordsight.backbones import load_backbone
from wordsight.config import RunSettings
from wordsight.data import open_dataset
from wordsight.data.features import image_features
from wordsight.fitted import Fitted, encode_classes, facts_of
from wordsight.fitting import fit_method
from wordsight.methods import FitData
from wordsight.reader import read
from wordsight.sentences.self_written import sentences_for


def chances_of(file: str, labels: np.ndarray, vectors, backbone, names) -> np.ndarray:
    settings, facts = (
        read(RunSettings, {"data": file, "backbone": file}),
        facts_of(backbone, names, "{}"),
    )
    sentences = sentences_for(None, names, None, backbone)
    texts = encode_classes(backbone, facts, names, sentences)
    found = np.zeros((len(labels), len(names)))
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    for rest, out in folds.split(labels, labels):
        data = FitData(vectors[rest][:, None], torch.from_numpy(labels[rest]), texts, 1)
        fitted = Fitted(
            fit_method(settings, facts, data, backbone),
            backbone,
            facts,
            sentences,
            texts,
        )
        found[out] = fitted.logits(vectors[out]).double().softmax(1).numpy()
    return found


def main(files: list[str]) -> None:
    torch.set_num_threads(1)
    for file in files:
        backbone, data = load_backbone(file), open_dataset(file)
        names, right = data.class_names, data.train.labels
        vectors = image_features(backbone, data.train.pictures).vectors[:, 0]
        rows = []
        for seed in (1, 2, 3):
            rng, given = np.random.default_rng(seed), right.copy()
            changed = rng.choice(len(right), len(right) // 10, replace=False)
            given[changed] = (given[changed] + rng.integers(1, len(names), len(changed))) % len(names)
            wrong = given != right
            chances = chances_of(file, given, vectors, backbone, names)
            own = chances[np.arange(len(given)), given]
            doubted = np.array([one.row for one in wrong_labels(given, chances)])
            lowest = own.argsort()[: wrong.sum()]
            better = np.mean(
                [right[one.row] == one.suggested for one in wrong_labels(given, chances) if wrong[one.row]]
            )
            rows.append(
                [
                    wrong[doubted].mean(),
                    wrong[doubted].sum() / wrong.sum(),
                    len(doubted) / wrong.sum(),
                    wrong[lowest].mean(),
                    roc_auc_score(wrong, -own),
                    better,
                ]
            )
        mean, spread = np.mean(rows, 0), np.std(rows, 0)
        cells = " | ".join(f"{100 * m:.0f} ± {100 * s:.0f}" for m, s in zip(mean, spread))
        plain = chances_of(file, right, vectors, backbone, names)
        print(
            f"| {file} | {cells} | {len(wrong_labels(right, plain))} of {len(right)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
