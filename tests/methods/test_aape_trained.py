"""Trained AAPE: its algebra equals its plain form, and each setting does what the paper or its docstring
says.
"""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wordsight.backbones import unit
from wordsight.config import WordsightError
from wordsight.methods import FitData, Space, aape_trained
from wordsight.methods.aape_trained import TrainedAAPE
from wordsight.methods.aggregators import AttentionAggregator, MeanAggregator, MLPAggregator, mean_of
from wordsight.sentences import ClassTexts
from wordsight.settings import AAPESettings

DIM, SCALE = 12, 20.0
NAMES = tuple("abcde")


def draw(*shape, seed=0, dtype=torch.float32):
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def texts_of(names=NAMES, counts=(3, 0, 1, 2, 4), dtype=torch.float32):
    vectors = tuple(draw(count, DIM, seed=10 + row, dtype=dtype) for row, count in enumerate(counts))
    return ClassTexts(
        tuple(names),
        draw(len(names), DIM, seed=5, dtype=dtype),
        tuple(("s",) * count for count in counts),
        vectors,
    )


def make(texts=None, known=NAMES[:3], shake=True, begin=True, **settings):
    """A trained AAPE bound to five classes of which three have labels; `shake` moves all parameters."""
    torch.manual_seed(0)
    texts = texts or texts_of()
    method = TrainedAAPE(tuple(known), Space(DIM, SCALE), AAPESettings(**{"form": "skip", **settings}))
    if begin:
        counts = [texts.names.index(name) for name in known]
        own = ClassTexts(
            tuple(known),
            texts.name_vectors[counts],
            *(tuple(part[i] for i in counts) for part in (texts.sentences, texts.sentence_vectors)),
        )
        method.setup(FitData(draw(9, DIM)[:, None], torch.arange(9) % len(known), own, 3))
    if shake:
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    method.set_classes(texts)
    return method


# -- the fast form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("form", ["skip", "literal"])
def test_cosines_equal_the_plain_form(form, prompt):
    method = make(texts_of(dtype=torch.float64), begin=False, form=form, prompt=prompt).double()
    images = draw(7, DIM, seed=2, dtype=torch.float64)
    plain = F.cosine_similarity(images[:, None], method.class_weights(images), dim=-1)
    torch.testing.assert_close(method.cosines(images, method.generate(images)), plain, atol=1e-12, rtol=0)


def test_the_fast_form_has_the_plain_form_s_gradients():
    method = make(texts_of(dtype=torch.float64), begin=False).double()
    images = draw(7, DIM, dtype=torch.float64)
    fast = method.cosines(images, method.generate(images))
    plain = F.cosine_similarity(images[:, None], method.class_weights(images), dim=-1)
    weights = torch.randn(fast.shape, dtype=torch.float64)
    one, two = (
        torch.autograd.grad((value * weights).sum(), list(method.parameters())) for value in (fast, plain)
    )
    for first, second in zip(one, two):
        torch.testing.assert_close(first, second, atol=1e-10, rtol=1e-10)


def test_blocks_change_nothing_and_the_large_tensor_is_never_built(monkeypatch):
    method, images = make(), draw(23, DIM)
    with torch.inference_mode():
        whole = method.logits(images)
        monkeypatch.setattr(aape_trained, "PAIRS_IN_CACHE", 20)
        monkeypatch.setattr(
            TrainedAAPE, "class_weights", lambda *_: pytest.fail("built the B x C x D tensor")
        )
        torch.testing.assert_close(method.logits(images), whole, atol=1e-5, rtol=0)
        method.loss({"images": images, "labels": torch.arange(23) % 3})


def test_no_tensor_of_a_block_is_as_large_as_images_by_classes_by_width():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), others=None):
            nonlocal largest
            result = function(*arguments, **(others or {}))
            largest = max(
                [
                    largest,
                    *(
                        part.numel()
                        for part in (result if isinstance(result, (tuple, list)) else [result])
                        if isinstance(part, torch.Tensor)
                    ),
                ]
            )
            return result

    method, images = make(width=4), draw(50, DIM)
    with torch.inference_mode(), Watch():
        method.logits(images)
    assert 50 * len(NAMES) * 4 <= largest < 50 * len(NAMES) * DIM


# -- the forms -----------------------------------------------------------------------------------------------


def test_the_skip_form_starts_at_zero_shot():
    texts, images = texts_of(), draw(7, DIM)
    method = make(texts, shake=False, form="skip")
    torch.testing.assert_close(
        method.logits(images), SCALE * images @ texts.name_vectors.T, atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("form", ["literal", "skip"])
def test_without_a_prompt_nothing_follows_the_image(form):
    method, images = make(form=form, prompt=False), draw(7, DIM)
    weights = method.class_weights(images)
    assert torch.equal(weights, weights[:1].expand_as(weights)) and torch.equal(method.prompt(images), images)
    assert not any(name.startswith(("generator", "from_prompt")) for name in method.weights())
    assert method.loss({"images": images, "labels": torch.arange(7) % 3}).keys() == {"cross_entropy"}


def test_h_only_scores_by_what_the_generator_says():
    texts, images = texts_of(), draw(7, DIM)
    method = make(texts, form="h_only")
    expected = SCALE * F.cosine_similarity(
        method.generator(images)[:, None], texts.name_vectors[None], dim=-1
    )
    torch.testing.assert_close(method.logits(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(method.prompt(images), unit(method.generator(images)))
    assert not any(name.startswith(("from_", "project")) for name in method.weights())


def test_the_literal_form_is_the_paper_s():
    texts = texts_of()
    method, images = make(texts, form="literal"), draw(7, DIM)
    assert torch.equal(method.start(), torch.zeros(5, DIM))
    torch.testing.assert_close(method.words, texts.name_vectors)  # the paper's w_c is the class name's vector
    joined = torch.cat(
        [texts.name_vectors.expand(7, -1, -1), method.generator(images)[:, None].expand(-1, 5, -1)], -1
    )
    inner = torch.cat([method.from_class.weight, method.from_prompt.weight], 1)
    written_out = (
        F.relu(joined @ inner.T + method.from_class.bias) @ method.project.weight.T + method.project.bias
    )  # g([w ; h(x)])
    torch.testing.assert_close(method.class_weights(images), written_out, atol=1e-5, rtol=0)
    terms = method.loss({"images": images, "labels": torch.arange(7) % 3})
    assert terms.keys() == {"cross_entropy", "distill", "reward"}
    assert torch.equal(make(texts, form="skip").start(), texts.name_vectors)


# -- aggregators ---------------------------------------------------------------------------------------------


def shaken(kind, heads=4):
    torch.manual_seed(1)
    aggregator = kind(DIM, heads).double()
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return aggregator


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("kind", [AttentionAggregator, MLPAggregator, MeanAggregator])
def test_aggregators_ignore_order_and_padding(kind, with_images):
    aggregator, sentences = shaken(kind), draw(3, 5, DIM, dtype=torch.float64)
    images = draw(3, DIM, seed=4, dtype=torch.float64) if with_images else None
    present = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    prompts = aggregator(sentences, present, images)
    torch.testing.assert_close(prompts.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(aggregator(sentences.flip(1), present.flip(1), images), prompts)
    alone = aggregator(sentences[1:2, :2], present[1:2, :2], images[1:2] if with_images else None)
    torch.testing.assert_close(prompts[1:2], alone)
    torch.testing.assert_close(
        aggregator(sentences + 9 * ~present[..., None] * (kind is AttentionAggregator), present, images),
        prompts,
    )


def test_attention_starts_at_the_mean():
    sentences, present = draw(3, 5, DIM), torch.ones(3, 5, dtype=torch.bool)
    mean = unit(sentences.sum(1))
    torch.testing.assert_close(AttentionAggregator(DIM, 4)(sentences, present, None), mean)
    images = draw(3, DIM, seed=4)
    torch.testing.assert_close(AttentionAggregator(DIM, 4)(sentences, present, images), unit(mean + images))


def test_attention_equals_torch_s_with_full_keys_and_values():
    own, sentences = shaken(AttentionAggregator, heads=3), draw(4, 5, DIM, dtype=torch.float64)
    present = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
    plain = nn.MultiheadAttention(DIM, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        plain.in_proj_bias.copy_(torch.cat([own.query.bias, torch.zeros(2 * DIM, dtype=torch.float64)]))
        plain.out_proj.load_state_dict(own.output.state_dict())
        slot = mean_of(sentences, present)
        seen = own.norm(torch.cat([slot[:, None], sentences], 1))
        absent = ~F.pad(present, (1, 0), value=True)
        prompt = slot + plain(seen[:, :1], seen, seen, key_padding_mask=absent, need_weights=False)[0][:, 0]
        expected = unit(prompt + own.feed_forward(own.norm_after(prompt)))
        torch.testing.assert_close(own(sentences, present, None), expected, atol=1e-12, rtol=0)


def test_heads_that_do_not_divide_the_width_become_ones_that_do():
    assert AttentionAggregator(DIM, 8).heads == 4 and AttentionAggregator(7, 4).heads == 1


def test_the_query_decides_whether_prompts_differ_between_images():
    images, labels = draw(6, DIM, seed=8), torch.tensor([0, 0, 0, 1, 1, 2])
    shared, own = (make(query=query).condense(images, labels) for query in ("mean", "mean+image"))
    assert (
        torch.equal(shared[0], shared[1])
        and torch.equal(shared[3], shared[4])
        and not torch.allclose(shared[0], shared[3])
    )
    assert not torch.allclose(own[0], own[1], atol=1e-3)


def test_random_keeps_one_sentence_a_class():
    method, texts = make(aggregator="random"), texts_of()
    assert method.sentences.shape == (3, 1, DIM)
    for row, name, vectors in zip(method.sentences[:, 0], texts.name_vectors, texts.sentence_vectors):
        assert any(torch.equal(row, vector) for vector in (vectors if len(vectors) else name[None]))


@pytest.mark.parametrize("aggregator", ["attention", "mlp", "mean", "random"])
def test_what_only_training_needs_is_not_saved(aggregator):
    method = make(aggregator=aggregator)
    assert method.weights().keys() == make(begin=False).weights().keys()
    terms = method.loss({"images": draw(6, DIM), "labels": torch.arange(6) % 3})
    assert ("reward" in terms) == (
        aggregator in ("attention", "mlp")
    )  # the others have nothing that a reward could move


def test_distillation_moves_the_generator_and_not_the_aggregator():
    method = make()
    method.loss({"images": draw(6, DIM), "labels": torch.arange(6) % 3})["distill"].backward()
    assert method.generator[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.aggregator.parameters())


def test_settings_that_cannot_work_are_refused_in_words():
    for settings in ({"width": 0}, {"heads": 0}):
        with pytest.raises(WordsightError, match=next(iter(settings))):
            TrainedAAPE(NAMES, Space(DIM, SCALE), dataclasses.replace(AAPESettings(), **settings))
