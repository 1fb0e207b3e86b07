"""Scores of many texts behind a prompt: equal to one pass a text, in every family and by either way."""

import pytest
import torch
from mllms import FAMILIES, TEXT, tokenizer, write_mllm
from standins import COLOURS, mostly_slow, paint
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from wordsight.backbones import load_backbone, scoring
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.scoring import Scorer, Tree, read_rows
from wordsight.config import WordsightError

SIZES = {"n_embd": 16, "d_model": 16, "n_head": 2, "n_heads": 2, "n_layer": 2, "n_layers": 2}
LMS = {
    "llama": {},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 8},
    "gpt2": SIZES,
    "bloom": SIZES,
}


def answers(count=8):
    """Texts of one to five tokens behind two that all share."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 6, (count,), generator=draw).tolist()
    return [[5, 6, *torch.randint(4, 30, (length,), generator=draw).tolist()] for length in lengths]


def tiny(kind, **sizes):
    torch.manual_seed(0)
    tokens = tokenizer()
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**TEXT | {"vocab_size": 35} | sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # so that its tokens are not all equally likely
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return PrefixedLM(model, tokens)


def one_by_one(lm, row, texts):
    """The log probability of each text, by a pass of its own."""
    found = []
    for text in texts:
        given = torch.cat([row, lm.embed(torch.tensor([text]))[0]])
        scores = lm.logits(lm._states(given[None])[0, len(row) - 1 : -1]).log_softmax(1)
        found.append(scores[range(len(text)), text].sum())
    return torch.stack(found)


@pytest.mark.parametrize("kind", LMS)
@torch.no_grad()
def test_scores_of_an_lm_are_those_of_one_pass_a_text(kind, monkeypatch):
    lm, texts = tiny(kind, **LMS[kind]), answers()
    rows = [torch.randn(length, 16) * lm.spread for length in (12, 9, 12)]
    scorer, tree = Scorer(lm), Tree.of(texts)
    assert scorer.masked == (kind != "bloom")
    theirs = torch.stack([one_by_one(lm, row, texts) for row in rows])
    for together in (512, 3):  # all nodes at once, or a few
        monkeypatch.setattr(scoring, "TOGETHER", together)
        groups = read_rows(lm, rows)
        assert sorted(map(len, (group.rows for group in groups))) == [1, 2]
        for group in groups:
            ours = tree.summed(scorer.nodes(group, tree))
            assert torch.allclose(ours, theirs[group.rows], atol=1e-4), together
            assert group.cache.get_seq_length() == group.length, "what was read of the prompt stays as it was"


def naive(model, prompt, texts):
    """The same of an image-text-to-text model: image, prompt and text, all of it for each text."""
    text, pictures = model._row(prompt)
    found = []
    for ids in texts:
        inputs, more = dict(model._inputs([text], [pictures])), torch.tensor([ids])
        inputs.pop("labels", None)
        length = inputs["input_ids"].shape[1]
        behind = {"input_ids": more, "mm_token_type_ids": torch.zeros_like(more)}
        for name in inputs.keys() & {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}:
            inputs[name] = torch.cat([inputs[name], behind.get(name, torch.ones_like(more))], 1)
        scores = model.model(**inputs).logits[0, length - 1 : -1].float().log_softmax(-1)
        found.append(scores[range(len(ids)), ids].sum())
    return torch.stack(found)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, "llava", "qwen2_vl"))
@torch.no_grad()
def test_scores_of_a_model_that_sees_are_those_of_the_naive_loop(family, tmp_path):
    model = load_backbone(str(write_mllm(family, tmp_path / family)), device="cpu", text=False)
    colours = list(COLOURS.values())
    images = [paint(colours[0], 0, 16), paint(colours[1], 1, 16), paint(colours[2], 2, 24).resize((40, 16))]
    prompts, texts = [model.captioning(image) for image in images], answers()
    scorer, tree = Scorer(model.scored_by), Tree.of(texts)
    theirs = torch.stack([naive(model, prompt, texts) for prompt in prompts])
    ours = torch.zeros_like(theirs)
    for group in model.read(prompts):
        ours[group.rows] = tree.summed(scorer.nodes(group, tree))
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours[0], ours[1], atol=1e-2)


def test_a_tree_shares_beginnings_and_gives_each_text_its_sum():
    texts = [[1, 2, 3], [1, 2], [4], [1, 5, 3]]
    tree = Tree.of(texts)
    assert len(tree.tokens) == 6 and tree.lengths == (3, 2, 1, 3)
    assert [[tree.tokens[node] for node in tree.path(end)] for end in tree.ends] == texts
    values = torch.tensor([[float(token) for token in tree.tokens]])
    assert tree.summed(values).tolist() == [[6.0, 3.0, 4.0, 9.0]]
    for size in (1, 2, 9):
        blocks = tree.blocks(size)
        assert set().union(*blocks) == set(tree.inner)
        assert all(set(tree.path(node)) <= set(block) for block in blocks for node in block)
    with pytest.raises(ValueError, match="without tokens"):
        Tree.of([[1], []])


def test_what_is_constrained_to_the_tree_adds_up_to_one():
    tree = Tree.of([[1, 2, 0], [1, 3, 0], [4, 0], [1, 2, 5, 0]])  # no text begins another: 0 ends each
    values = torch.randn(3, len(tree.tokens)).sub(5)
    among = tree.among_siblings(values)
    assert torch.allclose(tree.summed(among).exp().sum(1), torch.ones(3))
    shifted = tree.among_siblings(values + torch.randn(3, 1))
    assert torch.allclose(among, shifted, atol=1e-5), "the rest of the vocabulary does not matter"


@torch.no_grad()
def test_the_probabilities_of_all_tokens_add_up_to_one():
    lm = tiny("llama")
    tree = Tree.of([[first, second] for first in (4, 9) for second in range(35)])
    (behind,) = read_rows(lm, [torch.randn(5, 16)])
    nodes = Scorer(lm).nodes(behind, tree)[0]
    second = [node for node, depth in enumerate(tree.depths) if depth]
    assert torch.allclose(nodes[second].exp().sum(), torch.tensor(2.0))


def test_an_lm_that_keeps_no_keys_is_refused():
    with pytest.raises(WordsightError, match="keeps no keys and values that several answers could share"):
        Scorer(tiny("mamba", state_size=4, num_hidden_layers=1))
