"""Generate: what the language model inside a backbone writes on from a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wordsight.backbones import load_backbone
from wordsight.backbones.sampling import drawn
from wordsight.config import METHODS, RunSettings, WordsightError, load_yaml, resolve
from wordsight.methods import Embedder
from wordsight.reader import build
from wordsight.sentences.local import tower_of

if TYPE_CHECKING:
    from wordsight.backbones.text_tower import TextTower

Adapters = Literal["on", "off", "both"]


def open_tower(name: str, *, device: str = "auto") -> TextTower:
    """The text tower of a two_tower run, or of an LLM backbone's folder or hub name, in the dtype it was
    trained in.

    Errors: WordsightError that says what it is instead.
    """
    config, dtype = Path(name) / "config.yaml", RunSettings.dtype
    if config.is_file():
        settings = build(RunSettings, load_yaml(config).get("settings", {}))
        if not issubclass(resolve(METHODS, settings.method, "method"), Embedder):
            lm = getattr(settings.settings, "text", None)
            own = f"which reads with {lm}" if lm else "a classifier without an LM of its own"
            raise WordsightError(
                f"{name!r} is a run of {settings.method}, {own}; give a two_tower run, whose LM is its text "
                f"tower; `wordsight chat` takes what captions and answers"
            )
        dtype = settings.dtype
    return tower_of(load_backbone(name, device=device, dtype=dtype))


def generate(
    tower: TextTower,
    text: str,
    adapters: Adapters = "off",
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 1,
) -> dict[str, str]:
    """What the LM writes on from `text`, by adapters: {"off": ..., "on": ...}. `both` runs an untouched and
    an adapted row in one batch.

    At temperature 0 the likeliest token always follows; above it, tokens are drawn from `seed`. Errors:
    WordsightError where the LM cannot write so."""
    if adapters not in ("on", "off", "both"):
        raise WordsightError(f"adapters={adapters!r} is not a choice; the choices are on, off, both")
    if not text.strip():
        raise WordsightError("there is nothing to write on from; give a text")
    ids = tower.tokenizer(text)["input_ids"]
    _check_room(tower, len(ids), max_new_tokens)
    rows = ["off", "on"] if adapters == "both" else [adapters]
    written = tower.generate_tokens(
        [ids] * len(rows), rows, max_new_tokens=max_new_tokens, **drawn(temperature, [seed] * len(rows))
    )
    begin = _spoken(tower, ids)
    return {row: _spoken(tower, ids + new.tolist()).removeprefix(begin) for row, new in zip(rows, written)}


# Inside


def _spoken(tower: TextTower, ids: list[int]) -> str:
    """Decoded together with what stands before: a tokenizer may drop the space that a text begins with."""
    return tower.tokenizer.decode(ids, skip_special_tokens=True)


def _check_room(tower: TextTower, given: int, wanted: int) -> None:
    if wanted < 1:
        raise WordsightError(f"max_new_tokens={wanted} writes nothing; give 1 or more")
    from wordsight.backbones.checkpoint import positions_of  # with transformers, which the tower has read

    held = positions_of(tower.plain.config)
    if held and given + wanted > held:
        raise WordsightError(
            f"a text of {given} tokens and {wanted} new ones do not fit into the {held} positions of "
            f"{tower.plain.config.model_type}; "
            "give a shorter text, or fewer new tokens"
        )
