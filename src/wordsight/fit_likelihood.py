"""Fit likelihood: a run that asks a generative model for classes. Nothing is trained; what is kept is what is
asked, and the examples that are shown before. The same run folder as of other methods, resumed by the same
command."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

from wordsight.asked import Asked, model_of
from wordsight.backbones import Backbone
from wordsight.backbones.generator import Generator
from wordsight.config import RunSettings, WordsightError, default_folder
from wordsight.data import Dataset, Split
from wordsight.data.splits import fingerprint
from wordsight.fit import draw, seen_images
from wordsight.fitting import carry_out
from wordsight.runs import Run, RunFacts
from wordsight.tasks import classify


def fit_likelihood(
    settings: RunSettings, backbone: Backbone | Generator | None = None, source: Dataset | None = None
) -> Run:
    """Ask the model of one run about its test images; the same settings again give it back finished.
    `backbone` is the model where it is open already. Errors: WordsightError."""
    drawn = draw(settings, source)
    drawn.whole.account.tell()
    shown = examples_of(drawn.dataset.train, settings.settings.examples, settings.seed)
    generator = backbone if isinstance(backbone, Generator) else model_of(settings)
    facts = RunFacts(
        drawn.dataset.class_names,
        dim=0,
        logit_scale=1.0,
        template=settings.settings.answer,
        images=fingerprint(shown) if len(shown) else "",
        test=fingerprint(classify.test_part(drawn.whole)),
        lm=generator.fingerprint,
    )
    folder = settings.out or default_folder(settings)
    asked = Asked.showing(generator, settings, facts.classes, shown)
    some = classify.test_part(drawn.whole).pictures[:1]
    begins = not Path(folder).expanduser().exists()
    if some and begins:  # a prompt that does not fit is refused before a run begins
        asked.ask(some)

    def complete(run: Run) -> None:
        began = time.monotonic()
        learned = replace(drawn.dataset, train=shown) if drawn.everything else drawn.dataset
        run.keep_seen(seen_images(settings, learned))
        run.keep_weights(asked.weights())
        classify.evaluate(run, fitted=asked, source=drawn.whole)
        seconds = {"fit": round(time.monotonic() - began, 3)}
        run.log({"event": "fit", "seconds": seconds, "images": len(shown), "parameters": 0, "skipped": []})

    return carry_out(folder, settings, facts, complete, account=drawn.whole.account)


def examples_of(train: Split, count: int, seed: int) -> Split:
    """So many labelled images, drawn by `seed`: of as many classes as there can be, in mixed order.

    Errors: WordsightError for fewer images than are asked for."""
    if count > len(train):
        raise WordsightError(
            f"settings.examples={count}, but the data has {len(train)} labelled images to show; give fewer"
        )
    rows = list(range(len(train)))
    random.Random(seed).shuffle(rows)
    turn: dict[int, int] = {}
    order = []
    for row in rows:  # first one of each class, then a second
        label = int(train.labels[row])
        turn[label] = turn.get(label, 0) + 1
        order.append((turn[label], len(order), row))
    return train.take([row for _, _, row in sorted(order)[:count]])
