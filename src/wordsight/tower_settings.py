"""tower_settings: what decides a text tower besides its LM: the wrapper sentence, the prompts, the pooling,
where LoRA goes, and how a two_tower learns. Imports no torch at the top.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from wordsight.extras import needed
from wordsight.files import WordsightError
from wordsight.reader import nearest

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers.modeling_utils import PreTrainedModel

ASKS = "A photo of a {}. A {} has the following visual attributes."
WRAPPERS = {
    # CLAMP's: the turns are separated by a space, as in Vicuna's own format
    "vicuna": f"USER: {ASKS} ASSISTANT: 1.",
    "plain": "{}",
}
OWN_START = "start"  # as a teacher: the tower itself, before training
LARGEST = 16384  # of any size below: a damaged file that asks for more would fill the memory
_LLAMA, _BERT = ("q_proj", "k_proj", "v_proj", "o_proj"), ("query", "key", "value", "attention.output.dense")
TARGETS: dict[str, tuple[str, ...]] = {  # the attention's projections, where LoRA goes
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "mixtral",
            "qwen2",
            "qwen3",
            "smollm3",
            "olmo",
            "olmo2",
            "olmo3",
            "gemma",
            "gemma2",
            "gemma3_text",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("cohere", "granite", "starcoder2", "stablelm"), _LLAMA),
    "phi": ("q_proj", "k_proj", "v_proj", "self_attn.dense"),
    "phi3": ("qkv_proj", "o_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),  # the MLP has a c_proj too
    "gpt_neox": ("query_key_value", "attention.dense"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), _BERT),
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "modernbert": ("attn.Wqkv", "attn.Wo"),
}


@dataclass(frozen=True)
class TowerSettings:
    """What decides a text tower besides its LM. Saved with it. The defaults are CLAMP's; width, heads and
    max_tokens are not given there.
    """

    # a decoder LM, or an encoder (BERT, a sentence embedder), which writes nothing
    kind: Literal["decoder", "encoder"] = "decoder"
    # vicuna, chat (the tokenizer's own template), plain, or a text with {} where the caption stands
    wrapper: str = "vicuna"
    prompts: int = 24  # K read-only vectors after the text; 0 pools the text's own states
    prompts_attend: Literal["both", "causal"] = "both"  # do prompts see the prompts after them
    # a text whose token embeddings the prompts start as, repeated to their number; null: random vectors
    prompts_start: str | None = None
    # so many of the LM's layers, counted from its embeddings, are read; null: all. The last ones serve the
    # next word
    layers: int | None = None
    front: int = 0  # soft tokens before the text (LN-prefix has 12); these the text does see
    # what makes one vector of the states: attention (of the prompts), their mean, or the last
    pooling: Literal["attention", "mean", "last"] = "attention"
    heads: int = 8  # of the attention pooler
    width: int | None = None  # of the attention pooler; by default the LM's
    dim: int = 512  # D, the shared width: the vision tower's
    # linear layers from pooled states to the shared space: 1 is a projection, more are an MLP (SAIL,
    # ShareLock)
    depth: int = 1
    train: Literal["lora", "prompts", "layernorms", "all", "head"] = (
        "lora"  # besides prompts, pooling and projection; head: only the last two
    )
    prompt_only_lora: bool = (
        False  # LoRA acts in the prompts' pass only: text states and cache stay the base LM's
    )
    rank: int = 16  # of LoRA
    alpha: int = 16  # LoRA is scaled by alpha / rank
    dropout: float = 0.1  # of LoRA, in training
    bias: Literal["none", "all", "lora_only"] = "none"  # which biases are trained too, as peft has it
    targets: tuple[
        str, ...
    ] = ()  # modules that get LoRA; by default the attention projections of the LM's family
    keep_generation: bool = True  # refuse whatever would keep the LM from writing as before
    max_tokens: int | None = None  # of text and wrapper; by default 256, or what the LM's positions leave


@dataclass(frozen=True)
class TwoTowerSettings(TowerSettings):
    """Which language model, how it is made a text tower (TowerSettings), and what it learns from. The
    defaults are CLAMP's, in so far as it says.
    """

    dim: int | None = None  # D: the image tower's; there is nothing else it could be
    text: str = "lmsys/vicuna-13b-v1.5"  # the LM: a folder or a hub name
    random: bool = False  # only the LM's shape, with random weights: LiT's text tower, from scratch
    # with random: what of the LM's config.json is to be otherwise
    shape: dict[str, Any] = field(default_factory=dict)
    # InfoNCE over the batch, as in CLIP, or SigLIP's pairwise sigmoid
    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    # a backbone whose similarities are distilled, or `start`: what the tower itself said at start=ridge, so
    # that it keeps what its captions do not name; null: no distillation
    teacher: str | None = None
    # multiplies similarities in distillation, not given in the paper; null: the teacher's own logit scale,
    # 100 for CLIP
    tau_d: float | None = None
    # the projection: random, or the closed-form map from the LM's states to the images of the captions
    start: Literal["random", "ridge"] = "random"
    # subtract the mean image vector: for towers that were not trained with text, whose vectors share a large
    # mean
    centre: bool = False
    # image vectors: as pairs come, or from the cache; auto: stream for webdataset shards alone
    features: Literal["auto", "stream", "store"] = "auto"
    # of the sources in data=a::b, adding up to 1; by default as many pairs of each as it has
    weights: tuple[float, ...] = ()
    # so many texts pass through the LM at a time, twice each: memory of the chunk, gradients of the batch;
    # null: all
    chunk: int | None = None
    # the LM's layers run again in backward: memory of one layer's activations, a third more time
    checkpointing: bool = False
    # torch.compile of the LM in training: minutes at the start, then faster; for long trainings
    compile: bool = False
    # each of several processes keeps a part of the LM's frozen weights while it trains (FSDP2); each still
    # loads all of it once
    shard: bool = False

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise WordsightError(
                f"settings.chunk={self.chunk} is not possible; it is how many texts pass through the LM "
                f"together, "
                "1 or more, or null"
            )
        if self.tau_d is not None and self.tau_d <= 0:
            raise WordsightError(
                f"settings.tau_d={self.tau_d} is not possible; it multiplies similarities before their "
                f"softmax, "
                "more than 0"
            )
        if self.shape and not self.random:
            raise WordsightError(
                "settings.shape changes the LM's shape, which its weights would no longer fit; give it with "
                "settings.random=true"
            )
        if self.prompt_only_lora and (self.checkpointing or self.compile):
            raise WordsightError(
                "settings.prompt_only_lora runs texts without gradient and caches them, which "
                "checkpointing and "
                "compile do not go with; set them false"
            )
        if self.teacher == OWN_START and self.start != "ridge":
            raise WordsightError(
                "settings.teacher=start distils what the tower says before training, which at a random start "
                "is nothing; set settings.start=ridge"
            )
        if self.layers is not None and (self.compile or self.shard):
            raise WordsightError(
                "settings.layers reads a part of the LM, which compile and shard do not go with; set them "
                "false"
            )
        if self.shard and (self.train in ("all", "head") or self.compile):
            why = {
                "all": "settings.train=all leaves none",
                "head": "with settings.train=head the LM does not run while it trains",
            }
            raise WordsightError(
                "settings.shard shares out frozen weights; "
                f"{why.get(self.train, 'settings.compile is untested with it')}; set it false"
            )


def check_settings(settings: TowerSettings, config: Any) -> None:
    """Errors: WordsightError for numbers that cannot be, and for what an LM of this config cannot be."""
    least = {"prompts": 0, "front": 0, "heads": 1, "dim": 1, "depth": 1, "rank": 1, "alpha": 1}
    for name, bound in (least | {"width": 1, "max_tokens": 1}).items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise WordsightError(f"{name}={value} is not possible; give at least {bound}")
        if value is not None and value > LARGEST and name != "max_tokens":
            raise WordsightError(f"{name}={value} is not possible; give at most {LARGEST}")
    if not 0 <= settings.dropout < 1:
        raise WordsightError(f"dropout={settings.dropout} is not possible; give at least 0 and less than 1")
    if settings.kind == "encoder" and (settings.prompts or settings.front or settings.pooling == "last"):
        raise WordsightError(
            f"{config.model_type} is an encoder: its text would see the prompts, and its last token means "
            f"nothing; "
            "set prompts=0, front=0 and pooling=mean or attention"
        )
    if settings.prompts_start is not None and not settings.prompts:
        raise WordsightError("prompts_start says what prompts start as, but prompts=0; leave it out")
    deep = config.num_hidden_layers
    if settings.layers is not None and not 1 <= settings.layers <= deep:
        raise WordsightError(
            f"layers={settings.layers} of an LM of {deep} layers is not possible; give 1 to {deep}"
        )
    if settings.layers is not None and settings.train == "all":
        raise WordsightError(
            "layers reads some of the LM's layers, and train=all trains every one; leave layers out, or give "
            "settings.shape={num_hidden_layers: ...} with settings.random=true"
        )
    if settings.prompt_only_lora and (not settings.prompts or settings.train != "lora" or settings.front):
        raise WordsightError(
            "prompt_only_lora needs prompts, train=lora and no front tokens: LoRA acts on the prompts alone"
        )
    if settings.kind == "decoder" and settings.keep_generation:
        if settings.bias != "none":
            raise WordsightError(
                f"bias={settings.bias!r} trains the LM's own biases, which stay when adapters are off; "
                f"generation would change. "
                "Set bias=none, or keep_generation=false"
            )
        if settings.train in ("layernorms", "all"):
            raise WordsightError(
                f"train={settings.train!r} changes the LM itself, and what it writes; set "
                f"keep_generation=false"
            )


def check_dtype(settings: TowerSettings, dtype: str) -> None:
    """Errors: WordsightError where training in this dtype would round away small steps of the LM's own
    weights. What else is trained, LayerNorms among it, is in float32 whatever the LM is in.
    """
    if dtype == "float32":
        return
    for name, value in (("train", settings.train), ("bias", settings.bias)):
        if value in ("all", "lora_only"):
            raise WordsightError(
                f"{name}={value} trains the LM's own weights, and {dtype} rounds small steps of them away; "
                "set dtype=float32"
            )


def lora_config(settings: TowerSettings, lm: PreTrainedModel) -> LoraConfig:
    """peft's settings, at the attention's projections of this LM's family."""
    with needed("lm", "a language model"):
        from peft import LoraConfig

    targets = settings.targets or TARGETS.get(lm.config.model_type)
    if not targets:
        raise WordsightError(
            f"which modules of {lm.config.model_type} are attention projections is not known; give "
            f"targets=..., e.g. q_proj,v_proj"
        )
    found = [
        target
        for target in targets
        if any(f".{name}".endswith(f".{target}") for name, _ in lm.named_modules())
    ]
    if set(found) != set(targets):
        raise WordsightError(
            f"targets {', '.join(sorted(set(targets) - set(found)))} do not occur in {lm.config.model_type}"
        )
    conv1d = any(
        type(module).__name__ == "Conv1D" for module in lm.modules()
    )  # GPT-2's linear layers are transposed
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        bias=settings.bias,
        fan_in_fan_out=conv1d,
        layers_to_transform=None if settings.layers is None else list(range(settings.layers)),
        task_type="CAUSAL_LM" if lm.get_output_embeddings() is not None else None,
    )


def resolve_wrapper(name: str, tokenizer: Any) -> tuple[str, bool]:
    """The sentence with {} where the caption stands, and whether the tokenizer still adds its special tokens.
    Kept with the tower: templates date themselves.
    """
    if name == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise WordsightError(
                "wrapper='chat', but the tokenizer has no chat template; the choices are vicuna, plain, or "
                "a text with {}"
            )
        turn = [{"role": "user", "content": ASKS}]
        found = (
            tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            + "1."
        )
        if found.count("{}") != ASKS.count("{}"):
            raise WordsightError(
                f"the tokenizer's chat template has braces of its own, or drops the user's turn: "
                f"{found!r}; write the wrapper out"
            )
        return found, False  # the template has written them
    found = WRAPPERS.get(name, name)
    if "{}" not in found:
        raise WordsightError(
            f"wrapper={name!r} has no {{}} where the caption stands{nearest(name, (*WRAPPERS, 'chat'))}; "
            f"or give vicuna, chat or plain"
        )
    return found, True
