"""Assistant: one language model that classifies, embeds, captions, answers, chats and writes sentences. A
CLAMP run's adapters and a limber run's map stand over the same LM, which is in memory once.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wordsight.assistant.chat import DEFAULT, Chat, read_one
from wordsight.backbones import Backbone, device_or_cpu, kind_of, load_backbone, pick_device, several
from wordsight.backbones.generator import Generator, Prompt, Seen, Turn, Writing
from wordsight.backbones.hub import BUNDLED, read_facts, run_folder, save_json
from wordsight.backbones.llm import LLM
from wordsight.backbones.lm import untouched
from wordsight.backbones.lm_generator import LMGenerator
from wordsight.backbones.prefixed import PrefixedLM, write_adapted
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.verify import Check, verify
from wordsight.captioner import Captions
from wordsight.config import RunSettings, WordsightError
from wordsight.data.features import image_features, text_features
from wordsight.data.given import names_in
from wordsight.data.labels import check_distinct
from wordsight.data.pictures import pictures_of
from wordsight.early import is_run
from wordsight.files import new_folder
from wordsight.fitted import (
    SIDES,
    Fitted,
    captioner_of,
    is_captioner,
    is_embedder,
    open_backbone,
    open_generator,
)
from wordsight.runs import Run
from wordsight.sentences.self_written import SELF, sentences_for
from wordsight.tasks.answer import MEASURED, cut
from wordsight.tasks.generate import open_tower

FILE, FORMAT = "wordsight_assistant.json", 1
CLAMP, LIMBER = "clamp", "limber"  # the runs' folders inside
STATE = "state"  # of a run, which a finished one has not


class Assistant:
    """One LM in one process. `embedder` is CLAMP's backbone, which classifies and embeds, `generator` what
    writes, about images too; either may be missing, and what needs it says so.

    Calls from several threads take turns where they share the LM, so that each gets what it would get alone.
    """

    def __init__(self, embedder: LLM | None, generator: Generator, *, name: str, runs: Sequence[Run] = ()):
        self.embedder, self.generator, self.name, self.runs = embedder, generator, name, tuple(runs)

    # -- opening and saving --

    @classmethod
    def from_runs(
        cls,
        clamp: str | Path,
        limber: str | Path,
        *,
        device: str | None = None,
        backbone: str | None = None,
    ) -> Assistant:
        """Of a two_tower run and a limber run over the same LM, which is loaded once, in the two_tower run's
        dtype. `device` is the two_tower run's where none is named; `backbone` is where the limber run's lies
        now, if it has moved.

        Errors: WordsightError for other runs, for two LMs, and for what has changed since they were fitted.
        """
        one, other = Run.open(run_folder(clamp)), Run.open(run_folder(limber))
        if not is_embedder(one) or not is_captioner(other):
            raise WordsightError(
                f"{one.folder} is a run of {one.settings.method} and {other.folder} of "
                f"{other.settings.method}; give a two_tower run and a limber run"
            )
        embedder = _embedder(str(one.folder), device)
        lm = _shared(embedder)
        if lm.origin != other.facts.lm:
            raise WordsightError(
                f"{one.folder} and {other.folder} stand over different LMs: {one.settings.settings.text!r} "
                f"and {other.settings.settings.text!r} have other weights, or one was replaced. Give two "
                f"runs with the same settings.text, or fit one again"
            )
        generator = captioner_of(other, _eyes(other, embedder, backbone), lm)
        return cls(embedder, generator, name=f"{one.folder} and {other.folder}", runs=(one, other))

    @classmethod
    def open(cls, name: str | Path, *, device: str | None = None, backbone: str | None = None) -> Assistant:
        """A folder that `save` wrote; or what a two_tower run, a limber run, an image-text-to-text model or
        an LM can do by itself, by folder or hub name.

        Errors: WordsightError for anything else, and for what has changed since."""
        path = run_folder(name)
        if is_assistant(path):
            facts = read_facts(path / FILE, "assistant", "assistant", FORMAT, lm=str)
            found = cls.from_runs(path / CLAMP, path / LIMBER, device=device, backbone=backbone)
            if _lm_of(found.generator).origin != facts["lm"]:
                raise WordsightError(f"{path / FILE} names another LM than its runs; it was edited")
            found.name = str(path)
            return found
        if is_run(path) and is_captioner(Run.open(path)):
            return cls(None, open_generator(path, device=device, backbone=backbone), name=str(path))
        return cls._of_model(str(name), device)

    @classmethod
    def _of_model(cls, name: str, device: str | None) -> Assistant:
        kind = "vision" if name in BUNDLED else kind_of(name.removeprefix("hf:"), False)[0]
        if kind == "mllm":
            return cls(None, open_generator(name, device=device), name=name)
        if kind == "vision":  # or a config.json without an image part of its own: an LM, or refused as none
            lm = PrefixedLM.from_base(name, device=pick_device(device or "auto"))
            return cls(None, LMGenerator(lm, name=name), name=name)
        return cls.of_embedder(_embedder(name, device))

    @classmethod
    def of_embedder(cls, embedder: LLM) -> Assistant:
        """Of what a two_tower run became. Errors: WordsightError where its LM does not write as it came."""
        return cls(embedder, LMGenerator(_shared(embedder), name=embedder.name), name=embedder.name)

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `open` reads: both runs, and which LM they stand over; the LM and the image
        towers stay where they are. Errors: WordsightError for one that was not made from two runs.
        """
        if len(self.runs) != 2:
            raise WordsightError(
                f"{self.name!r} is one run or model and needs no folder of an assistant; make one of a "
                f"two_tower and a limber run: Assistant.from_runs"
            )
        with new_folder(folder) as temporary:
            for run, part in zip(self.runs, (CLAMP, LIMBER)):
                shutil.copytree(run.folder, temporary / part, ignore=shutil.ignore_patterns(STATE))
            facts = {"kind": "assistant", "format": FORMAT, "lm": _lm_of(self.generator).origin}
            save_json(temporary / FILE, facts)
        return Path(folder)

    # -- classifying and embedding: adapters on --

    def classify(
        self, images: Sequence[Any], classes: Sequence[str], template: str = RunSettings.template
    ) -> list[dict[str, float]]:
        """The probability of each class, by its name alone, for each image; the likeliest first."""
        embedder, names = self._needs_embedder("classify"), names_in(classes, "classes")
        if len(names) < 2:
            raise WordsightError(f"classes={list(names)} cannot be chosen among; give at least 2, each once")
        check_distinct(names, "classes")
        fitted = Fitted.by_names(embedder, names, template)
        chances = fitted.logits(self._vectors(embedder, images)).double().softmax(1)
        rows = [dict(zip(names, row)) for row in chances.tolist()]
        return [dict(sorted(row.items(), key=lambda one: -one[1])) for row in rows]

    def embed(self, images: Sequence[Any] | None = None, *, texts: Sequence[str] | None = None) -> np.ndarray:
        """Unit vectors [n, D], float32, of images or of texts, which meet in one space."""
        embedder = self._needs_embedder("embed")
        if (images is None) == (texts is None):
            raise WordsightError("give images or texts to embed, one of the two")
        if images is not None:
            return self._vectors(embedder, images).numpy()
        if wrong := [text for text in texts or () if not isinstance(text, str)]:
            raise WordsightError(f"texts holds {wrong[0]!r}, a {type(wrong[0]).__name__}; give texts")
        return text_features(embedder, texts or ()).float().cpu().numpy()

    # -- writing: adapters off, unless asked for --

    def caption(self, images: Sequence[Any], how: Writing | None = None, *, seed: int = 1) -> list[str]:
        """What each image shows. Errors: WordsightError where one cannot be read."""
        if not len(images):
            return []
        captions = Captions(self.generator, pictures_of(images), how, seed=seed)
        found = [one.text for one in captions]
        for one in captions.skipped:
            raise WordsightError(f"{one['image']} {one['reason']}; give an image file")
        return found

    def answer(self, image: Any, question: str, how: Writing = MEASURED) -> str:
        """A short answer to a question about one image."""
        if not question.strip():
            raise WordsightError("the question is blank; give a text, as 'What is the man holding?'")
        prompt = self.generator.asking([Turn(self.see(image), question.strip())])
        return cut(self.generator.write([prompt], how)[0])

    def chat(self, how: Writing = DEFAULT, *, plain: bool = False, seed: int = 1) -> Chat:
        """A new conversation. `plain` is for an LM without a chat template (Chat)."""
        return Chat(self.generator, how, plain=plain, seed=seed)

    def write(
        self,
        prompts: Sequence[Prompt],
        adapters: Literal["on", "off"] | Sequence[str] = "off",
        max_new_tokens: int = 32,
    ) -> list[str]:
        """What the LM writes after each prompt of texts and seen images (`see`), greedily and in one batch.
        `adapters` says of all, or of each, whether CLAMP's are on; off is the untouched LM.
        """
        if not several(prompts):  # texts are prompts, too
            return []
        rows = [adapters] * len(prompts) if isinstance(adapters, str) else list(adapters)
        how = Writing(max_new_tokens=max_new_tokens)
        if set(rows) == {"off"}:
            return self.generator.write(prompts, how)
        tower, generator = self._needs_embedder("adapters=on").text, self.generator
        assert isinstance(generator, LMGenerator)  # whatever stands beside an embedder
        given = [generator.row(prompt) for prompt in prompts]
        generator.check_room(given, how)
        ends = {"eos_token_id": generator.lm.ends, "do_sample": False}
        tokens = write_adapted(tower, given, rows, max_new_tokens=max_new_tokens, **ends)
        return [generator.lm.text_of(row) for row in tokens]

    def write_sentences(self, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The LM's own sentences about classes, adapters off, as `sentences=self` has them; kept in the
        cache.
        """
        embedder = self._needs_embedder("write_sentences")
        return sentences_for(SELF, names_in(classes, "classes"), None, embedder)

    def see(self, image: Any) -> Seen:
        """What the LM reads of an image: a path, a PIL image or an array. Errors: WordsightError where it
        cannot be read.
        """
        return self.generator.see([read_one(image)])[0]

    # -- inside --

    def _needs_embedder(self, what: str) -> LLM:
        if self.embedder is None:
            raise WordsightError(
                f"{what} needs the text tower of a two_tower run (CLAMP), which {self.name!r} has not; give "
                f"its run, or join it with this one: Assistant.from_runs, or `wordsight chat CLAMP LIMBER`"
            )
        return self.embedder

    @staticmethod
    def _vectors(embedder: LLM, images: Sequence[Any]) -> torch.Tensor:
        features = image_features(embedder, pictures_of(images))
        for name, reason in features.skipped:
            raise WordsightError(f"{name} {reason}; give an image file")
        return features.vectors[:, 0].float().cpu()


def is_assistant(folder: str | Path) -> bool:
    """Whether a folder is one that `Assistant.save` wrote."""
    return (Path(folder).expanduser() / FILE).is_file()


def verified(name: str) -> dict[str, Check]:
    """`verify` of a two_tower run or backbone; of an assistant's folder also that what captions, answers and
    chats is its very LM, untouched.
    """
    if not is_assistant(name):
        return verify(open_tower(name))
    assistant = Assistant.open(name)
    assert assistant.embedder is not None  # of a folder
    tower, lm = assistant.embedder.text, _lm_of(assistant.generator)
    return verify(tower) | _of_the_writer(tower, lm)


def _of_the_writer(tower: TextTower, lm: PrefixedLM) -> dict[str, Check]:
    own = {value.data_ptr() for value in tower.plain.parameters()}
    twice = sum(value.data_ptr() not in own for value in lm.lm.parameters())
    ids = tower.tokenizer("A photo of a dog")["input_ids"]
    tower.encode([f"a photo of a {name}" for name in range(32)])  # LoRA goes into the weights and out again
    tokens = torch.tensor([ids], device=lm.device)
    with torch.no_grad(), tower.adapters(False):
        row = lm.embed(tokens)[0]
        theirs, ours = tower.plain(input_ids=tokens).logits, lm.lm(inputs_embeds=row[None]).logits
    settings = {"max_new_tokens": 8, "do_sample": False}
    written = lm.write([row], **settings)[0]
    off = tower.generate_tokens([ids], "off", eos_token_id=lm.ends, **settings)[0].tolist()
    apart = float((ours - theirs).abs().max())
    return {
        "lm_once": Check(twice == 0, twice, 0, "tensors of the LM that writes that are not the tower's own"),
        "assistant_logits": Check(
            apart == 0, apart, 0, "logits of the LM that writes are the untouched LM's"
        ),
        "assistant_tokens": Check(
            written == off,
            written != off,
            0,
            "after texts were embedded, it writes the untouched LM's tokens",
        ),
    }


def _embedder(name: str, device: str | None) -> LLM:
    """The backbone that a two_tower run became. Errors: WordsightError for any other."""
    dtype, what = RunSettings.dtype, ""
    if is_run(name):
        run = Run.open(name)
        device, dtype = device or device_or_cpu(run.settings.device), run.settings.dtype
        what = "" if is_embedder(run) else f"run of {run.settings.method}"
    found = None if what else load_backbone(name, device=device or "auto", dtype=dtype)
    if not isinstance(found, LLM):
        raise WordsightError(
            f"{name!r} is a {what or type(found).__name__} without a language model that writes; give a "
            f"two_tower run, a limber run, an image-text-to-text model or an LM"
        )
    return found


def _shared(embedder: LLM) -> PrefixedLM:
    """The LM of a backbone as it came, on the very tensors of its text tower."""
    tower = embedder.text
    if not tower.writes_as_before:
        raise WordsightError(
            f"the LM of {embedder.name!r} does not write as it came (kind={tower.settings.kind}, "
            f"train={tower.settings.train}, bias={tower.settings.bias}): there is no untouched one to chat "
            f"with; give a two_tower run with train=lora or train=prompts"
        )
    return PrefixedLM(untouched(tower.plain), tower.tokenizer)


def _lm_of(generator: Generator) -> PrefixedLM:
    assert isinstance(generator, LMGenerator)  # whatever stands beside an embedder
    return generator.lm


def _eyes(run: Run, embedder: LLM, backbone: str | None) -> Backbone:
    """The backbone that a limber run was fitted on: the embedder's own where that is it."""
    for one in (embedder, embedder.image):
        if one.image_fingerprint == run.facts.image_fingerprint:
            return one
    return open_backbone(run, backbone, device=str(embedder.device), sides=SIDES[:1])
