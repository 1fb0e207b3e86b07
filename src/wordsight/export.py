"""Export: a finished run as one folder that needs nothing outside it, and names no folder of the machine that
it was made on.

backbone/   the backbone of a classifier, or what limber sees by; a two_tower is one itself, with its LM in
            text/base/ and its image tower in image/
lm/         the LM of a limber
licences/   the licence files that lay beside the parts
README.md   a model card (model_card/), with figures.png
            the rest is the run's: see runs.py
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wordsight.backbones import OWN_FILE, Backbone, hub, load_backbone
from wordsight.config import RunSettings, WordsightError, relocated
from wordsight.early import EVENTS, KEPT
from wordsight.files import new_folder, read_text, write_file
from wordsight.fitted import (
    SIDES,
    is_asking,
    is_captioner,
    is_embedder,
    open_backbone,
    open_embedder,
    open_generator,
)
from wordsight.model_card import CARD, Part, last_part, public, write_card
from wordsight.runs import NO_BACKBONE, Run

FOLDER, LM_FOLDER, LICENCES = "backbone", "lm", "licences"
LICENCE_FILES = ("LICEN[CS]E*", "NOTICE*", "COPYING*")
SHOWN = ("fit", "eval", "retrieval", "captions", "train")  # events that are kept


def export(
    run: str | Path,
    out: str | Path,
    *,
    backbone: Backbone | str | None = None,
    copy_backbone: bool = True,
    name: str | None = None,
    licence: str | None = None,
) -> Path:
    """Write the finished run `run` (a folder, or hf:org/name) into the new folder `out`, with its backbone:
    `predict out image.jpg` and `wordsight.load(out)` work on a machine that has nothing else, offline.

    `backbone` names the run's backbone where it has moved. `copy_backbone=False` only names one that the hub
    has. `name` is what the card calls it: the folder's name, if nothing else is given, and `licence` the
    hub's identifier of the licence that it is passed on under; by default what all its parts state. The
    package of a method or backbone that was given as package.module:Class is named in the card, and must be
    installed there.

    Errors: WordsightError for a run that is not finished, whose backbone is not the one that it was fitted
    on, or whose backbone does not come back the same from the folder; nothing is left of `out` then."""
    there = Run.open(hub.run_folder(run))
    if is_asking(there):
        raise WordsightError(
            f"{there.folder} asks a model and has nothing of its own to export; copy the folder, and give "
            f"backbone=... where the model lies elsewhere"
        )
    with new_folder(out) as folder:
        if is_embedder(there):
            tower, place = _whole_embedder(there, backbone, folder), "./image"
        elif there.settings.backbone == NO_BACKBONE:
            tower, place = None, NO_BACKBONE
        else:
            tower = open_backbone(there, backbone, sides=SIDES[:1] if is_captioner(there) else SIDES)
            named = not copy_backbone and hub.on_hub(tower.source)
            place = tower.source if named else _inside(there.settings)
            if place != tower.source:
                tower.save_whole(folder / FOLDER)
        parts = dict(tower.parts) if tower is not None else {}
        settings = replace(relocated(there.settings, public), backbone=place, out=None, device="auto")
        if is_captioner(there):
            _copy_lm(there, tower, folder / LM_FOLDER)
            parts["language model"] = there.settings.settings.text
            settings = replace(settings, settings=replace(settings.settings, text=f"./{LM_FOLDER}"))
        copy = Run(folder, settings, there.facts)
        _copy_run(there, copy)
        licences = licences_of(parts, folder, there.folder)
        write_file(folder / CARD, write_card(there, folder, name or Path(out).name, licences, licence))
        prints = None if tower is None else (tower.image_fingerprint, tower.text_fingerprint)
        tower = None  # before another is read: it may fill most of the memory
        _check(copy, prints)
    return Path(out).expanduser()


def _whole_embedder(there: Run, given: Backbone | str | None, folder: Path) -> Backbone:
    """What a run of pairs became, written into the folder with all that it needs."""
    from wordsight.backbones.llm import LLM  # needs the extra lm, as what is below does
    from wordsight.backbones.prompted import Prompted

    tower = open_embedder(there, given)
    assert isinstance(tower, (LLM, Prompted))  # what embedders become
    tower.write_whole(folder)
    return tower


def _copy_lm(there: Run, tower: Backbone | None, folder: Path) -> None:
    """The LM of a limber, once it is seen to be the one that the run was fitted to."""
    from wordsight.methods.limber_generator import LimberGenerator

    generator = open_generator(there.folder, backbone=tower)
    assert isinstance(generator, LimberGenerator)  # what every captioner becomes
    hub.save_part(folder, generator.method.lm.lm, generator.method.lm.tokenizer)


def _inside(settings: RunSettings) -> str:
    """A backbone's name within the folder; the class of one that is not ours is still needed."""
    kind, _, _ = settings.backbone.partition("@")
    return f"{kind}@./{FOLDER}" if ":" in kind else f"./{FOLDER}"


def _copy_run(there: Run, copy: Run) -> None:
    """The run's own files. What says how its images were called or where they lay stays behind."""
    for name in KEPT:
        if (there.folder / name).is_file():
            shutil.copyfile(there.folder / name, copy.folder / name)
    copy.write_config()
    for file in copy.folder.rglob(OWN_FILE):
        hub.save_json(file, _everywhere(hub.read_mapping(file, "backbone")))
    events = [event for event in there.events() if event["event"] in SHOWN]
    lines = (json.dumps(_everywhere(event | {"skipped": []}), ensure_ascii=False) for event in events)
    write_file(copy.folder / EVENTS, "".join(f"{line}\n" for line in lines))
    copy.finish()


def _everywhere(value: Any) -> Any:
    """A value of JSON in which no text is a path of this machine."""
    if isinstance(value, str):
        return last_part(value) if value.startswith(("/", "~")) or Path(value).is_absolute() else value
    if isinstance(value, Mapping):
        return {key: _everywhere(one) for key, one in value.items()}
    return [_everywhere(one) for one in value] if isinstance(value, list) else value


def _check(copy: Run, prints: tuple[str, str] | None) -> None:
    """Errors: WordsightError where the folder's backbone is another than the run's."""
    if prints is None:
        return
    run = Run.open(copy.folder)
    if is_captioner(run):
        open_generator(run.folder)  # which compares its backbone and its LM with the run's
        return
    again = (
        open_embedder(run)
        if is_embedder(run)
        else load_backbone(run.settings.backbone, dtype=run.settings.dtype)
    )
    if (again.image_fingerprint, again.text_fingerprint) != prints:
        raise WordsightError(
            f"backbone {again.name!r} does not give the same vectors once it is saved and read again; its "
            f"save_pretrained does not keep all that decides them"
        )


# -- what a folder says of itself ----------------------------------------------------------------------------


def licences_of(parts: Mapping[str, str], folder: Path, run: Path) -> list[Part]:
    """Of each part its name, where it comes from and what is known of its licence, whose files are copied."""
    if (run / LICENCES).is_dir():  # of what was exported before
        shutil.copytree(run / LICENCES, folder / LICENCES)
    found = []
    for part, source in parts.items():
        if source in ("micro", *hub.BUNDLED):
            found.append(Part(part, source, "bundled with Wordsight, Apache-2.0", "apache-2.0"))
            continue
        place = hub.local(source)
        files = [file for kind in LICENCE_FILES for file in sorted(place.glob(kind))] if place else []
        target = folder / LICENCES / part.replace(" ", "-")
        for file in filter(Path.is_file, files):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.name)
        said = _licence_said(place) if place else None
        kept = ", ".join(f"`{file.relative_to(folder)}`" for file in sorted(target.glob("*")))
        told = ", ".join(filter(None, (said, kept)))
        found.append(Part(part, last_part(source), told, said or ""))
    return found


def _licence_said(folder: Path) -> str | None:
    """What a model card in the folder names as licence."""
    card = folder / CARD
    front = read_text(card, "model card").split("\n---", 1)[0] if card.is_file() else ""
    found = re.search(r"^license: *([\w.+-]+) *$", front, re.MULTILINE)
    return found[1] if found else None
