"""Cost: what every method takes at 10, 100 and 1,000 classes, measured one after the other in one process on
one thread.

Accuracy plays no part, so images, sentences and class names are made up from a fixed seed; a text tower,
where a method learns through one, is the given backbone's. Times are medians. FLOPs are counted by torch as
they are executed: multiplications of matrices and attention, not what is done number by number, and not
scikit-learn's."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wordsight.backbones import Backbone, unit
from wordsight.batches import FeatureBatches
from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.files import write_file
from wordsight.fitted import predict_logits
from wordsight.fitting import fit_method
from wordsight.meter import TooLong, clock, device_name, limited, one_thread, peak_mib, processor
from wordsight.methods import Classifier, FitData, Learner
from wordsight.runs import RunFacts, build_method
from wordsight.sentences import ClassTexts
from wordsight.train import total_steps, train

SHOTS, SENTENCES = 16, 20  # images and sentences of each class
REPEATS, BUDGET = (
    30,
    2.0,
)  # steps, or predictions: so many, or as many as fit into these seconds, three at least
WHOLE = 10.0  # a fit that should take no longer is made; of a longer one the steps are multiplied
LIMIT = 120.0  # seconds after which what cannot be multiplied, a closed form, is given up
BATCH = 512  # images predicted together at most
COLUMNS = {
    "parameters": "parameters",
    "step_mflops": "MFLOPs a step",
    "step_ms": "ms a step",
    "fit_seconds": "s to fit",
    "image_mflops": "MFLOPs an image",
    "images_per_second": "images/s",
    "fit_mib": "MiB fitting",
    "predict_mib": "MiB predicting",
}
LEGEND = (
    f"{SHOTS} images and {SENTENCES} sentences a class, vectors made up. Medians of processor time on one "
    "thread (on an accelerator of the clock), from cached features: no image goes through a tower here. "
    "A step is the method's own batch, forward, backward and update. s to fit: closed forms and all steps; "
    "≈ closed forms measured and the median step multiplied by their number; > given up. MiB: peak resident "
    "memory above the start (on CUDA the device's), of fitting (closed form, one step) and of predicting one "
    "image. FLOPs: counted as executed, matrix products and attention; scikit-learn's are not seen. –: there "
    "is none."
)


log = logging.getLogger("wordsight")


class Ends:
    """When each step ended, as the loop tells it."""

    state = None  # nothing is resumed

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clocks: list[float] = []

    def log(self, event: dict[str, Any]) -> None:
        self.clocks.append(clock(self.device))

    def rewind(self, step: float) -> None:
        """There is nothing to forget."""


class Problem(NamedTuple):
    """Made-up classes with their images and words."""

    facts: RunFacts
    images: Float[Tensor, "n 1 D"]
    labels: Int[Tensor, " n"]
    texts: ClassTexts


def measure(
    entries: Mapping[str, RunSettings],
    backbone: Backbone,
    sizes: Sequence[int],
    folder: str | Path,
) -> dict[str, Any]:
    """Measure every method at every number of classes; writes cost.json and cost.md into `folder`. What a
    method cannot do is in "failed".
    """
    rows, failed = [], []
    with one_thread():
        warm_up(entries.values(), backbone)
        for size in sizes:
            problem = made_up(size, backbone)
            for label, settings in entries.items():
                try:
                    rows.append(
                        {"method": label, "classes": size}
                        | cost_of(replace(settings, shots=SHOTS), problem, backbone)
                    )
                    log.info(
                        f"{size} classes  {label}  "
                        + "  ".join(f"{name} {text}" for name, text in list(as_cells(rows[-1]).items())[2:])
                    )
                except WordsightError as error:
                    failed.append({"run": f"{label}, {size} classes", "says": str(error)})
    if not rows:
        raise WordsightError(f"nothing could be measured; the first, {failed[0]['run']}: {failed[0]['says']}")
    machine = {
        "processor": processor(),
        "torch": torch.__version__,
        "device": device_name(backbone.device),
        "threads": 1,
    }
    facts = {
        "backbone": backbone.name,
        "width": backbone.dim,
        "shots": SHOTS,
        "sentences": SENTENCES,
        **machine,
    }
    folder = Path(folder)
    head = (
        f"Backbone {backbone.name} ({backbone.dim} wide); {machine['processor']}, {machine['device']}, "
        f"torch {torch.__version__}. {LEGEND}"
    )
    text = "\n\n".join(
        [
            *(
                as_markdown([row for row in rows if row["classes"] == size])
                for size in sizes
                if any(r["classes"] == size for r in rows)
            ),
            head,
        ]
    )
    write_file(
        folder / "cost.json", json.dumps({"facts": facts, "rows": rows, "failed": failed}, indent=1) + "\n"
    )
    write_file(folder / "cost.md", text + "\n")
    files = {"markdown_file": str(folder / "cost.md"), "json": str(folder / "cost.json")}
    return {
        "suite": "cost",
        "out": str(folder),
        "facts": facts,
        "rows": rows,
        "failed": failed,
        "markdown": text,
        **files,
    }


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [as_cells(row) for row in rows]
    rule = "|" + ":--|" + "--:|" * (len(lines[0]) - 1)
    return "\n".join(
        [
            "| " + " | ".join(lines[0]) + " |",
            rule,
            *("| " + " | ".join(line.values()) + " |" for line in lines),
        ]
    )


def as_cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {title: "–" if row.get(name) is None else number(row[name]) for name, title in COLUMNS.items()}
    cells["s to fit"] = {"measured": "", "multiplied": "≈ ", "given up": "> "}[row["fit_how"]] + cells[
        "s to fit"
    ]
    return {"method": row["method"], "classes": f"{row['classes']:,}"} | cells


def warm_up(settings: Iterable[RunSettings], backbone: Backbone) -> None:
    """Everything once, on next to nothing: what is imported and prepared at first use is no cost of a
    method.
    """
    problem = made_up(2, backbone)
    for one in settings:
        with contextlib.suppress(WordsightError):
            once = TrainSettings(max_steps=1, batch_size=2) if one.train else None
            method = fit_method(replace(one, train=once), problem.facts, data_of(problem, one), backbone)
            predict_logits(method, problem.images[:1, 0].to(backbone.device))


# -- one method ----------------------------------------------------------------------------------------------


def cost_of(settings: RunSettings, problem: Problem, backbone: Backbone) -> dict[str, Any]:
    """All figures of one method at one size. A method that trains nothing has none of a step."""
    made: list[Classifier] = []
    begun: list[tuple[tuple[Tensor, Tensor], float]] = []  # what is learned from, and the seconds it took
    row: dict[str, Any] = {"fit_how": "measured"}
    device = backbone.device

    def begin() -> None:
        made.append(fresh(settings, problem, backbone))
        began = clock(device)
        with limited(LIMIT):
            examples = made[0].begin(data_of(problem, settings))
            begun.append((examples, clock(device) - began))

    with contextlib.suppress(TooLong):
        row["fit_mib"] = peak_mib(begin, device)
    method = made.pop()
    row["parameters"] = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    if not begun:
        row |= {"fit_seconds": LIMIT, "fit_how": "given up"}
    if not begun and isinstance(method, Learner):
        return row
    method.choose(problem.texts)
    method.to(device)
    if isinstance(method, Learner):
        row |= step_costs(method, settings, *begun[0], row["fit_mib"], backbone)
    if begun and row.get("fit_seconds", 0) <= WHOLE:
        began = clock(device)
        method = fit_method(settings, problem.facts, data_of(problem, settings), backbone)
        row |= {"fit_seconds": clock(device) - began, "fit_how": "measured"}
    method.eval()
    return row | predict_costs(method, problem, backbone)


def fresh(settings: RunSettings, problem: Problem, backbone: Backbone) -> Classifier:
    torch.manual_seed(settings.seed)
    return build_method(settings, problem.facts, backbone)


def data_of(problem: Problem, settings: RunSettings) -> FitData:
    return FitData(problem.images, problem.labels, problem.texts, settings.seed)


def step_costs(
    method: Any,
    settings: RunSettings,
    examples: tuple[Tensor, Tensor],
    begun: float,
    begun_mib: float | None,
    backbone: Backbone,
) -> dict[str, Any]:
    training = settings.train
    batches = FeatureBatches(*examples, training.batch_size, settings.seed)

    def run(steps: int, ends: Ends | None = None) -> None:
        train(
            method,
            batches,
            replace(training, max_steps=steps, log_steps=1),
            seed=settings.seed,
            device=backbone.device,
            run=ends,
        )

    def timed(steps: int) -> list[float]:
        ends = Ends(backbone.device)
        run(steps, ends)
        return [later - sooner for sooner, later in itertools.pairwise(ends.clocks)]

    first = timed(3)  # of three steps two have a beginning and an end
    taken = median(timed(most(first[-1])) if first[-1] * 3 < BUDGET else first)
    mib = [value for value in (begun_mib, peak_mib(lambda: run(1), backbone.device)) if value is not None]
    total = total_steps(training, len(batches))
    figures = {
        "step_ms": 1000 * taken,
        "steps": total,
        "step_mflops": mflops(lambda: run(1)),
        "fit_mib": max(mib, default=None),
    }
    return figures | {"fit_seconds": begun + total * taken, "fit_how": "multiplied"}


def predict_costs(method: Classifier, problem: Problem, backbone: Backbone) -> dict[str, Any]:
    images = problem.images[:, 0].to(backbone.device)
    images = images.repeat(math.ceil(BATCH / len(images)), 1)[:BATCH]

    def seconds(count: int) -> float:
        began = clock(backbone.device)
        predict_logits(method, images[:count])
        return clock(backbone.device) - began

    one = min(seconds(1), seconds(1))
    count = max(1, min(BATCH, int(BUDGET / 10 / max(one, 1e-9))))
    taken = median(seconds(count) for _ in range(most(seconds(count))))
    figures = {
        "images_per_second": count / max(taken, 1e-9),
        "batch": count,
        "predict_mib": peak_mib(lambda: predict_logits(method, images[:1]), backbone.device),
    }
    return figures | {"image_mflops": mflops(lambda: method.score(images[:1]))}


def most(seconds: float) -> int:
    """How often something is repeated that takes so long."""
    return max(3, min(REPEATS, int(BUDGET / max(seconds, 1e-6))))


def mflops(work: Callable[[], Any]) -> float | None:
    """Counted as they are executed; attention is taken apart, since its fused form on the CPU is not known to
    the counter. None where there are none.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e6 or None


# -- made-up classes -----------------------------------------------------------------------------------------


def made_up(size: int, backbone: Backbone, seed: int = 0) -> Problem:
    """`size` classes around random directions: images, one vector for the name, and sentences near it."""
    if size < 2:
        raise WordsightError(
            f"sizes={size} leaves nothing to choose among; give numbers of classes from 2 on, such as "
            f"sizes=10,100,1000"
        )
    stream, dim = torch.Generator().manual_seed(seed), backbone.dim
    centres = unit(torch.randn(size, dim, generator=stream))

    def near(*shape: int) -> Tensor:
        return unit(
            centres.view(size, *[1] * (len(shape) - 2), dim)
            + torch.randn(*shape, generator=stream) / math.sqrt(dim)
        )

    names = made_up_names(size, seed)
    sentences = tuple(
        tuple(f"a {name} as seen {number} times." for number in range(SENTENCES)) for name in names
    )
    texts = ClassTexts(names, near(size, dim), sentences, tuple(near(size, SENTENCES, dim).unbind()))
    images = near(size, SHOTS, dim).flatten(0, 1)[:, None]
    facts = RunFacts(names, dim, backbone.logit_scale, RunSettings.template)
    return Problem(facts, images, torch.arange(size).repeat_interleave(SHOTS), texts)


def made_up_names(size: int, seed: int) -> tuple[str, ...]:
    """Distinct words such as `belado`, of about the tokens that a real class name has."""
    stream, names = random.Random(seed), dict[str, None]()
    while len(names) < size:
        names["".join(stream.choice("bdfgklmnprst") + stream.choice("aeiou") for _ in range(3))] = None
    return tuple(names)


# -- measuring -----------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits or so, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
