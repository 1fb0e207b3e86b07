"""Files that Wordsight wrote itself: a run folder, the state of a killed one, the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tiny import AAPE, PAIRED

from inputs import Input, both, cut, flip, odd, put

IMAGE = "ph/alpha/1.png"
NEEDS = ("ph", "s.json")
AGAIN = ("fit", "data=ph", *AAPE, "--json")
READERS = {
    "predict": ("predict", "r", IMAGE, "--top", "3", "--explain", "--json"),
    "eval": ("eval", "r", "--json"),
    "report": ("report", "r", "--json"),
    "fit": (*AGAIN, "out=r"),
}
TOWER = ("eval", "tw", "data=pairs.csv", "--json")
TOWER_AGAIN = ("fit", "data=pairs.csv", *PAIRED, "out=tw", "--json")


def inputs(base: Path) -> Iterator[Input]:
    here = base / "here"
    for file in files(here, "r"):
        yield from of_run(file, "r", READERS)
    for file in files(here, "h"):
        yield from of_run(file, "h", {"fit": (*AGAIN, "out=h")})
    towers = {"eval": TOWER, "fit": TOWER_AGAIN}
    for file in files(here, "tw"):
        yield from of_run(file, "tw", towers, ("ph", "pairs.csv"), few=True)


def files(here: Path, folder: str) -> list[str]:
    return sorted(str(path.relative_to(here)) for path in (here / folder).rglob("*") if path.is_file())


def of_run(
    file: str,
    run: str,
    readers: dict[str, tuple[str, ...]],
    needs: tuple[str, ...] = NEEDS,
    few: bool = False,
) -> Iterator[Input]:
    """Every sort of damage to one file, met by the verbs in turn."""
    damages = list(tensor_damages(file) if file.endswith(".safetensors") else text_damages(file))
    for number, (what, make, judge) in enumerate(damages[:: 3 if few else 1]):
        verb = list(readers)[number % len(readers)]
        yield Input(f"{file}: {what}, then {verb}", make, readers[verb], (*needs, run), judge=judge)


def text_damages(file: str) -> Iterator[tuple[str, Callable[[Path], None], str]]:
    """What is still text of the right form may say anything, and be believed: "any"."""
    for how in ("nothing", "folder", "fifo"):
        yield f"a {how}", odd(file, how), "any"
    for seed in range(4):
        yield f"a bit flipped ({seed})", flip(file, seed), "any"
    for share in (0, 0.5, 0.98):
        yield f"cut at {share}", cut(file, share), "any"
    yield "zeros", put(file, bytes(300)), "any"
    yield "a list", put(file, "[]\n"), "any"


def tensor_damages(file: str) -> Iterator[tuple[str, Callable[[Path], None], str]]:
    """What is no longer what was written must be noticed: "same"."""
    for seed in range(8):
        yield f"a bit flipped ({seed})", flip(file, seed, 1, 0.3), "same"
    for seed in range(3):
        yield f"a bit of its head flipped ({seed})", flip(file, seed, 1, 0, 0.05), "same"
    for share in (0, 0.1, 0.6, 0.999):
        yield f"cut at {share}", cut(file, share), "same"
    for how in ("nothing", "folder", "fifo"):
        yield f"a {how}", odd(file, how), "same"
    for change in (
        "nan",
        "inf",
        "renamed",
        "missing",
        "one more",
        "half",
        "double",
        "whole numbers",
        "bfloat16",
        "shape",
        "empty",
        "zeros",
        "swapped",
        "scalar",
    ):
        for metadata in ("kept", "gone") if change in ("nan", "half", "shape", "zeros") else ("kept",):
            free = change == "zeros" and metadata == "gone"  # whole, without a digest: nobody can know
            make = partial(tensors_changed, file, change, metadata)
            yield f"tensors {change}, metadata {metadata}", make, "any" if free else "same"
    yield "metadata gone", partial(tensors_changed, file, "none", "gone"), "same"
    yield "metadata of texts", partial(tensors_changed, file, "none", "texts"), "same"
    yield "zeros", put(file, bytes(300)), "same"
    yield "junk after it", partial(append, file), "same"


def append(file: str, here: Path) -> None:
    with open(here / file, "ab") as opened:
        opened.write(b"junk")


def tensors_changed(file: str, change: str, metadata: str, here: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(here / file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        known = dict(opened.metadata() or {})
    floats = [name for name in sorted(tensors) if tensors[name].is_floating_point() and tensors[name].numel()]
    name = (floats or sorted(tensors))[-1]
    tensor = tensors[name]
    types = {
        "half": torch.float16,
        "double": torch.float64,
        "whole numbers": torch.int64,
        "bfloat16": torch.bfloat16,
    }
    if change in types:
        tensors[name] = tensor.to(types[change])
    elif change in ("nan", "inf") and tensor.is_floating_point():
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[0] = float(change)
    elif change == "renamed":
        tensors[name + "_"] = tensors.pop(name)
    elif change == "missing":
        del tensors[name]
    elif change == "one more":
        tensors["more"] = torch.zeros(2)
    elif change == "shape":
        tensors[name] = torch.zeros(3, 5, 7)
    elif change == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif change == "empty":
        tensors = {}
    elif change == "zeros":
        tensors[name] = torch.zeros_like(tensor)
    elif change == "swapped":
        tensors[name] = tensor.flip(0) if tensor.dim() else tensor + 1
    metadata_now: dict[str, Any] = {"kept": known, "gone": None, "texts": {key: "x" for key in known}}[
        metadata
    ] or None
    save_file(tensors, here / file, metadata=metadata_now)


def cache_inputs(base: Path) -> Iterator[Input]:
    """Damage to the caches: made again or told of, and never another result."""
    words = ("eval", "r0", "data=ph", "--json")
    fit = ("fit", "data=ph", *AAPE, "out=q", "--json")
    cached = sorted((path for path in (base / "cache").rglob("*") if path.is_file()), key=by_age)
    for row, path in enumerate(cached):
        file = f"../cache/{path.relative_to(base / 'cache')}"
        needs = ("ph", "r0", "s.json")
        damages = list(cache_damages(file))
        for number, (what, make) in enumerate(damages):
            command = (words, fit)[(number + row) % 2]
            yield Input(
                f"{file[9:]}: {what}", make, command, needs, judge="same", must="right or told or words"
            )
    yield Input("two shards have changed places", swapped, words, judge="same")
    for name in ("features/x.safetensors", "x.txt", "features/x/y.safetensors", "features/.part"):
        yield Input(f"a foreign file {name}", put(f"../cache/{name}", "x"), words, judge="same")
    for how in ("nothing", "fifo", "loop"):
        yield Input(f"the cache is a {how}", odd("../cache", how), words, judge="same")
    one_file = both(odd("../cache", "nothing"), put("../cache", "x"))
    yield Input("the cache is a file", one_file, words, judge="same")


def by_age(path: Path) -> tuple[str, int]:
    """Names of shards are drawn anew each time, their order in a folder is not."""
    return str(path.parent), path.stat().st_mtime_ns


def cache_damages(file: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    for seed in range(6):
        yield f"a bit flipped ({seed})", flip(file, seed, 1, 0.3)
    yield "a bit of its head flipped", flip(file, 1, 1, 0, 0.05)
    for share in (0, 0.5, 0.99):
        yield f"cut at {share}", cut(file, share)
    for how in ("folder", "fifo"):
        yield f"a {how}", odd(file, how)
    if file.endswith(".safetensors"):
        for change in ("nan", "half", "double", "shape", "empty", "renamed", "swapped"):
            yield f"tensors {change}", partial(tensors_changed, file, change, "kept")
        yield "metadata gone", partial(tensors_changed, file, "none", "gone")
        yield "NaN and metadata gone", partial(tensors_changed, file, "nan", "gone")


def swapped(here: Path) -> None:
    """A shard's content under the name of a shard of other vectors."""
    found = sorted(path for path in (here / "../cache").rglob("*.safetensors"))
    one, other = found[0], found[-1]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
