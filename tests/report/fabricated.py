"""Finished runs whose figures are given."""

import torch

from wordsight.config import RunSettings
from wordsight.files import write_tensors
from wordsight.runs import Run, RunFacts

NAMES = ("<b>eins</b>", "zwölf & 十二", "$x_2$")


def fabricate(
    folder,
    *,
    method="aape",
    classes="all",
    seed=1,
    shots=4,
    names=NAMES,
    data="nowhere",
    accuracies=None,
    event=None,
    **changed,
):
    """A finished run whose figures are given: {part: accuracy}; `event` has more of each evaluation."""
    settings = RunSettings(
        data=data, backbone="tiny", method=method, classes=classes, seed=seed, shots=shots, **changed
    )
    facts = RunFacts(names, 8, 1.0, "a {}.")
    run = Run.start(folder, settings, facts, dict.fromkeys(names, ("a sentence",)))
    write_tensors(run.folder / "weights.safetensors", {"weight": torch.zeros(3)})
    run.log(
        {
            "event": "fit",
            "seconds": {"features": 1.0, "texts": 0.5, "fit": 0.5 * seed},
            "images": 12,
            "parameters": 100,
            "skipped": [],
        }
    )
    for part, accuracy in (accuracies or {}).items():
        pairs = [(i, j, 3 if i == j else 1) for i in range(len(names)) for j in range(len(names))]
        matrix = dict(zip(("true", "predicted", "images"), map(list, zip(*pairs))))
        figures = {
            "images": 15,
            "accuracy": accuracy,
            "chance": 33.3,
            "class_recall": dict.fromkeys(names, 60.0),
            "confusion": matrix,
        }
        run.log({"event": "eval", "data": data, "classes": part, **figures, **(event or {})})
    run.finish()
    return folder


def both_methods(tmp_path):
    """AAPE on two seeds and on both kinds of classes, and a linear probe that knows no new classes."""
    made = []
    for seed, all_, base, new in ((1, 80.0, 90.0, 30.0), (2, 84.0, 60.0, 60.0)):
        probe = {"method": "linear_probe", "seed": seed}
        half = {"classes": "base", "accuracies": {"base": base, "new": new}}
        made += [
            fabricate(tmp_path / f"a{seed}", seed=seed, accuracies={"all": all_}),
            fabricate(tmp_path / f"b{seed}", seed=seed, **half),
            fabricate(tmp_path / f"p{seed}", accuracies={"all": 85.0}, **probe),
            fabricate(tmp_path / f"q{seed}", classes="base", accuracies={"base": 70.0}, **probe),
        ]
    return made
