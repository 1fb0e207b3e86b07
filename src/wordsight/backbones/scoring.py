"""scoring: how likely an LM holds each of many given texts behind one prompt, exactly, and at the cost of
little more than the prompt.

The prompt passes through the LM once and its keys and values are kept. The texts form a tree of tokens in
which a beginning that several share stands once; all branches pass together, each token seeing the prompt and
its own path. Shapes: B prompts of T columns, n nodes of the tree, C texts, W the LM's width."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from wordsight.backbones.inner_lm import closeness
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.readonly import ALIBI, ATTENTIONS, LAYERS, as_numbers, keys_and_values, window
from wordsight.backbones.turns import in_turn
from wordsight.config import WordsightError

TOGETHER = 512  # nodes that pass through the LM in one batch
SCORES = 2**25  # logits that are held at once: 128 MiB
CACHE = 2**30  # bytes of keys and values that are held at once, where nobody says how many prompts
MOST = 64  # prompts in one batch, where nobody says how many
TRIED = ((5, 7, 9), (5, 7, 11, 2), (5, 3), (8, 7))  # texts of the check, in which beginnings are shared


Masks: TypeAlias = Tensor | dict[str, Tensor]  # one for all layers, or one for each kind of them


@dataclass(frozen=True)
class Tree:
    """Texts of tokens as a tree, its nodes in the order in which a walk down the branches meets them: a
    node's parent stands before it.
    """

    tokens: tuple[int, ...]  # of each node
    parents: tuple[int, ...]  # of each node; -1: it begins a text
    ends: tuple[int, ...]  # the last node of each text

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Tree:
        """Errors: ValueError for a text without tokens."""
        if not all(texts):
            raise ValueError("a text without tokens has no place in the tree")
        tokens: list[int] = []
        parents: list[int] = []
        children: dict[tuple[int, int], int] = {}
        ends = [0] * len(texts)
        for place in sorted(range(len(texts)), key=lambda place: tuple(texts[place])):
            node = -1
            for token in texts[place]:
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[node, token]
            ends[place] = node
        return cls(tuple(tokens), tuple(parents), tuple(ends))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each node, how many stand above it."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent < 0 else found[parent] + 1)
        return tuple(found)

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """The nodes that others stand behind: those whose states say how likely these are."""
        return tuple(sorted(set(self.parents) - {-1}))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each text."""
        return tuple(self.depths[end] + 1 for end in self.ends)

    def path(self, node: int) -> list[int]:
        """The nodes from the first down to this one."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def blocks(self, size: int) -> list[list[int]]:
        """The inner nodes in blocks of about `size`, each with all that stands above its nodes: what a
        block begins with may stand in the one before too.
        """
        found = []
        for start in range(0, len(self.inner), size):
            some = self.inner[start : start + size]
            found.append(sorted({*some, *self.path(some[0])}))
        return found

    @cached_property
    def parts(self) -> list[tuple[list[int], Bool[Tensor, "m m"]]]:
        """`blocks` of TOGETHER nodes, and which of its block each node sees: those above it, and itself."""
        found = []
        for block in self.blocks(TOGETHER):
            place = {node: row for row, node in enumerate(block)}
            above = torch.eye(len(block), dtype=torch.bool)
            for row, node in enumerate(block):
                if (parent := place.get(self.parents[node])) is not None:
                    above[row] |= above[parent]
            found.append((block, above))
        return found

    def summed(self, values: Float[Tensor, "B n"]) -> Float[Tensor, "B C"]:
        """The sum of each text's nodes."""
        nothing = values.new_zeros(len(values), 1)  # of texts that are shorter than the longest
        return torch.cat([values, nothing], 1)[:, self._paths.to(values.device)].sum(2)

    @cached_property
    def _paths(self) -> Int[Tensor, "C L"]:
        """The nodes of each text, and behind them the one that stands for nothing."""
        found = torch.full((len(self.ends), max(self.lengths)), len(self.tokens))
        for row, end in enumerate(self.ends):
            path = self.path(end)
            found[row, : len(path)] = torch.tensor(path)
        return found

    def among_siblings(self, values: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """Log probabilities with all but the tree's own tokens taken away: of the nodes behind one, they add
        up to one.
        """
        place = torch.tensor(self.parents, device=values.device) + 1
        rows = place.expand(len(values), -1)
        largest = values.new_full((len(values), len(self.tokens) + 1), -torch.inf)
        largest = largest.scatter_reduce(1, rows, values, "amax")
        shifted = (values - largest.gather(1, rows)).exp()
        total = torch.zeros_like(largest).scatter_add(1, rows, shifted).gather(1, rows)
        return values - largest.gather(1, rows) - total.log()


class Behind(NamedTuple):
    """What an LM holds behind prompts of equal length."""

    rows: list[int]  # which of the prompts that were given
    cache: DynamicCache
    length: int  # T, columns of the cache
    positions: Int[Tensor, " B"]  # of the next token
    states: Float[Tensor, "B W"]  # of the last token, behind the last norm

    @property
    def bytes_each(self) -> int:
        """What the keys and values of one prompt take."""
        return sum(part[0].nbytes for pair in keys_and_values(self.cache) for part in pair)


@torch.no_grad()
@in_turn
def read_rows(lm: PrefixedLM, rows: Sequence[Float[Tensor, "_ W"]]) -> list[Behind]:
    """Prompts as vectors, through the LM: those of equal length together."""
    found = []
    for some in alike([len(row) for row in rows]):
        given = torch.stack([rows[place] for place in some])
        cache = DynamicCache()  # without a config: a sliding layer's cache would drop what the mask hides
        states = lm.lm.base_model(inputs_embeds=given, past_key_values=cache, use_cache=True)[0]
        length = given.shape[1]
        positions = torch.full((len(some),), length, device=lm.device)
        found.append(Behind(some, cache, length, positions, states[:, -1]))
    return found


def alike(shapes: Sequence[Hashable]) -> list[list[int]]:
    """The places of equal shapes, together: without padding, which would move positions in some families."""
    found: dict[Hashable, list[int]] = {}
    for place, shape in enumerate(shapes):
        found.setdefault(shape, []).append(place)
    return [*found.values()]


Way: TypeAlias = Callable[[PrefixedLM, Behind, Tree], Tensor]  # [B, n]


class Scorer:
    """Scores the nodes of a tree behind prompts, in the way that the LM allows: all branches at once under a
    mask in which a token sees the prompt and its own path, or, where the LM takes no such mask, with each
    branch beside its own copy of the prompt's keys and values."""

    def __init__(self, lm: PrefixedLM):
        """Errors: WordsightError for an LM on which neither gives what a plain pass gives."""
        self.lm = lm
        self.masked = _takes_masks(lm) and self._agrees(_nodes_by_mask)
        if not self.masked and not self._agrees(_nodes_by_copies):
            raise WordsightError(
                f"{lm.lm.config.model_type} keeps no keys and values that several answers could share, so "
                f"their likelihood cannot be scored together; give another LM, such as llama, qwen3 or gemma3"
            )

    @torch.no_grad()
    @in_turn
    def nodes(self, behind: Behind, tree: Tree) -> Float[Tensor, "B n"]:
        """The log probability of each node's token behind the prompt and the node's path; float32."""
        sees = window(self.lm.lm.config)
        long = sees is not None and behind.length + max(tree.lengths) > sees
        masked = self.masked and not (long and not _by_kind(self.lm))
        return (_nodes_by_mask if masked else _nodes_by_copies)(self.lm, behind, tree)

    @torch.no_grad()
    def _agrees(self, way: Way) -> bool:
        """Whether it gives what a plain pass of each text gives."""
        lm, tree = self.lm, Tree.of(TRIED)
        first = [*lm.begin, 4, 6]
        texts = [torch.tensor([[*first, *text]], device=lm.device) for text in TRIED]
        plain = [lm.logits(_plain_states(lm, ids, len(first))[0]) for ids in texts]
        theirs = torch.stack(
            [
                scores[len(first) - 1 : -1].log_softmax(1)[range(len(text)), list(text)].sum()
                for scores, text in zip(plain, TRIED)
            ]
        )
        prompt = lm.embed(torch.tensor([first], device=lm.device))[0]
        try:
            (behind,) = read_rows(lm, [prompt, prompt])
            ours = tree.summed(way(lm, behind, tree))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return False
        close = closeness(lm.lm.dtype) * max(float(plain[0].float().std()), 1e-3)
        return bool((ours - theirs).abs().max() <= close)


def prompts_at_once(lm: PrefixedLM, behind: Behind, tree: Tree) -> int:
    """How many prompts like this one hold CACHE bytes of keys and values, those of the tree's nodes among
    them."""
    columns = behind.length + min(len(tree.inner), TOGETHER)
    each = behind.bytes_each * columns // max(1, behind.length)
    return max(1, min(MOST, CACHE // max(1, each)))


# -- the ways --


def _nodes_by_mask(lm: PrefixedLM, behind: Behind, tree: Tree) -> Float[Tensor, "B n"]:
    found = behind.states.new_empty(len(behind.positions), len(tree.tokens), dtype=torch.float32)
    _score(lm, behind.states[:, None], {-1: 0}, tree, found)
    for block, above in tree.parts:
        states = _states_by_mask(lm, behind, tree, block, above)
        _score(lm, states, {node: place for place, node in enumerate(block)}, tree, found)
    return found


def _states_by_mask(
    lm: PrefixedLM, behind: Behind, tree: Tree, block: Sequence[int], above: Bool[Tensor, "m m"]
) -> Float[Tensor, "B m W"]:
    device = behind.states.device
    ids = torch.tensor([[tree.tokens[node] for node in block]], device=device)
    depths = torch.tensor([tree.depths[node] for node in block], device=device)
    seen = torch.cat([torch.ones(len(block), behind.length, dtype=torch.bool), above], 1).to(device)
    given = lm.embed(ids).expand(len(behind.positions), -1, -1)
    positions = behind.positions[:, None] + depths
    states = lm.lm.base_model(
        inputs_embeds=given,
        attention_mask=_masks(
            lm, seen, torch.cat([torch.arange(behind.length, device=device), behind.length + depths])
        ),
        position_ids=positions,
        past_key_values=behind.cache,
        use_cache=True,
    )[0]
    behind.cache.crop(-len(block))
    return states


def _masks(lm: PrefixedLM, seen: Bool[Tensor, "m S"], columns: Int[Tensor, " S"]) -> Masks:
    """What may be seen, as numbers that are added to the scores (readonly.additive_mask); of each kind of
    layers by itself where the LM has several. `columns` counts along the texts: how far a token is behind.
    """

    def added(shown: Bool[Tensor, "m S"]) -> Float[Tensor, "1 1 m S"]:
        return as_numbers(~shown[None], lm.lm.dtype)

    sees = window(lm.lm.config)
    if sees is None:
        return added(seen)
    near = columns[-len(seen) :, None] - columns < sees
    if not _by_kind(lm):
        return added(seen)  # of a text within the window: see Scorer.nodes
    return {"full_attention": added(seen), "sliding_attention": added(seen & near)}


def _by_kind(lm: PrefixedLM) -> bool:
    """Whether each kind of its layers takes a mask of its own."""
    return bool(getattr(lm.lm.config, "layer_types", None))


def _nodes_by_copies(lm: PrefixedLM, behind: Behind, tree: Tree) -> Float[Tensor, "B n"]:
    count = len(behind.positions)
    found = behind.states.new_empty(count, len(tree.tokens), dtype=torch.float32)
    _score(lm, behind.states[:, None], {-1: 0}, tree, found)
    last = sorted(set(tree.inner) - {tree.parents[node] for node in tree.inner})
    size = max(1, CACHE // max(1, behind.bytes_each * count))
    for start in range(0, len(last), size):
        paths = [tree.path(node) for node in last[start : start + size]]
        longest = max(map(len, paths))
        ids = torch.tensor(
            [[tree.tokens[node] for node in path] + [0] * (longest - len(path)) for path in paths],
            device=behind.states.device,
        )
        states = _states_by_copies(lm, behind, ids)
        where = {
            node: row * longest + column for row, path in enumerate(paths) for column, node in enumerate(path)
        }
        _score(lm, states.reshape(count, -1, states.shape[-1]), where, tree, found)
    return found


def _states_by_copies(lm: PrefixedLM, behind: Behind, ids: Int[Tensor, "p L"]) -> Float[Tensor, "B p L W"]:
    """Each prompt's cache once for each path; what is behind a path's end is read by nobody."""
    count, (paths, longest) = len(behind.positions), ids.shape
    cache = copy.deepcopy(behind.cache)
    cache.batch_repeat_interleave(paths)
    steps = torch.arange(longest, device=ids.device)
    positions = (behind.positions[:, None] + steps).repeat_interleave(paths, 0)
    states = lm.lm.base_model(
        inputs_embeds=lm.embed(ids).repeat(count, 1, 1),
        attention_mask=ids.new_ones(count * paths, behind.length + longest),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )[0]
    return states.view(count, paths, longest, -1)


def _score(
    lm: PrefixedLM,
    states: Float[Tensor, "B m W"],
    where: dict[int, int],
    tree: Tree,
    found: Float[Tensor, "B n"],
) -> None:
    """Write into `found` the log probabilities of all nodes whose parents' states are here, at `where`."""
    wanted = [node for node, parent in enumerate(tree.parents) if parent in where]
    parents = np.array([where[tree.parents[node]] for node in wanted])
    order = np.argsort(parents, kind="stable")
    nodes, parents = np.array(wanted)[order], parents[order]
    known = np.unique(parents)
    vocabulary = lm.logits(states[:1, 0]).shape[-1]
    size = max(1, SCORES // (vocabulary * len(states)))
    for start in range(0, len(known), size):
        some = known[start : start + size]
        part = slice(np.searchsorted(parents, some[0]), np.searchsorted(parents, some[-1], "right"))
        logits = lm.logits(states[:, some].flatten(0, 1)).unflatten(0, (len(states), -1))
        total = logits.logsumexp(-1)
        rows = torch.from_numpy(np.searchsorted(some, parents[part])).to(states.device)
        tokens = torch.tensor([tree.tokens[node] for node in nodes[part]], device=states.device)
        found[:, nodes[part]] = logits[:, rows, tokens] - total[:, rows]


def _plain_states(lm: PrefixedLM, ids: Int[Tensor, "1 T"], first: int) -> Float[Tensor, "1 T V"]:
    """The states of a text in one pass. Where the family reads prompts in both directions (PaliGemma), the
    `first` tokens are one.
    """
    mask = None
    if getattr(lm.lm.config, "use_bidirectional_attention", None):
        places = torch.arange(ids.shape[1], device=lm.device)
        seen = (places <= places[:, None]) | ((places < first) & (places < first)[:, None])
        mask = _masks(lm, seen, places)
    return lm.lm.base_model(inputs_embeds=lm.embed(ids), attention_mask=mask, use_cache=False)[0]


def _takes_masks(lm: PrefixedLM) -> bool:
    """Whether the family can take a mask of four dimensions: the check finds out whether it does it right."""
    config = lm.lm.config
    alibi = config.model_type in ALIBI or getattr(config, "alibi", False)
    plain = set(getattr(config, "layer_types", None) or ()) <= set(LAYERS)
    return config._attn_implementation in ATTENTIONS and not alibi and plain
