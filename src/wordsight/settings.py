"""Settings: what is a method's own, and what `join` and `sentences` take. Imports no torch, so that a wrong
one is told at once; two_tower's stand in tower_settings.py, beside those of its LM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wordsight.cluster import Where
from wordsight.files import WordsightError


@dataclass(frozen=True)
class NoSettings:
    """For a method that has none."""


@dataclass(frozen=True)
class AAPESettings:
    """Which form, and which of its parts. What each adds on real photos: docs/methods/aape.md."""

    # how a class weight follows the image: solved, or trained as the paper has it: w_c(x) = g([w_c; h(x)])
    # (literal), w_c + g([w_c; h(x)]) (skip), or cos(h(x), w_c) alone (h_only)
    form: Literal["solved", "literal", "skip", "h_only"] = "solved"
    # the prompt embedding h(x). null: in the trained forms alone, as it was not seen to help the solved one
    prompt: bool | None = None
    offsets: bool = True  # solved: labelled classes have an offset of their own beside the words
    width: int = 32  # trained: r, of h and of g
    # trained: what condenses sentences into the prompt that h is distilled from; solved takes their mean
    aggregator: Literal["attention", "mlp", "mean", "random"] = "attention"
    # trained: what the aggregator's slot starts as: the paper's eq. 1, or "input-adapted" as its text says
    query: Literal["mean", "mean+image"] = "mean"
    heads: int = 4  # of the attention aggregator; fewer where they do not divide D
    distill: float = 5.0  # trained: weight of the distillation loss; the paper: 3 to 9 work about as well

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1:
            raise WordsightError(
                f"settings.width={self.width} and settings.heads={self.heads} must both be 1 or more"
            )


@dataclass(frozen=True)
class CaptionSettings:
    """How h is learned; what each form gives: docs/methods/aape_captions.md."""

    # solved: in closed form; tuned: from there on trained with the contrastive loss; paper: two layers with
    # ReLU, trained with both losses from random weights
    form: Literal["tuned", "solved", "paper"] = "tuned"
    # the contrastive loss beside the distillation loss where both are solved: 0, the latter alone, or more;
    # null: the best of a few on left-out images
    contrast: float | None = None
    width: int = 256  # form=paper: of h's inner layer
    aggregator: Literal["attention", "mlp", "mean", "random"] = "attention"  # form=paper: condenses captions
    query: Literal["mean", "mean+image"] = "mean"  # form=paper: what the aggregator's slot starts as
    heads: int = 4  # form=paper: of the attention aggregator; fewer where they do not divide D
    distill: float = 5.0  # form=paper: weight of the distillation loss beside the contrastive one

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1:
            raise WordsightError(
                f"settings.width={self.width} and settings.heads={self.heads} must be 1 or more"
            )
        for name in ("distill", "contrast"):
            if (getattr(self, name) or 0) < 0:
                raise WordsightError(f"settings.{name}={getattr(self, name)} is not possible; give 0 or more")


@dataclass(frozen=True)
class CLAPSettings:
    # none: the paper's zero-shot-initialised linear probe, ZS-LP
    constraint: Literal["adaptive", "none"] = "adaptive"
    length: float = 10.0  # of a prototype at the start; a step of one size turns a long one less

    def __post_init__(self) -> None:
        if self.length <= 0:
            raise WordsightError(f"settings.length={self.length} must be above 0")


@dataclass(frozen=True)
class CLIPAdapterSettings:
    ratio: float = 0.2  # share of the adapter's output in the image vector
    reduction: int = 4  # how many times narrower the adapter is than the vector

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise WordsightError(f"settings.reduction={self.reduction} must be 1 or more")


@dataclass(frozen=True)
class ContextSettings:
    ctx: int = 16  # context vectors; where `init` is given, as many as it has tokens
    init: str | None = None  # words whose embeddings the context starts at; null: random vectors
    # where the class name stands: after the context, between its halves, before it
    position: Literal["end", "middle", "front"] = "end"

    def __post_init__(self) -> None:
        if self.ctx < 1:
            raise WordsightError(f"settings.ctx={self.ctx} must be 1 or more")


@dataclass(frozen=True)
class CoOpSettings(ContextSettings):
    # a context of its own for every class (CSC), which then knows only labelled classes
    per_class: bool = False


@dataclass(frozen=True)
class CoCoOpSettings(ContextSettings):
    ctx: int = 4
    init: str | None = "a photo of a"
    reduction: int = 16  # how many times narrower the meta-net is than the image vector

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1:
            raise WordsightError(f"settings.reduction={self.reduction} must be 1 or more")


@dataclass(frozen=True)
class KgCoOpSettings(ContextSettings):
    init: str | None = "a photo of a"
    weight: float = 8.0  # of the pull towards the template's text vectors


@dataclass(frozen=True)
class ProGradSettings(ContextSettings):
    # the last of `ctx` vectors start at these words, the others random; null: the words of the run's template
    init: str | None = None
    # lambda: how much of a step against zero-shot is taken away; the paper takes 0.8 for some sets of many
    # shots
    strength: float = 1.0
    temperature: float = 1.0  # of the two predictions that are compared


@dataclass(frozen=True)
class ProTextSettings(ContextSettings):
    ctx: int = 4
    init: str | None = "a photo of a"
    distance: Literal["l1", "l2"] = "l1"  # between the class's vector and a sentence's
    weight: float = 1.0  # of the loss; the authors raise l2's


@dataclass(frozen=True)
class LikelihoodSettings:
    """Who is asked, what, and how its answer becomes a class. Conclusions about multimodal LLMs turn on each
    of these (benchmarks/zeroshot)."""

    # an image-text-to-text model (a folder or a hub name) or a finished run of limber; null: the backbone
    model: str | None = None
    # likelihood: of each class's answer (eq. 11); constrained: at each step the LM chooses among the tokens
    # that lead to a class; free: it writes what it likes, and the class nearest to that is taken
    by: Literal["likelihood", "constrained", "free"] = "likelihood"
    answer: str = "A photo of {}"  # what is scored of each class; as in the paper
    # what is asked before, {classes} being the list of all class names; null: what a caption is asked by
    question: str | None = None
    # mean over the tokens of an answer (the paper), or their sum, the probability of the answer itself
    score: Literal["mean", "sum"] = "mean"
    prior: float = 0.0  # how much of the score without the image is taken away (VisualGPTScore: up to 1)
    end: bool = False  # whether the end token is part of an answer; always where it is constrained
    examples: int = 0  # labelled images that are shown before, with their answers
    order: int = 0  # 0: classes and examples in their own order; else drawn from this seed
    mapper: str | None = None  # free: whose text vectors say which class is nearest
    batch: int | None = None  # images at once; null: what 1 GiB of keys and values holds

    def __post_init__(self) -> None:
        if self.answer.count("{}") != 1:
            raise WordsightError(
                f"settings.answer={self.answer!r} holds {{}} {self.answer.count('{}')} times; it must hold "
                f"the class name once, as in 'A photo of {{}}'"
            )
        if self.examples < 0 or self.order < 0 or not 0 <= self.prior <= 1:
            raise WordsightError(
                f"settings.examples={self.examples} and settings.order={self.order} are 0 or more, and "
                f"settings.prior={self.prior} is from 0 to 1"
            )
        if self.batch is not None and self.batch < 1:
            raise WordsightError(f"settings.batch={self.batch} scores nothing; give 1 or more")
        if self.prior and self.by != "likelihood":
            raise WordsightError(
                f"settings.prior={self.prior} is taken from likelihoods, but settings.by={self.by} has none; "
                f"leave it out"
            )
        if (self.by == "free") != (self.mapper is not None):
            raise WordsightError(
                "settings.by=free and settings.mapper go together: free answers are mapped to classes by a "
                "text encoder, such as settings.mapper=sentence-transformers/all-MiniLM-L6-v2, and others by "
                "none"
            )


@dataclass(frozen=True)
class LimberSettings:
    """Which language model, how it sees, and what stands behind the image's soft tokens."""

    text: str = "google/gemma-3-270m"  # the LM: a folder, a hub name or a GGUF file
    tokens: int = 49  # soft tokens of an image at most: its grid is averaged down to so many (LiMBeR: 144)
    # one more token: none (LiMBeR), AAPE's h(x), trained on captions beforehand and kept (frozen) or
    # trained on with the LM's loss (finetuned), or the image vector itself, which tells what h adds to a
    # token more
    h: Literal["none", "image", "frozen", "finetuned"] = "none"
    encoder: str | None = None  # whose text vectors h learns: a backbone's; null: the run's own backbone's
    # where the maps to soft tokens begin: random (LiMBeR), or ridge: solved before any training, so that soft
    # tokens lie where the LM has the words that people say of such images
    start: Literal["random", "ridge"] = "ridge"
    width: int = 256  # of h's inner layer; the paper's h for classes has 32
    # what condenses an image's captions: the paper's attention, or their mean, which did better on held-back
    # training photos (docs/methods/limber.md)
    aggregator: Literal["attention", "mlp", "mean", "random"] = "mean"
    query: Literal["mean", "mean+image"] = "mean"  # what the aggregator's slot starts as
    heads: int = 4  # of the attention aggregator; fewer where they do not divide the text vectors' width
    distill: float = 5.0  # weight of the distillation loss, beforehand and when h is trained on
    h_epochs: int = 40  # of the training of h by itself
    h_lr: float = 1e-3  # the learning rate of that training
    h_batch: int = 256  # images a step of that training
    max_tokens: int = 64  # of a caption; what is longer loses its end

    def __post_init__(self) -> None:
        for name in ("tokens", "width", "heads", "h_epochs", "h_batch"):
            if getattr(self, name) < 1:
                raise WordsightError(f"settings.{name}={getattr(self, name)} is not possible; give 1 or more")
        if self.max_tokens < 2:
            raise WordsightError(
                f"settings.max_tokens={self.max_tokens} holds no caption with its end; give 2 or more"
            )
        if self.distill < 0 or self.h_lr <= 0:
            raise WordsightError(
                f"settings.distill={self.distill} is 0 or more and settings.h_lr={self.h_lr} above 0"
            )

    @property
    def learns_h(self) -> bool:
        return self.h in ("frozen", "finetuned")


@dataclass(frozen=True)
class LinearProbeSettings:
    # lambda of the L2 penalty lambda/2 |W|^2 beside the summed loss; scikit-learn's C is 1/lambda. null: the
    # best on validation images, and 0.1 where the data has none
    strength: float | None = None
    max_iter: int = 1000  # steps of L-BFGS at most

    def __post_init__(self) -> None:
        if (self.strength is not None and self.strength <= 0) or self.max_iter < 1:
            raise WordsightError(
                f"settings.strength={self.strength} must be above 0, and settings.max_iter={self.max_iter} "
                f"1 or more"
            )


@dataclass(frozen=True)
class TaskResSettings:
    alpha: float = 0.5  # how much of the offset counts; the paper takes 1 for Flowers102


@dataclass(frozen=True)
class TipAdapterSettings:
    # what the memory's votes weigh beside the words; where there are validation images, they choose it
    alpha: float = 1.0
    beta: float = 5.5  # how much closer images count more; the same
    alpha_max: float = 13.0  # how far alpha is searched; the authors: 3 on ImageNet, 13 on DTD
    beta_max: float = 13.0  # how far beta is searched; the authors: 7 on ImageNet, 13 on DTD


@dataclass(frozen=True)
class JoinSettings:
    """What `join` needs to know. Fitted on class names where the image encoder has a classification head, or
    on image-caption pairs.
    """

    vision: str  # folder or hub name of an image encoder, or a safetensors file of a ViT with timm's names
    text: str  # folder or hub name of a text encoder
    out: str  # the folder to write
    names: str | None = (
        # class names in the head's order: a text file (one a line) or JSON; by default those in the encoder's
        # config.json
        None
    )
    template: str = "a photo of a {}."  # the sentence that stands for a class name
    images: str | None = (
        None  # folder or manifest of images whose mean vector centres image vectors; read by the caller
    )
    captions: str | None = None  # CSV of images and captions, instead of names; read by the caller
    ridge: float = 3.0  # lambda: how strongly the map is pulled to zero
    pooling: Literal["auto", "cls", "mean", "pooler"] = (
        "auto"  # what of the image encoder's output is the image's vector
    )
    text_pooling: Literal["auto", "mean", "cls", "last"] = (
        "auto"  # auto: as 1_Pooling/config.json of sentence-transformers says, or mean
    )
    preprocessor: str | None = None  # a preprocessor_config.json to use instead of the image encoder's own
    device: str = "auto"  # auto: CUDA where there is one; or cpu, cuda, cuda:1, mps

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise WordsightError(f"ridge={self.ridge} is not possible; give a number above 0, such as 3")
        if self.template.count("{}") != 1 or {"{", "}"} & set(self.template.replace("{}", "")):
            raise WordsightError(
                f"template={self.template!r} must hold {{}} once, where the class name stands"
            )


@dataclass(frozen=True)
class WriterSettings(Where):
    """Which LLM writes, what it is asked, and how often. The temperature is CuPL's; so is the manner of the
    questions, not their words.
    """

    # a server's model name; with local=true a folder or a hub name of a causal LM, or of a backbone that has
    # one (a two_tower run)
    model: str
    # any OpenAI-compatible server, such as http://localhost:8000/v1; null is api.openai.com
    base_url: str | None = None
    local: bool = False  # run the model here, with transformers
    # the environment variable that holds the key; a server given by base_url may go without
    api_key_env: str = "OPENAI_API_KEY"
    # a set (see docs/sentences.md), or your own questions, each with one {}: Q1,Q2 or @FILE, one a line
    questions: str | tuple[str, ...] = "generic"
    # follows the question; a model without chat template never sees it
    instruction: str = "Answer in one plain sentence, without lists or markup."
    per_question: int = 10  # answers to each question about each class
    temperature: float = 0.99  # 0: always the likeliest words; above, they are drawn; CuPL took 0.99
    max_tokens: int = 60  # CLIP reads 77 tokens and drops the rest
    seed: int = 1  # what is drawn from, where the server or the LM takes one
    workers: int = 4  # requests under way at once
    retries: int = 5  # with growing pauses: rate limits, lost connections, errors of the server
    timeout: float = 60.0  # seconds without a byte; one answer may take twice as long in all
    max_bytes: int = 1 << 20  # of one answer as it is sent; what sends more is no answer
    device: str = "auto"  # for a local model

    def __post_init__(self):
        leasts = {"per_question": 1, "max_tokens": 1, "workers": 1, "retries": 0, "temperature": 0, "seed": 0}
        for name, least in (leasts | {"timeout": 0.01, "max_bytes": 1000}).items():
            if not least <= getattr(self, name) < float("inf"):
                raise WordsightError(
                    f"{name}={getattr(self, name)} is not possible; it must be at least {least}"
                )
        if not self.api_key_env.isidentifier():
            raise WordsightError(
                "api_key_env names the environment variable that holds the key, such as OPENAI_API_KEY; it "
                "is not the key itself"
            )
        if self.local and self.base_url is not None:
            raise WordsightError("local=true runs the model here, base_url= asks a server: give one of them")
        if self.engine == "ray" and not self.local:
            raise WordsightError(
                f"engine=ray runs a model on many machines, with local=true; a server answers workers="
                f"{self.workers} questions at once, so give more of them"
            )
