"""Tables of names: which methods and backbones there are, and what is known of each without importing it.
Imports no torch: `wordsight list` needs only this file."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from wordsight.files import WordsightError
from wordsight.reader import nearest
from wordsight.settings import (
    AAPESettings,
    CaptionSettings,
    CLAPSettings,
    CLIPAdapterSettings,
    CoCoOpSettings,
    CoOpSettings,
    KgCoOpSettings,
    LikelihoodSettings,
    LimberSettings,
    LinearProbeSettings,
    NoSettings,
    ProGradSettings,
    ProTextSettings,
    TaskResSettings,
    TipAdapterSettings,
)
from wordsight.tower_settings import TwoTowerSettings

log = logging.getLogger("wordsight")


class Entry(NamedTuple):
    target: str  # "module:Class", imported only when it is used
    summary: str  # one line for `wordsight list`


class MethodEntry(NamedTuple):
    """What a report and a check before the fit ask of a method; a test holds it to the method's class."""

    target: str
    summary: str
    Settings: type  # its own
    # what it scores by: class vectors that it can be given, or of its own kind, learned tokens, or no words
    words: Literal["given", "kept", "tokens", "none"] = "given"
    labels: bool = True  # false: no labelled image changes what it does
    sentences: bool = False  # whether sentences change what it does

    @property
    def shares_words(self) -> bool:
        """Whether it scores by class vectors that it can be given, so that it is compared at equal words."""
        return self.words == "given"

    def told_labels(self, words: str) -> bool:
        """Whether labelled images change what it does, given these words."""
        return self.labels or words == "calibrated"


METHODS: dict[str, MethodEntry] = {
    "zero_shot": MethodEntry(
        "wordsight.methods.zero_shot:ZeroShot",
        "cosine between the image and the class name in one template",
        NoSettings,
        labels=False,
    ),
    "sentence_mean": MethodEntry(
        "wordsight.methods.zero_shot:SentenceMean",
        "cosine to the mean of each class's sentences (CuPL)",
        NoSettings,
        words="kept",
        labels=False,
        sentences=True,
    ),
    "linear_probe": MethodEntry(
        "wordsight.methods.linear_probe:LinearProbe",
        "logistic regression on image features; knows only labelled classes",
        LinearProbeSettings,
        words="none",
    ),
    "clap": MethodEntry(
        "wordsight.methods.clap:CLAP",
        "linear probe that starts at the words and is held near them (CLAP; ZS-LP)",
        CLAPSettings,
    ),
    "tip_adapter": MethodEntry(
        "wordsight.methods.tip_adapter:TipAdapter",
        "labelled images vote beside the words; nothing is trained (Tip-Adapter)",
        TipAdapterSettings,
    ),
    "tip_adapter_f": MethodEntry(
        "wordsight.methods.tip_adapter:TipAdapterF",
        "the same with trained keys (Tip-Adapter-F)",
        TipAdapterSettings,
    ),
    "clip_adapter": MethodEntry(
        "wordsight.methods.clip_adapter:CLIPAdapter",
        "a small network bends the image vector (CLIP-Adapter)",
        CLIPAdapterSettings,
    ),
    "taskres": MethodEntry(
        "wordsight.methods.taskres:TaskRes",
        "a learned offset on each class's text vector (TaskRes)",
        TaskResSettings,
    ),
    "coop": MethodEntry(
        "wordsight.methods.coop:CoOp",
        "learned vectors in place of the words around the class name (CoOp)",
        CoOpSettings,
        words="tokens",
    ),
    "cocoop": MethodEntry(
        "wordsight.methods.cocoop:CoCoOp",
        "the same, bent by every image (CoCoOp); slow",
        CoCoOpSettings,
        words="tokens",
    ),
    "kgcoop": MethodEntry(
        "wordsight.methods.kgcoop:KgCoOp",
        "CoOp, pulled towards the hand-written template (KgCoOp)",
        KgCoOpSettings,
        words="tokens",
    ),
    "prograd": MethodEntry(
        "wordsight.methods.prograd:ProGrad",
        "CoOp without steps against zero-shot (ProGrad)",
        ProGradSettings,
        words="tokens",
    ),
    "protext": MethodEntry(
        "wordsight.methods.protext:ProText",
        "context learned from sentences alone, no images (ProText)",
        ProTextSettings,
        words="tokens",
        labels=False,
        sentences=True,
    ),
    "transclip": MethodEntry(
        "wordsight.methods.transclip:TransCLIP",
        "unlabelled images classified together (TransCLIP)",
        NoSettings,
        labels=False,
    ),
    "aape": MethodEntry(
        "wordsight.methods.aape:AAPE",
        "sentences condensed into one prompt embedding per image (AAPE)",
        AAPESettings,
        sentences=True,
    ),
    "aape_captions": MethodEntry(
        "wordsight.methods.aape_captions:AAPECaptions",
        "AAPE's h(x) of captions: images for search",
        CaptionSettings,
        words="kept",
        labels=False,
    ),
    "likelihood": MethodEntry(
        "wordsight.methods.likelihood:Likelihood",
        "a generative model is asked which class an image shows",
        LikelihoodSettings,
        words="kept",
        labels=False,
    ),
    "limber": MethodEntry(
        "wordsight.methods.limber:Limber",
        "a frozen language model says what images show, through a linear map (LiMBeR, with AAPE's h)",
        LimberSettings,
        words="kept",
        labels=False,
    ),
    "two_tower": MethodEntry(
        "wordsight.methods.two_tower:TwoTower",
        "a language model becomes the text tower of a frozen image tower, from pairs (CLAMP, LiT)",
        TwoTowerSettings,
        words="kept",
        labels=False,
    ),
}
BACKBONES: dict[str, Entry] = {
    "vectors": Entry(
        "wordsight.backbones.vectors:Vectors",
        "a .npz or .safetensors of vectors that were computed elsewhere, with those of class names",
    ),
    "clip": Entry(
        "wordsight.backbones.clip:CLIP",
        "a CLIP or SigLIP checkpoint of transformers, hub name or local folder; `micro` is bundled",
    ),
    "joined": Entry(
        "wordsight.backbones.joined:Joined", "any vision encoder and any text encoder, joined by a ridge map"
    ),
    "prompted": Entry(
        "wordsight.backbones.prompted:Prompted", "h(x) for image vectors: a run of aape_captions"
    ),
    "vision": Entry(
        "wordsight.backbones.vision:Vision",
        "an image encoder alone (DINOv2, a ViT), the image tower for a text tower that is still to be "
        "trained",
    ),
    "mllm": Entry(
        "wordsight.backbones.mllm:MLLM",
        "an image-text-to-text model (LLaVA, Qwen2-VL, SmolVLM, ...): captions, answers, an image tower",
    ),
    "llm": Entry(
        "wordsight.backbones.llm:LLM",
        "a language model as the text tower of a frozen image tower (CLAMP): a run of two_tower, or its "
        "folder",
    ),
}


def target_of(table: Mapping[str, Entry] | Mapping[str, MethodEntry], name: str, what: str) -> str:
    """`module:Class` behind `name`: of a table, of an installed package's entry point in the group
    `wordsight.<what>s`, or `package.module:Class` itself. Errors: WordsightError where it is not known.
    """
    name = str(name)
    if name in table:
        return table[name].target
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    if (entry := plugins(what).get(name)) is not None:
        return entry.value
    choices = [*table, *plugins(what)]
    raise WordsightError(
        f"{what} {name!r} is not known{nearest(name, choices)}; the choices are {', '.join(choices)}, or "
        "one of your own as package.module:Class"
    )


def resolve(table: Mapping[str, Entry] | Mapping[str, MethodEntry], name: str, what: str) -> type:
    """The class that stands behind `name`. Errors: as `target_of`, and where it cannot be imported."""
    name = str(name)
    target = target_of(table, name, what)
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of somebody else's raises when it is imported
        if name in table:
            raise
        why = str(error).strip() or type(error).__name__
        raise WordsightError(f"{what} {name!r} cannot be imported: {why.splitlines()[0]}") from error


def plugins(what: str) -> dict[str, importlib.metadata.EntryPoint]:
    """What installed packages add: entry points of the group `wordsight.methods` or `wordsight.backbones`.
    One of a name that is ours is told: ours is meant by it."""
    kind = what.split()[0]
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=f"wordsight.{kind}s")}
    for name in found.keys() & (METHODS if kind == "method" else BACKBONES).keys():
        log.warning("%s=%s is ours; %s is known by its module:Class alone", kind, name, found.pop(name).value)
    return found


def method_entry(name: str) -> MethodEntry:
    """What the table says of a method, or the class of somebody else's."""
    return METHODS[name] if name in METHODS else resolve(METHODS, name, "method").entry(name)
