"""The real, very small Llama of llama2.c (stories260K) as a folder of transformers: python
benchmarks/clamp/stories.py ../shared/data OUT

It writes short children's stories: a real decoder LM that trains and generates in seconds, for CLAMP's
checks. The weights are not in this repository."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")  # the first three pieces; the file has line ends around the last two
EPS, THETA = 1e-5, 10000.0  # constants of llama2.c


def convert(data: str | Path, out: str | Path) -> Path:
    """Write the LM and its tokenizer into the folder `out`. `data` holds stories260K/stories260K.bin and
    tok512.bin.
    """
    data, out = Path(data) / "stories260K", Path(out)
    lm = read_lm(data / "stories260K.bin")
    lm.save_pretrained(out)
    tokenizer = as_tokenizer(read_pieces(data / "tok512.bin"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        model_max_length=lm.config.max_position_embeddings,
    ).save_pretrained(out)
    return out


def read_lm(file: Path) -> LlamaForCausalLM:
    """The model of a llama2.c file: seven int32, then float32 tensors one after the other, layers stacked."""
    raw = file.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", raw[:28])
    if vocabulary < 0:
        raise ValueError(
            f"{file} has a word head of its own (vocabulary {vocabulary}); only tied ones are read here"
        )
    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        rms_norm_eps=EPS,
        rope_theta=THETA,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    size, kv = dim // heads, dim // heads * kv_heads
    shapes = {
        "embed_tokens": (vocabulary, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv, dim),
        "self_attn.v_proj": (layers, kv, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
    }
    numbers, tensors, at = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        block, at = numbers[at : at + count].view(shape), at + count
        if name in ("embed_tokens", "norm"):
            tensors[f"model.{name}.weight"] = block
            continue
        for layer, matrix in enumerate(block):
            turned = halves(matrix, size) if name.endswith(("q_proj", "k_proj")) else matrix
            tensors[f"model.layers.{layer}.{name}.weight"] = turned
    rotary = context * size  # two tables of angles, which transformers computes
    if at + rotary != len(numbers):
        raise ValueError(f"{file} holds {len(numbers)} numbers; a model of this header has {at + rotary}")
    lm = LlamaForCausalLM(config)
    lm.load_state_dict(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    return lm.eval()


def halves(matrix: Float[Tensor, "O I"], size: int) -> Float[Tensor, "O I"]:
    """Rows of each head reordered: llama2.c rotates neighbours (0, 1), transformers rotates halves (0, size /
    2).
    """
    return matrix.view(-1, size // 2, 2, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)


def read_pieces(file: Path) -> list[tuple[bytes, float]]:
    """Pieces and scores in the order of their ids: int32 longest piece, then float32 score, int32 length and
    the bytes of each.
    """
    raw, at, pieces = file.read_bytes(), 4, []
    while at < len(raw):
        score, length = struct.unpack("<fi", raw[at : at + 8])
        pieces.append((raw[at + 8 : at + 8 + length], score))
        at += 8 + length
    return pieces


def as_tokenizer(pieces: list[tuple[bytes, float]]) -> Tokenizer:
    """llama2.c's tokenisation: a space before the text, letters (or bytes, for those that are no pieces), and
    the best-scored pair merged while there is one.
    """
    names = [*SPECIAL, *(piece.decode() for piece, _ in pieces[len(SPECIAL) :])]
    ids = {name: row for row, name in enumerate(names)}
    score = {name: pieces[row][1] for name, row in ids.items()}
    splits = [
        (name[:cut], name[cut:])
        for name in names[len(SPECIAL) :]
        if not is_byte(name)
        for cut in range(1, len(name))
    ]
    merges = sorted(
        (pair for pair in splits if pair[0] in ids and pair[1] in ids), key=lambda pair: -score["".join(pair)]
    )
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=SPECIAL[0], byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x")


def bpe_encode(text: str, pieces: Iterable[tuple[bytes, float]]) -> list[int]:
    """llama2.c's own algorithm, step by step: what `as_tokenizer` must equal."""
    table = {piece: (row, score) for row, (piece, score) in enumerate(pieces)}
    names = [piece for piece in table]
    ids = [1] + ([table[b" "][0]] if text else [])
    for letter in text:
        raw = letter.encode()
        ids += [table[raw][0]] if raw in table else [byte + len(SPECIAL) for byte in raw]
    while True:
        pairs = [table.get(names[one] + names[two]) for one, two in pairwise(ids)]
        best = max((pair[1] for pair in pairs if pair), default=None)
        if best is None:
            return ids
        at = next(index for index, pair in enumerate(pairs) if pair and pair[1] == best)
        ids[at : at + 2] = [pairs[at][0]]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(convert(*sys.argv[1:]))
