"""Whether photos of other sets are told from a set's own: `python benchmarks/unsure/unlike.py OWN.npz ...
-- OTHER.npz ...`.

Each file holds vectors of one backbone (docs/data.md). Of each OWN set, 16 and then 4 images a class are
drawn (seeds 1 to 3); its test part is told from the test part of every other file, OWN or OTHER, of which
at most 1,000 images count. AUROC by the distance to the nearest class mean, as `predict` has it, then its
mean and its least over all pairs beside other scores; and what share of a set's own and of the other
images `predict` marks."""

import sys
from pathlib import Path

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from wordsight.doubts import unlike

SHOTS, SEEDS, MOST = (16, 4), (1, 2, 3), 1000


def read(file: str) -> dict[str, np.ndarray]:
    """Unit vectors and labels."""
    with np.load(file) as found:
        rows = {key: found[key] for key in ("train", "test", "text") if key in found.files}
        labels = found["train_label"] if "train_label" in found.files else np.empty(0)
    return {key: unit(one.astype(np.float64)) for key, one in rows.items()} | {
        "train_label": labels.astype(np.int64)
    }


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def drawn(one: dict[str, np.ndarray], shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(seed), one["train_label"]
    rows = [rng.permutation(np.flatnonzero(labels == row))[:shots] for row in range(labels.max() + 1)]
    rows = np.concatenate(rows)
    return one["train"][rows], labels[rows]


def ways(images: np.ndarray, labels: np.ndarray, text: np.ndarray | None):
    """How unlike the training images others are, by several scores: functions of [B, D]."""
    means = unlike.class_means(images, labels, int(labels.max()) + 1).astype(np.float64)
    found = {"nearest class mean": lambda other: unlike.distances(other, means)}
    for k in (1, 5):
        found[f"neighbour {k}"] = lambda other, k=k: -np.sort(other @ images.T, 1)[:, -k]
    for scale in (20, 40):
        found[f"density, scale {scale}"] = lambda other, s=scale: -logsumexp(s * other @ images.T, 1)
    within = (images - means[labels]).T @ (images - means[labels]) / len(images)
    mean_variance = np.trace(within) / len(within)
    for share in (0.1, 0.5, 0.8):
        inverse = np.linalg.inv((1 - share) * within + share * mean_variance * np.eye(len(within)))
        found[f"Mahalanobis, shrunk {share}"] = lambda other, inverse=inverse: (
            ((other @ inverse) * other).sum(1)[:, None]
            - 2 * other @ inverse @ means.T
            + ((means @ inverse) * means).sum(1)
        ).min(1)
    if text is not None:
        found["cosine to class names"] = lambda other: -(other @ text.T).max(1)
        found["largest probability"] = lambda other: -np.exp(log_softmax(50 * other @ unit(means).T)).max(1)
        found["energy"] = lambda other: -logsumexp(50 * other @ unit(means).T, 1)
    return found


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - logsumexp(scores, 1, keepdims=True)


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    return float(roc_auc_score(np.r_[np.zeros(len(own)), np.ones(len(other))], np.r_[own, other]))


def main(words: list[str]) -> None:
    place = words.index("--") if "--" in words else len(words)
    own = {Path(file).stem: read(file) for file in words[:place]}
    rng = np.random.default_rng(0)
    tests = {name: one["test"] for name, one in own.items()}
    tests |= {Path(file).stem: read(file)["test"] for file in words[place + 1 :]}
    tests = {name: rows[rng.permutation(len(rows))[:MOST]] for name, rows in tests.items()}
    for shots in SHOTS:
        found: dict[str, dict[tuple[str, str], list[float]]] = {}
        marked: dict[str, list[tuple[float, float]]] = {name: [] for name in own}
        for name, one in own.items():
            others = [other for other in tests if other != name]
            for seed in SEEDS:
                images, labels = drawn(one, shots, seed)
                for way, score in ways(images, labels, one.get("text")).items():
                    mine, pairs = score(tests[name]), found.setdefault(way, {})
                    for other in others:
                        pairs.setdefault((name, other), []).append(auroc(mine, score(tests[other])))
                means = unlike.class_means(images, labels, int(labels.max()) + 1)
                far = unlike.far(unlike.left_out(images, labels, means))
                over = {other: float((unlike.distances(tests[other], means) > far).mean()) for other in tests}
                marked[name].append((over[name], float(np.mean([over[other] for other in others]))))
        table(shots, found, marked, list(tests))


def table(shots: int, found, marked, names: list[str]) -> None:
    print(f"\n{shots} shots\n\n| own \\ other | {' | '.join(names)} | marked, own % | marked, others % |")
    print(f"|---|{'---|' * (len(names) + 2)}")
    pairs = found["nearest class mean"]
    for name, shares in marked.items():
        cells = [f"{np.mean(pairs[name, other]):.3f}" if other != name else "" for other in names]
        own, other = 100 * np.mean(shares, 0)
        print(f"| {name} | {' | '.join(cells)} | {own:.1f} | {other:.0f} |")
    print("\n| score | mean AUROC | least |\n|---|---|---|")
    for way, pairs in sorted(found.items(), key=lambda one: -np.mean(list(one[1].values()))):
        means = [np.mean(values) for values in pairs.values()]
        print(f"| {way} | {np.mean(means):.3f} | {min(means):.3f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
