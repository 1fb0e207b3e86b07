"""What to label next: `python benchmarks/audit/choose.py FILE.npz ... [WAY ...]`.

Each FILE is a file of vectors (docs/data.md) with a training part, which is the pool, and a test part. C,
2 C and 4 C labels are chosen among C classes, each label is told when its image is chosen, and AAPE is
fitted by `wordsight.labelling.learner`, without the pool's other images, and after 4 C labels with them,
too. Test accuracy in percent; last, the classes without a label. In rounds: a quarter of the labels at a
time, by a method fitted to those before. A way that draws nothing has one run; the others five seeds,
random choice ten; mean and standard deviation."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

from wordsight.audit.next_labels import choose_next, worth
from wordsight.backbones import load_backbone, unit
from wordsight.config import RunSettings
from wordsight.data import open_dataset
from wordsight.data.features import image_features
from wordsight.labelling.learner import Learner
from wordsight.methods import FitData
from wordsight.reader import read
from wordsight.sentences.self_written import sentences_for

SEEDS, ROUNDS = range(5), 4


class Set:
    """A file's pool and test images, and what is learned from labels of the pool."""

    def __init__(self, file: str):
        backbone, data = load_backbone(file), open_dataset(file)
        self.name, self.names = Path(file).stem, data.class_names
        settings = read(RunSettings, {"data": file, "backbone": file, "template": "{}"})
        sentences = sentences_for(None, self.names, None, backbone)
        self.pool = image_features(backbone, data.train.pictures).vectors[:, 0]
        self.test = image_features(backbone, data.test.pictures).vectors[:, 0]
        self.labels, self.tested = data.train.labels, torch.from_numpy(data.test.labels)
        self.learner = Learner(settings, backbone, self.names, sentences, self.pool)
        self.centred = unit(self.pool - self.pool.mean(0))

    def told(self, rows) -> dict[int, int]:
        return {int(row): int(self.labels[row]) for row in rows}

    def fitted(self, rows):
        """Without the pool's other images, so that the choice alone differs; classes without a label borrow
        an image."""
        learner, known = self.learner, self.told(rows)
        known |= learner.borrowed(known)
        images, labels = (
            self.pool[list(known)][:, None],
            torch.tensor(list(known.values())),
        )
        data = FitData(images, labels, learner.texts, learner.settings.seed)
        return learner.fit_to(learner.settings, data, self.pool[:0])

    def with_pool(self, rows) -> float:
        """Accuracy where the pool's other images count, too, as in `wordsight label`."""
        fitted = self.learner.fit(self.told(rows)).fitted
        return 100 * float((fitted.logits(self.test).argmax(1) == self.tested).float().mean())

    def accuracy(self, rows) -> float:
        return 100 * float((self.fitted(rows).logits(self.test).argmax(1) == self.tested).float().mean())

    def chances(self, rows):
        return self.fitted(rows).logits(self.pool).softmax(1) if len(rows) else self.learner.words

    def counts(self, rows):
        return torch.tensor([int(self.labels[row]) for row in rows], dtype=torch.int64).bincount(
            minlength=len(self.names)
        )


# -- ways: (set, how many, seed) -> rows, in the order in which they are labelled --


def random(some: Set, count: int, seed: int):
    return np.random.default_rng(seed).permutation(len(some.pool))[:count].tolist()


def k_center(some: Set, count: int, seed: int):
    apart = 1 - some.centred @ some.centred.T
    rows = [int(np.random.default_rng(seed).integers(len(some.pool)))]
    far = apart[rows[0]]
    while len(rows) < count:
        rows.append(int(far.argmax()))
        far = torch.minimum(far, apart[rows[-1]])
    return rows


def clustered(some: Set, count: int, seed: int):
    return KMeans(count, n_init=1, random_state=seed).fit(some.centred.numpy())


def k_means(some: Set, count: int, seed: int):
    found = clustered(some, count, seed)
    far = found.transform(some.centred.numpy())
    return [int(np.where(found.labels_ == k, far[:, k], np.inf).argmin()) for k in range(count)]


def typiclust(some: Set, count: int, seed: int):
    labels, near = (
        clustered(some, count, seed).labels_,
        (some.centred @ some.centred.T).numpy(),
    )
    rows = []
    for k in range(count):
        own = np.flatnonzero(labels == k)
        typical = np.sort(near[np.ix_(own, own)], 1)[:, -20:].mean(1)
        rows.append(int(own[typical.argmax()]))
    return rows


def probcover(some: Set, count: int, seed: int):
    apart = 1 - some.centred @ some.centred.T
    labels = clustered(some, len(some.names), seed).labels_
    same, radius = torch.from_numpy(labels[:, None] == labels[None]), 0.05
    for tried in np.linspace(0.05, 1, 39):
        if float(((apart > tried) | same).all(1).float().mean()) >= 0.95:
            radius = float(tried)
    balls, covered, rows = (
        apart <= radius,
        torch.zeros(len(apart), dtype=torch.bool),
        [],
    )
    rest = np.random.default_rng(seed).permutation(len(apart)).tolist()
    while len(rows) < count:
        gains = (balls & ~covered).sum(1)
        gains[rows] = 0
        row = int(gains.argmax()) if int(gains.max()) else next(one for one in rest if one not in set(rows))
        rows.append(row)
        covered |= balls[row]
    return rows


def words_balanced(some: Set, count: int, seed: int):
    """As many of each class as words name it."""
    rng, predicted = np.random.default_rng(seed), some.learner.words.argmax(1).numpy()
    queues = [rng.permutation(np.flatnonzero(predicted == c)).tolist() for c in range(len(some.names))]
    rows: list[int] = []
    while len(rows) < count:
        for c in rng.permutation(len(queues)):
            if queues[c] and len(rows) < count:
                rows.append(queues[c].pop())
    return rows


def in_rounds(step, rounds=ROUNDS):
    def way(some: Set, count: int, seed: int):
        rows: list[int] = []
        for part in np.array_split(np.arange(count), rounds):
            rows += step(some, len(part), seed, rows, some.chances(rows))
        return rows

    return way


def lowest(values, count: int, rows):
    values = values.clone()
    values[rows] = torch.inf
    return values.argsort()[:count].tolist()


def margin(some, count, seed, rows, chances):
    top = chances.topk(2).values
    return lowest(top[:, 0] - top[:, 1], count, rows)


def entropy(some, count, seed, rows, chances):
    return lowest((chances * chances.clamp(min=1e-9).log()).sum(1), count, rows)


def badge(some, count, seed, rows, chances):
    pull = -chances
    pull[torch.arange(len(pull)), chances.argmax(1)] += 1
    kernel = (pull @ pull.T) * (some.pool @ some.pool.T)
    norms, rng = kernel.diag().clone(), np.random.default_rng(seed + len(rows))
    free = norms.clone()
    free[rows] = -1
    found = [int(free.argmax())]
    far = (norms + norms[found[0]] - 2 * kernel[found[0]]).clamp(min=0)
    while len(found) < count:
        weights = far.double().clone()
        weights[[*rows, *found]] = 0
        row = int(rng.choice(len(weights), p=(weights / weights.sum()).numpy()))
        found.append(row)
        far = torch.minimum(far, (norms + norms[row] - 2 * kernel[row]).clamp(min=0))
    return found


def facility(weigh):
    def step(some, count, seed, rows, chances):
        free = np.setdiff1d(np.arange(len(some.pool)), rows)
        weights = weigh(chances, some.counts(rows))
        picks = choose_next(
            some.pool,
            count + len(rows),
            weights=weights,
            labelled=some.pool[rows] if rows else None,
        )
        taken = set(rows)
        return [pick.row for pick in picks if pick.row not in taken][:count] if len(free) else []

    return step


def alike(chances, counts):
    return torch.ones(len(chances))


def doubt(chances, counts):
    return 1 - chances.max(1).values


def need(chances, counts):
    return chances @ (1 / (1 + counts.float()))


WAYS = {
    "random": random,
    "k-center": k_center,
    "k-means": k_means,
    "TypiClust": typiclust,
    "ProbCover": probcover,
    "balanced by words": words_balanced,
    "margin, rounds": in_rounds(margin),
    "entropy, rounds": in_rounds(entropy),
    "BADGE, rounds": in_rounds(badge),
    "facility location": in_rounds(facility(alike), 1),
    "facility, doubt, rounds": in_rounds(facility(doubt)),
    "facility, need, rounds": in_rounds(facility(need)),
    "**facility, doubt and need, rounds**": in_rounds(facility(worth)),
    "the same, one round": in_rounds(facility(worth), 1),
    "the same, 8 rounds": in_rounds(facility(worth), 8),
}
ONCE = [
    name for name in WAYS if "acility" in name or "same" in name or name.startswith(("margin", "entropy"))
]


def seeds_of(name: str) -> range:
    return range(1) if name in ONCE else range(10) if name == "random" else SEEDS


def started(some: Set, seed: int) -> list[int]:
    """C labels at random, the other 3 C by the default."""
    rows = random(some, len(some.names), seed)
    for _ in range(3):
        rows += facility(worth)(some, len(some.names), seed, rows, some.chances(rows))
    return rows


def starts(some: Set) -> list[list[float]]:
    found = []
    for seed in SEEDS:
        rows, classes = started(some, seed), len(some.names)
        figures = [some.accuracy(rows[: k * classes]) for k in (1, 2, 4)]
        missing = classes - len({int(some.labels[row]) for row in rows})
        found.append([*figures, some.with_pool(rows), missing])
    return found


def main(arguments: list[str]) -> None:
    files = [one for one in arguments if one.endswith((".npz", ".safetensors"))]
    chosen = [name for name in WAYS if name in arguments] or list(WAYS)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    for file in files:
        some = Set(file)
        classes = len(some.names)
        print(
            f"\n{some.name}: {len(some.pool)} in the pool, {classes} classes",
            flush=True,
        )
        for name in chosen:
            way: Any = WAYS[name]
            runs = []
            for seed in seeds_of(name):
                rows = way(some, 4 * classes, seed)
                missing = classes - len({int(some.labels[row]) for row in rows})
                figures = [some.accuracy(rows[: k * classes]) for k in (1, 2, 4)]
                runs.append([*figures, some.with_pool(rows), missing])
            show(name, runs)
        if len(chosen) == len(WAYS):
            show("C at random, then the default", starts(some))


def show(name, runs) -> None:
    mean, spread = np.mean(runs, 0), np.std(runs, 0)
    cells = f"{mean[0]:.1f} | {mean[1]:.1f} | {mean[2]:.1f} ± {spread[2]:.1f} | {mean[3]:.1f} | {mean[4]:.1f}"
    print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
