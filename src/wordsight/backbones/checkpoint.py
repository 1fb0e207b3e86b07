"""checkpoint: strict reading of a folder in transformers' layout, and of our own tensors.

Nothing that could run is opened: a pickle, an index of shards that names one, a path that leads out of the
folder, code beside a model. Every tensor comes from the checkpoint and is finite; what transformers raises of
a damaged file ends in a sentence."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.tokenization_auto import AutoTokenizer

from wordsight.backbones.hub import (
    PIXEL_FILES,
    TOKENIZER_FILES,
    first_line,
    listed,
    quiet,
    read_mapping,
)
from wordsight.config import WordsightError
from wordsight.early import WAYS_ON
from wordsight.files import read_tensors

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# what transformers reads of a folder and what we therefore read first; large vocabularies are left to it
SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", *PIXEL_FILES, INDEX_FILE)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")  # a zip archive or a pickle, whatever its name
FLOATS = ("F64", "F32", "F16", "BF16")
# buffers of whole numbers that old checkpoints keep
COUNTS = re.compile(
    r"(position_ids|token_type_ids|num_batches_tracked|attn\.bias|attention\.bias|masked_bias)$"
)
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


class Place(NamedTuple):
    """Where a part of a backbone lies, and how messages call it: `text encoder 'my/bert'`."""

    folder: Path
    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name!r}"


@contextlib.contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """Whatever a library raises of a damaged file, as a sentence: these raise of every kind."""
    try:
        yield
    except WordsightError:
        raise
    except Exception as error:
        told = "pip install" in str(error) or not isinstance(error, ImportError)
        mend = "" if told else "; pip install sentencepiece protobuf"
        raise WordsightError(
            f"backbone {name!r}: {what} cannot be read ({first_line(error)}){mend}"
        ) from error


def read_settings(place: Place) -> dict[str, Any]:
    """What config.json says, once every settings file of the folder is seen to be whole and harmless."""
    folder = place.folder
    if not (folder / "config.json").exists():
        raise WordsightError(
            f"{place}: its folder holds no config.json of transformers; {WAYS_ON[place.what]}"
        )
    if (folder / "adapter_config.json").exists():
        raise WordsightError(
            f"{place}: its folder holds an adapter (adapter_config.json), which would be put into the model "
            f"in silence; give the model alone, or merge the adapter into it"
        )
    for file in folder.iterdir():
        if file.exists() and not file.is_file() and not file.is_dir():
            raise WordsightError(f"{place}: {str(file)!r} is no regular file")
    found = {
        file: read_mapping(folder / file, f"{place}:")
        for file in SETTINGS_FILES
        if (folder / file).exists() or (folder / file).is_symlink()
    }
    for file, values in found.items():
        for key, text in _texts(values):
            _refuse_outside(place, file, key, text)
    return found["config.json"]


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the key it stands under."""
    if isinstance(values, str):
        yield key, values
    inner = (
        values.items()
        if isinstance(values, dict)
        else [(key, one) for one in values or ()]
        if isinstance(values, list)
        else ()
    )
    for name, value in inner:
        yield from _texts(value, name)


def _refuse_outside(place: Place, file: str, key: str, text: str) -> None:
    if key in ("_name_or_path", "name_or_path", "special_tokens_map_file"):  # where it once came from
        return
    where = f"{place}: its {file} gives {key}={text[:200]!r}"
    if text.lower().endswith(PICKLES):
        raise WordsightError(f"{where}, a pickle, which is never opened; save the model with safetensors")
    names_file = key.endswith(("_file", "_files", "transformers_weights")) or (
        file == INDEX_FILE and "." in text
    )
    if names_file and Path(text).name != text:
        raise WordsightError(f"{where}, which leads out of the folder; only files inside it are read")
    if key.endswith("_implementation") and "/" in text:
        raise WordsightError(f"{where}, code from the hub, which is never run; leave that setting out")


def read_config(place: Place) -> PreTrainedConfig:
    """config.json as transformers types it. Errors: as `read_settings`."""
    read_settings(place)
    with quiet(), reading(place.name, "config.json"):
        return AutoConfig.from_pretrained(place.folder, local_files_only=True, trust_remote_code=False)


def read_tokenizer(place: Place) -> Any:
    """The tokenizer, which knows words and says how long a text may be."""
    if not any((place.folder / file).is_file() for file in TOKENIZER_FILES):
        raise WordsightError(
            f"{place}: its folder holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])} or the like); copy it "
            f"from where the model came from"
        )
    with quiet(), reading(place.name, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            place.folder, local_files_only=True, trust_remote_code=False
        )
        special, known = tokenizer.all_special_tokens, len(tokenizer.get_vocab())
        least = len(tokenizer("a")["input_ids"])
        if tokenizer.padding_side not in ("left", "right") or not tokenizer.model_max_length >= least:
            raise ValueError(f"{tokenizer.padding_side=}, {tokenizer.model_max_length=}")
    if known <= len(special):
        raise WordsightError(
            f"the tokenizer of {place.name!r} knows no words, only {special}: its vocabulary file is missing"
        )
    return tokenizer


def padding_of(tokenizer: Any) -> int:
    """What fills a row; where a tokenizer has nothing for it, its end token, which masks hide."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


def positions_of(config: Any) -> int | None:
    """So many tokens an LM reads at most; None where its configuration does not say."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def weight_files(place: Place) -> list[Path]:
    """model.safetensors, or the shards that its index names, each of them there."""
    folder = place.folder
    shards = _shards(place) if (folder / INDEX_FILE).exists() else []
    files = [folder / WEIGHTS_FILE] if (folder / WEIGHTS_FILE).exists() else shards
    if files:
        return files
    pickled = sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLES))
    why = (
        f"only {pickled[0]}, a pickle, which is never opened; save it with safetensors"
        if pickled
        else f"no weights ({WEIGHTS_FILE})"
    )
    raise WordsightError(f"{place}: its folder holds {why}")


def _shards(place: Place) -> list[Path]:
    index = read_mapping(place.folder / INDEX_FILE, f"{place}:")
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not isinstance(index.get("metadata"), dict):
        raise WordsightError(
            f"{place}: {INDEX_FILE} has no 'weight_map' and 'metadata' of an index of shards"
        )
    odd = sorted({str(file) for file in named.values() if not str(file).endswith(".safetensors")})
    if odd:
        raise WordsightError(f"{place}: {INDEX_FILE} names {odd[0]!r}; shards are .safetensors files")
    shards = [place.folder / file for file in sorted(set(named.values()))]
    for shard in shards:
        held = set(_header(place, shard))
        wanted = {name for name, file in named.items() if file == shard.name}
        for why, names in (("lacks", wanted - held), ("has, unknown to the index,", held - wanted)):
            if names:
                raise WordsightError(f"{place}: its shard {shard.name} {why} {listed(names)}")
    return shards


def _header(place: Place, file: Path) -> dict[str, tuple[int, str]]:
    """How many numbers each tensor of a file has, and of which dtype. Errors: WordsightError for a pickle
    under another name, for what is no safetensors file, and for whole numbers where weights should be."""
    if not file.is_file():
        raise WordsightError(f"{place}: its folder lacks {file.name}, which its weights need")
    with open(file, "rb") as opened:
        if opened.read(4).startswith(MAGIC):
            raise WordsightError(
                f"{place}: {file.name} is a pickle under another name, which is never opened"
            )
    try:
        with safe_open(file, "pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  no `in`
            found = {name: (math.prod(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WordsightError(f"{place}: {file.name} cannot be read ({first_line(error)})") from error
    for name, (_, dtype) in found.items():
        if dtype not in FLOATS and not COUNTS.search(name):
            raise WordsightError(
                f"{place}: {file.name} holds {name} as {dtype}, which are no weights as they were trained; "
                f"take the checkpoint in float32, float16 or bfloat16"
            )
    return found


def read_model(
    kind: Any,
    place: Place,
    config: Any,
    *,
    dtype: torch.dtype = torch.float32,
    spare: Callable[[PreTrainedModel, str], bool] | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """The model, every tensor of it from the checkpoint, finite, and none of the checkpoint's left over but
    what `spare(model, name)` allows, such as a head. `kind` is a class of transformers, `settings` are its
    own.
    """
    header = {}
    for file in weight_files(place):
        header |= _header(place, file)
    _check_size(kind, place, config, header, settings)
    with quiet(), reading(place.name, "the weights"):
        model, info = kind.from_pretrained(
            place.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error below, with their names
            local_files_only=True,
            **settings,
        )
    left = [name for name in info["unexpected_keys"] if spare is None or not spare(model, name)]
    shapes = [entry[0] for entry in info["mismatched_keys"]]
    check_tensors(str(place), info["missing_keys"], left, shapes)
    check_finite(dict(model.named_parameters()) | dict(model.named_buffers()), f"the checkpoint of {place}")
    return model.eval()


def check_tensors(
    what: str, missing: Collection[str], left: Collection[str] = (), shapes: Collection[str] = ()
) -> None:
    """Refuse a checkpoint that lacks tensors, which transformers would fill with random numbers, has some
    that nothing takes, or has them in other shapes."""
    for why, names in (
        ("lacks", missing),
        ("has too many:", left),
        ("has in another shape than config.json:", shapes),
    ):
        if names:
            raise WordsightError(
                f"the checkpoint of {what} {why} {listed(names)}; nothing is filled with random numbers"
            )


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens the model has an embedding of."""
    return len(model.get_input_embeddings().get_parameter("weight"))


def _check_size(kind: Any, place: Place, config: Any, header: Mapping[str, Any], settings: Any) -> None:
    """A config.json far larger than its checkpoint would fill the memory before anything is compared."""
    held, numbers = sum(count for count, _ in header.values()), dict(_whole_numbers(config.to_dict()))
    layers = max((numbers.get(key, 0) for key in LAYERS), default=0)
    if layers > 10 * len(header):
        raise WordsightError(f"{place}: config.json asks for {layers} layers, its checkpoint holds fewer")
    if math.prod(sorted(numbers.values())[-2:]) < max(8 * held, 10_000_000):
        return  # no matrix of two of them can be too large
    with quiet(), reading(place.name, "config.json"), torch.device("meta"):
        make = kind if issubclass(kind, PreTrainedModel) else kind.from_config
        wanted = sum(weight.numel() for weight in make(config, **settings).parameters())
    if wanted > 4 * held + 1_000_000:  # tied weights are kept once
        raise WordsightError(
            f"{place}: config.json asks for {wanted:,} numbers, but its checkpoint holds {held:,}; they do "
            f"not belong together"
        )


def _whole_numbers(values: Any) -> Iterator[tuple[str, int]]:
    """Every whole number in a mapping that could be a size, with its key, the largest last."""
    found = [(key, value) for key, value in values.items() if type(value) is int and not key.endswith("_id")]
    for inner in values.values():
        found += _whole_numbers(inner) if isinstance(inner, dict) else []
    yield from sorted(found, key=lambda entry: entry[1])


def of_a_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor that was left over belongs to a head, and not to a layer of the model itself."""
    own = {"embeddings", "encoder"}
    own |= {part for whole in (model, model.base_model) for part, _ in whole.named_children()}
    return name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] not in own


def head_rows(place: Place) -> Tensor | None:
    """The rows of the checkpoint's classification head, [C, D], where it has one."""
    for file in weight_files(place):
        with safe_open(file, "pt") as tensors:
            if "classifier.weight" in tensors.keys():  # noqa: SIM118  safe_open has no `in`
                head = tensors.get_tensor("classifier.weight")
                check_finite({"classifier.weight": head}, f"the checkpoint of {place}")
                return head
    return None


def exactly(file: Path, wanted: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors of one of our own files: these names and shapes and no others, finite, and as they were
    written.
    """
    found, _ = read_tensors(file, place)
    where = f"{file.name} of {place}"
    for why, names in (("lacks", set(wanted) - set(found)), ("has too many:", set(found) - set(wanted))):
        if names:
            raise WordsightError(f"{where} {why} {listed(names)}; expected exactly {len(wanted)} tensors")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape or not found[name].is_floating_point():
            raise WordsightError(
                f"{where} has {name} as {tuple(found[name].shape)} of {found[name].dtype}, but its settings "
                f"make it {tuple(tensor.shape)}"
            )
    return found


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Errors: WordsightError naming the tensors that hold numbers which are not finite."""
    # a sum is finite only where every number is, and is a tenth of the work of asking each
    broken = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and not bool(tensor.sum().isfinite())
        and not bool(tensor.isfinite().all())
    ]
    if broken:
        raise WordsightError(f"{what} holds numbers that are not finite, in {listed(broken)}")


# -- what identifies a part --


def config_facts(config: Any) -> str:
    """What a tower computes besides its weights (heads, activation, epsilon), without what says who wrote the
    file, and without `vision_use_head`, which its tensors tell and an older transformers does not write.
    """
    return json.dumps(_computing(config.to_dict()), sort_keys=True, default=str)


def _computing(facts: Mapping[str, Any]) -> dict[str, Any]:
    drop = {"transformers_version", "dtype", "torch_dtype", "architectures", "attn_implementation"}
    drop |= {"id2label", "label2id", "vision_use_head"}
    return {
        key: _computing(value) if isinstance(value, dict) else value
        for key, value in facts.items()
        if not str(key).startswith("_") and key not in drop
    }


def tokenizer_facts(tokenizer: Any) -> str:
    """What decides the ids of a text, and no path of a file."""
    reads = [tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.model_input_names]
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # those two change with calls
        reads.append({key: value for key, value in rules.items() if key not in ("truncation", "padding")})
    else:
        lower = tokenizer.init_kwargs.get("do_lower_case")
        reads += [type(tokenizer).__name__, tokenizer.get_vocab(), lower]
    return json.dumps(reads, sort_keys=True)
