"""Eight bits: a graph whose weights, and perhaps what it computes, are 8-bit numbers, and what that
changes."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from wordsight.config import WordsightError
from wordsight.extras import needed
from wordsight.files import write_file
from wordsight.onnx import opened

KINDS = ("weights", "all")
BLOCK = 32  # weights that share a scale
AT_ONCE = 16
PRODUCTS = ("MatMul", "Gemm")  # nearly all of a tower's weights are in these


def check_kind(kind: str | None) -> None:
    """Errors: WordsightError for what is no choice."""
    if kind not in (None, *KINDS):
        raise WordsightError(f"int8={kind!r} is not a choice; the choices are {', '.join(KINDS)}")


def eight_bits(path: Path, kind: str) -> None:
    """Change the matrix products of the graph's tower to 8 bits; what is made of its vectors stays."""
    with needed("onnx", "export --int8"), _quiet():
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as temporary:
            before = str(Path(temporary) / "before.onnx")
            quant_pre_process(str(path), before, skip_symbolic_shape=True)
            model = onnx.load(before)
            tower = _ancestors(model.graph, "embedding")
            products = [node for node in model.graph.node if node.op_type in PRODUCTS]
            kept = [node.name for node in products if node.output[0] not in tower]
            if len(kept) == len(products):
                raise WordsightError("--int8: this tower has no matrix products that 8 bits would shrink")
            if kind == "weights":
                _weights(model, path, kept)
            else:
                _all(before, path, kept)


def _ancestors(graph: Any, name: str) -> set[str]:
    """All values that one is made of, and itself."""
    makers = {output: node for node in graph.node for output in node.output}
    found, ahead = {name}, [name]
    while ahead:
        node = makers.get(ahead.pop())
        new = set(node.input if node else ()) - found
        found |= new
        ahead += new
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime tells the root logger of every node, and gives it a handler of its own."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _weights(model: Any, path: Path, kept: list[str]) -> None:
    """Weights in blocks that share a scale; what is computed stays float32."""
    from onnxruntime.quantization import matmul_nbits_quantizer
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    matmul_nbits_quantizer.logger.setLevel(logging.ERROR)

    quantizer = MatMulNBitsQuantizer(
        model, bits=8, block_size=BLOCK, is_symmetric=True, nodes_to_exclude=kept
    )
    quantizer.process()
    made: Any = quantizer.model
    write_file(path, made.model.SerializeToString())


def _all(before: str, path: Path, kept: list[str]) -> None:
    """Each output's weights have a scale, and what is multiplied by them is scaled as it comes. Seven bits of
    the weights are used: with eight, sums of two products overflow on processors without VNNI."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        before,
        str(path),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_exclude=kept,
    )


def compared(
    plain: Callable[[Tensor], tuple[Tensor, ...]], path: Path, pixels: UInt8[np.ndarray, "n 3 H W"]
) -> dict[str, Any]:
    """How often the graph names torch's class, and how far its probabilities are."""
    session = opened(path)
    parts = [pixels[start : start + AT_ONCE] for start in range(0, len(pixels), AT_ONCE)]
    with torch.no_grad():
        expected = np.concatenate([plain(torch.from_numpy(part))[0].numpy() for part in parts])
    found = np.concatenate([session.run(["probabilities"], {"pixels": part})[0] for part in parts])
    apart = np.abs(found - expected).max(1)
    return {
        "images": len(pixels),
        "agreement": float((found.argmax(1) == expected.argmax(1)).mean()),
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
    }
