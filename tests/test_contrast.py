"""Large contrastive batches: each trick gives the plain form's loss and gradients."""

import math
import weakref
from datetime import timedelta
from inspect import unwrap

import numpy as np
import pytest
import torch
import torch.distributed as dist
from standins import in_processes
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from wordsight import contrast, losses
from wordsight.config import WordsightError

WORDS, WIDTH = 11, 6


class Texts(torch.nn.Module):
    """Word embeddings, a block with dropout, a mean: what matters here of a text tower. `nested` is the
    block's gradient checkpointing.
    """

    def __init__(self, dropout=0.1, nested=None, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(WORDS, 8, dtype=dtype)
        self.block = torch.nn.Sequential(
            torch.nn.Linear(8, 16, dtype=dtype),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(16, WIDTH, dtype=dtype),
        )
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(10.0), dtype=dtype))
        self.unused = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        self.nested, self.calls = nested, 0

    def forward(self, tokens):
        self.calls += 1
        words = self.words(tokens)
        states = (
            self.block(words)
            if self.nested is None
            else checkpoint(self.block, words, use_reentrant=self.nested)
        )
        return normalize(states.mean(1), dim=1)

    def loss(self, images, texts, teacher):
        taught = losses.similarity_distillation(images @ texts.T, teacher @ images.T, tau_d=7.0)
        return losses.info_nce(images, texts, self.log_scale) + taught

    def gradients(self):
        found = {name: parameter.grad for name, parameter in self.named_parameters()}
        self.zero_grad()
        return found


def unit_rows(count, width=WIDTH, seed=0):
    return normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def tokens(count, seed=5):
    return torch.randint(WORDS, (count, 4), generator=torch.Generator().manual_seed(seed))


def assert_equal(ours, plain, tolerance):
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        if gradient is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(
                ours[name], gradient, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


def plainly(encode, parts):
    vectors = []
    for part in parts:
        torch.clear_autocast_cache()  # as `cached` does
        vectors.append(encode(part))
    return torch.cat(vectors)


@pytest.mark.parametrize("autocast", [False, True], ids=["float64", "autocast"])
@pytest.mark.parametrize("nested", [None, False, True])
@pytest.mark.parametrize("sizes", [(4, 3, 1), (8,)], ids=str)
def test_cached_gives_the_plain_loss_gradients_and_random_state(sizes, nested, autocast):
    model = Texts(nested=nested, dtype=torch.float32 if autocast else torch.float64).train()
    parts = [*tokens(sum(sizes)).split(sizes)]
    parts.append(parts[0])  # one object twice: its dropout differs
    images, teacher = (
        unit_rows(sum(sizes) + sizes[0], seed=seed).to(model.log_scale.dtype) for seed in (1, 2)
    )
    found = []
    for encode in (contrast.cached, plainly):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            texts = encode(model, parts)
        loss = model.loss(images, texts.to(images.dtype), teacher)
        torch.rand(1)  # somebody draws between forward and backward
        loss.backward()
        found.append({"loss": loss.detach(), "random": torch.rand(5), **model.gradients()})
    assert_equal(*found, 1e-5 if autocast else 1e-12)
    assert torch.equal(found[0]["loss"], found[1]["loss"]) and torch.equal(
        found[0]["random"], found[1]["random"]
    )
    assert found[0]["words.weight"].abs().max() > 0 and found[0]["unused"] is None


def test_cached_runs_once_where_nobody_asks_for_gradients():
    model, parts = Texts().train(), tokens(6).split(2)
    with torch.no_grad():
        assert not contrast.cached(model, parts).requires_grad and model.calls == 3
    contrast.cached(model, parts).sum().backward()
    assert model.calls == 3 + 2 * 3
    assert (
        not contrast.cached(model.requires_grad_(False), parts).requires_grad and model.calls == 3 + 2 * 3 + 3
    )


def test_cached_takes_parts_of_any_kind_and_devices():
    model = Texts().train()
    sentences = {"red green": tokens(2, seed=1), "blue": tokens(1, seed=2)}
    contrast.cached(lambda text: model(sentences[text]), ["blue", "red green"], devices=["cpu"]).square()[
        :, 0
    ].sum().backward()
    assert model.words.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_cached_sums_the_gradients_of_many_parts_in_the_weights_precision():
    layer, part = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        features = contrast.cached(layer, [part] * 1000)
    features.float().sum().backward()
    assert layer.weight.grad.item() == 1000  # bfloat16 counts to 256


def test_cached_holds_the_activations_of_one_part_at_a_time():
    weight, alive, most = torch.ones(4, requires_grad=True), weakref.WeakSet(), []

    class Owner(np.ndarray):
        __hash__ = object.__hash__

    def encode(part):
        activation = np.full((2, 4), float(part), np.float32).view(Owner)
        alive.add(activation)
        most.append(len(alive))
        return (weight * torch.from_numpy(activation)).square()

    contrast.cached(encode, range(1, 6)).sum().backward()
    assert len(most) == 10 and max(most) == 1 and len(alive) == 0
    assert weight.grad.tolist() == [2 * 2 * sum(part**2 for part in range(1, 6))] * 4


def value_and_gradients(loss, *inputs):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*inputs)
    value.backward()
    return {
        "loss": value.detach(),
        **{f"input {number}": tensor.grad for number, tensor in enumerate(inputs)},
    }


@pytest.mark.parametrize("rows", [1, 3, 7, 1024])
@pytest.mark.parametrize("count", [1, 7])
def test_tiled_losses_equal_the_plain_ones_in_value_and_every_gradient(count, rows):
    image, text, near, far = (
        unit_rows(count),
        unit_rows(count, seed=1),
        unit_rows(count, 9, seed=2),
        unit_rows(count, 9, seed=3),
    )
    log_scale, bias = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    ours = value_and_gradients(
        lambda *given: contrast.tiled_info_nce(*given, rows=rows), image, text, log_scale
    )
    assert_equal(ours, value_and_gradients(losses.info_nce, image, text, log_scale), 1e-10)
    ours = value_and_gradients(
        lambda *given: contrast.tiled_pairwise_sigmoid(*given, rows=rows), image, text, log_scale, bias
    )
    assert_equal(ours, value_and_gradients(losses.pairwise_sigmoid, image, text, log_scale, bias), 1e-10)
    for tau_d in (1.0, 100.0):
        ours = value_and_gradients(
            lambda *given, tau_d=tau_d: contrast.tiled_similarity_distillation(
                *given, near, far, tau_d, rows=rows
            ),
            image,
            text,
        )
        plain = value_and_gradients(
            lambda image, text, tau_d=tau_d: losses.similarity_distillation(
                image @ text.T, near @ far.T, tau_d
            ),
            image,
            text,
        )
        assert_equal(ours, plain, 1e-10)


def test_tiled_distillation_passes_no_gradient_to_the_teacher_and_refuses_another_batch():
    image, teacher = unit_rows(4).requires_grad_(), unit_rows(4, 9).requires_grad_()
    contrast.tiled_similarity_distillation(image, unit_rows(4, seed=1), teacher, teacher, rows=3).backward()
    assert teacher.grad is None and image.grad.abs().max() > 0
    with pytest.raises(WordsightError, match="must see one batch"):
        # without the tests' own check
        unwrap(contrast.tiled_similarity_distillation)(image, image, teacher[:3], teacher)


def test_bytes_of_gradients_travel_in_buckets_of_one_type(monkeypatch):
    monkeypatch.setattr(contrast, "BUCKET", 40)
    sizes = [3, 2, 4, 100, 1, 1]
    tensors = [
        torch.zeros(size, dtype=torch.float32 if index == 5 else torch.float64)
        for index, size in enumerate(sizes)
    ]
    assert [[len(tensor) for tensor in bucket] for bucket in contrast._buckets(tensors)] == [
        [3, 2],
        [4],
        [100],
        [1],
        [1],
    ]


def test_without_a_process_group_nothing_is_gathered_or_averaged():
    x, parameter = torch.ones(2, 3), torch.ones(1, requires_grad=True)
    contrast.average_gradients([parameter])
    assert contrast.gather(x) is x and parameter.grad is None


def process(rank, most, folder):
    """One of up to three processes: with 1, 2 and 3 of them, the loss and averaged gradients are those of one
    process with the whole batch.
    """
    torch.set_num_threads(1)
    sentences, images, teacher = tokens(10), unit_rows(10, seed=1), unit_rows(10, seed=2)
    for world in range(rank + 1, most + 1):
        model = Texts(dropout=0.0)
        head = torch.nn.Linear(
            WIDTH, WIDTH, bias=False, dtype=torch.float64
        )  # an image's linear map: used before the gathering
        lonely, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
        whole = model.loss(normalize(head(images), dim=1), model(sentences), teacher)
        whole.backward()
        plain, plain_head, head.weight.grad = model.gradients(), head.weight.grad, None
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{world}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
        own = slice(*[round(10 * edge / world) for edge in (rank, rank + 1)])  # three processes: 3, 4 and 3
        for encode in (plainly, contrast.cached):
            if rank == world - 1:
                lonely.sum().backward()
            texts = contrast.gather(encode(model, sentences[own].split(2)))
            loss = model.loss(
                contrast.gather(normalize(head(images[own]), dim=1)), texts, contrast.gather(teacher[own])
            )
            loss.backward()
            contrast.average_gradients([*model.parameters(), head.weight, lonely, frozen])
            assert_equal(
                {"loss": loss, **model.gradients(), "head": head.weight.grad},
                {"loss": whole, **plain, "head": plain_head},
                1e-12,
            )
            assert torch.allclose(lonely.grad, torch.full((2,), 1 / world))
            lonely.grad = head.weight.grad = None
        assert contrast.gather(torch.arange(10)[own]).tolist() == [*range(10)]
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_together_give_one_process_loss_and_gradients(tmp_path):
    in_processes(process, 3, 3, str(tmp_path))
