"""Training at scale equals training: in chunks and tiles, in several processes, killed and resumed, from a
stream.
"""

import csv
import io
import os
import socket
import tarfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from standins import COLOURS, in_processes, mostly_slow, paint
from torch import nn

from wordsight import train as loop
from wordsight.backbones import pick_device
from wordsight.backbones.text_tower import TextTower
from wordsight.batches import FeatureBatches, PairBatches
from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.fit import fit
from wordsight.methods import two_tower
from wordsight.methods.two_tower import TwoTower, tower_settings
from wordsight.reader import read
from wordsight.runs import Run
from wordsight.tower_settings import TwoTowerSettings
from wordsight.train import train

LITTLE = {"wrapper": "a {}.", "prompts": 3, "rank": 2, "heads": 2, "max_tokens": 40}
LOOP = {"max_steps": 5, "batch_size": 6, "warmup_steps": 2, "lr": 1e-2, "log_steps": 1, "save_seconds": 0}
TEXTS = [
    "red",
    "a wall in blue",
    "green paint.",
    "yellow",
    "a purple wall that is long",
    "x",
    "blue",
    "red and green",
    "a b c",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Fifteen images with captions, two of each colour with two."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [["path", "split", "caption_1", "caption_2"]]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(3):
            paint(colour, 100 * number + index).save(folder / f"{name}{index}.png")
            rows.append(
                [f"{name}{index}.png", "train", f"{name} paint", f"a wall in {name} {index}" if index else ""]
            )
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def settings(data, eyes, lm, out, changed=None, **own):
    given = {
        "data": str(data),
        "backbone": str(eyes),
        "method": "two_tower",
        "template": "{}",
        "out": str(out),
        "device": "cpu",
    }
    return read(
        RunSettings,
        given,
        {"settings": {"text": str(lm), **LITTLE, **own}, "train": {**LOOP, **(changed or {})}},
    )


def tensors_of(folder):
    files = sorted(Path(folder).rglob("*.safetensors"))
    return {
        f"{path.relative_to(folder)}/{name}": tensor
        for path in files
        for name, tensor in load_file(path).items()
    }


def losses(run):
    return {
        event["step"]: {name: event[name] for name in event.keys() - {"event", "epoch"}}
        for event in run.events("train")
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# -- in parts ------------------------------------------------------------------------------------------------


def learner(lm, *, dtype="float32", **own):
    """A real TwoTower on the tiny Llama, with nothing of its LoRA or queries at zero."""
    given = read(TwoTowerSettings, {"text": str(lm), "tau_d": 10.0, **LITTLE, **own})
    torch.manual_seed(0)
    made = TwoTower(
        TextTower.from_base(lm, tower_settings(given, 12), dtype=dtype), given, 0.1 * torch.randn(12)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad and parameter.ndim:
                parameter += 0.1 * torch.randn_like(parameter)
    return made.train()


def batch_for(method, dtype=torch.float64, taught=True):
    tokens, stream = method.text.tokenise(TEXTS), torch.Generator().manual_seed(1)

    def draw(rows, width):
        return nn.functional.normalize(torch.randn(rows, width, generator=stream, dtype=dtype), dim=1)

    text_of = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 3])  # captions that images share
    teacher = (
        {"teacher_images": draw(len(text_of), 9), "teacher_texts": draw(len(TEXTS), 9)} if taught else {}
    )
    return {
        "images": draw(len(text_of), 12),
        "ids": tokens.ids,
        "lengths": tokens.lengths,
        "text_of": text_of,
        **teacher,
    }


def measured(method, batch):
    torch.manual_seed(5)
    terms = method.loss(batch)
    sum(terms.values()).backward()
    return {
        **terms,
        **{name: parameter.grad for name, parameter in method.named_parameters() if parameter.requires_grad},
    }


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("checkpointing", mostly_slow((False, True), True), ids=["", "checkpointing"])
def test_chunks_and_tiles_give_the_plain_loss_and_every_gradient(lm, monkeypatch, loss, checkpointing):
    monkeypatch.setattr(two_tower, "PART", 2)  # so that dropout falls the same
    own = {"loss": loss, "dropout": 0.5}
    plain = measured(method := learner(lm, **own).double(), batch_for(method))
    assert (
        plain["text.prompts"].abs().max() > 0 and len(plain) > 20 and {loss, "distillation"} <= plain.keys()
    )
    assert not torch.equal(
        measured(again := learner(lm, **own | {"dropout": 0.0}).double(), batch_for(again))[loss], plain[loss]
    )
    for tiled in (False, True):
        monkeypatch.setattr(two_tower, "TILED_DISTILLED", 1 if tiled else 4096)
        cached = learner(lm, chunk=2, checkpointing=checkpointing, **own).double()
        near(measured(cached, batch_for(cached)), plain, 1e-10)


def test_what_only_training_needs_is_off_at_its_end(lm):
    from wordsight.backbones.readonly import checkpoints

    method = learner(lm, checkpointing=True)
    assert checkpoints(method.text.trunk)
    method.finish()
    assert not checkpoints(method.text.trunk)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_compiling_does_not_change_loss_and_gradients(lm, monkeypatch):
    """By dynamo alone, in a second or two: inductor takes half a minute here; with it, too, this held
    (benchmarks/clamp).
    """
    compiled, real = [], nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, **given: (compiled.append(given), real(self, backend="eager", **given)),
    )
    method, other = (learner(lm, compile=on, chunk=4, dropout=0.0) for on in (True, False))
    for made in (method, other):
        del made.text.trunk.layers[1:]  # each layer costs dynamo seconds
    plain = measured(other, batch_for(other, torch.float32))
    near(measured(method, batch_for(method, torch.float32)), plain, 1e-4)
    assert compiled == [{"dynamic": True}]
    method.finish()
    assert method.text.trunk._compiled_call_impl is None


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"dropout": 0.1}, "lora"),
        ({"train": "prompts"}, "prompts"),
        ({"train": "layernorms", "front": 2, "keep_generation": False}, "norm"),
    ],
    ids=["lora", "prompts", "layernorms"],
)
def test_in_bfloat16_what_is_trained_and_the_loss_stay_float32(lm, own, named):
    method = learner(lm, dtype="bfloat16", chunk=2, **own)
    found = measured(method, batch_for(method, torch.float32))
    assert method.text.trunk.embed_tokens.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in found.values()} == {torch.float32} and any(
        named in name and gradient.abs().max() > 0 for name, gradient in found.items()
    )
    assert method.encode_text(batch_for(method)).dtype == torch.float32


# -- in several processes ------------------------------------------------------------------------------------


def pairs_for(method, rank, world):
    stream = torch.Generator().manual_seed(2)
    images = nn.functional.normalize(torch.randn(9, 1, 12, generator=stream, dtype=torch.float64), dim=-1)
    teacher = nn.functional.normalize(torch.randn(18, 7, generator=stream, dtype=torch.float64), dim=1).split(
        9
    )
    tokens = method.text.tokenise(TEXTS)
    each = [ids[:length] for ids, length in zip(tokens.ids, tokens.lengths.tolist())]
    taught = {"teacher_images": teacher[0][:, None]}, {"teacher_texts": teacher[1]}
    return PairBatches(
        images, [[row, (row + 1) % 9] for row in range(9)], each, 6, 1, *taught, rank=rank, world=world
    )


def killed_at(monkeypatch, count):
    real, calls = PairBatches.batch, []

    def batch(self, epoch, index):
        calls.append((epoch, index))
        if len(calls) == count:
            raise MemoryError("as good as a kill")
        return real(self, epoch, index)

    monkeypatch.setattr(PairBatches, "batch", batch)
    return calls


SHARED = {"prompts": {"train": "prompts"}, "again": {"checkpointing": True, "chunk": None}}


def process(rank, folder, data, eyes, lm):
    """One of up to three processes. What rank 0 leaves in `folder` is compared afterwards."""
    torch.set_num_threads(1)
    for world in range(rank + 1, 4):
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{world}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
        for loss in ("contrastive", "sigmoid"):
            method = learner(lm, dropout=0.0, chunk=2, loss=loss).double()
            with torch.no_grad():
                method.text.prompts += rank  # all begin with rank 0's
            short = TrainSettings(max_steps=2, schedule="step", clip_norm=1.0, optimizer="sgd", lr=0.1)
            train(method, pairs_for(method, rank, world), short, seed=1)
            if rank == 0:
                save_file(
                    {name: p.detach() for name, p in method.named_parameters() if p.requires_grad},
                    f"{folder}/{loss}-{world}.safetensors",
                )
        asked = [data, eyes, lm, f"{folder}/fit-{world}", {"optimizer": "sgd"}]
        own = {"dropout": 0.0, "chunk": 2, "teacher": eyes}
        assert fit(settings(*asked, **own)).finished
        for name, more in {1: SHARED, 2: SHARED, 3: {"fit": {}}}[world].items():
            asked[3] = f"{folder}/{name}-{world}{'-shared' if world > 1 else ''}"
            assert fit(settings(*asked, **own | more, shard=world > 1)).finished
        if world == 2:
            asked[3] = f"{folder}/killed"
            with pytest.MonkeyPatch.context() as patch:
                killed_at(patch, 4)
                with pytest.raises(MemoryError):
                    fit(settings(*asked, **own))
            fit(settings(*asked, **own))
        if world == 3:
            method = learner(lm)
            layer = method.text.trunk.layers[0]
            held = sum(parameter.numel() for parameter in layer.parameters() if not parameter.requires_grad)
            method.share_out()
            here = sum(
                parameter.to_local().numel()
                for parameter in layer.parameters()
                if not parameter.requires_grad
            )
            assert 0 < here < held / 2
            with pytest.raises(
                WordsightError,
                match=r"a batch of 8 pairs cannot be shared out evenly among 3 processes; give "
                r"train.batch_size=6",
            ):
                fit(settings(data, eyes, lm, f"{folder}/uneven", {"batch_size": 8}))
            with pytest.raises(
                WordsightError, match="labelled images are trained on in one process, not in 3"
            ):
                train(
                    method,
                    FeatureBatches(torch.zeros(4, 1, 12), torch.zeros(4).long(), 2, 1),
                    TrainSettings(),
                    seed=1,
                )
            with pytest.raises(
                WordsightError,
                match="one process would go on from step 0, another from step 2; the run folder must lie on "
                "a disk",
            ):
                loop._agree(method, 2 if rank == 1 else 0, torch.device("cpu"))
        dist.destroy_process_group()


@pytest.mark.slow
def test_one_two_and_three_processes_train_the_same_and_resume(tmp_path, table, tiny_clip, lm):
    in_processes(process, 3, *map(str, (tmp_path, table, tiny_clip, lm)))
    for loss in ("contrastive", "sigmoid"):
        one, *others = (load_file(tmp_path / f"{loss}-{world}.safetensors") for world in (1, 2, 3))
        for other in others:
            near(other, one, 1e-8)  # float64, but for transformers' norms, which round to float32
    one, *others = (Run.open(tmp_path / f"fit-{world}") for world in (1, 2, 3))
    for world, other in enumerate(others, 2):
        near(tensors_of(other.folder), tensors_of(one.folder), 1e-5)
        found, expected = losses(other), losses(one)
        assert (
            found.keys() == {1, 2, 3, 4, 5}
            and len(other.events("train")) == 5
            and other.events("fit")[0]["processes"] == world
        )
        for step, terms in found.items():
            assert terms == pytest.approx(expected[step], abs=1e-4) and "distillation" in terms
    for name, world in (
        *((name, 2) for name in SHARED),
        ("fit", 3),
    ):  # whose frozen weights were shared out
        near(tensors_of(tmp_path / f"{name}-{world}-shared"), tensors_of(tmp_path / f"{name}-1"), 1e-5)
    resumed = Run.open(tmp_path / "killed")
    assert same(tensors_of(others[0].folder), tensors_of(resumed.folder)) and losses(others[0]) == losses(
        resumed
    )


def test_texts_beyond_a_window_are_not_shared_out(lm):
    method = learner(lm)
    method.text.trunk.config.sliding_window = 20
    with pytest.raises(
        WordsightError,
        match=r"within the LM's window of 20 tokens, prompts included; give settings.max_tokens=17",
    ):
        method.share_out()


def test_the_parts_of_a_batch_are_the_batch(lm):
    method = learner(lm)
    whole = pairs_for(method, 0, 1)
    for world in (2, 3):
        for place in ((0, 0), (3, 0)):
            parts = [pairs_for(method, rank, world).batch(*place) for rank in range(world)]
            assert torch.equal(torch.cat([part["images"] for part in parts]), whole.batch(*place)["images"])
            said = [
                [part["ids"][row, : part["lengths"][row]].tolist() for row in part["text_of"]]
                for part in (*parts, whole.batch(*place))
            ]
            assert [text for part in said[:-1] for text in part] == said[-1]
    with pytest.raises(
        WordsightError,
        match="a batch of 6 pairs cannot be shared out evenly among 8 processes; start 6 at most",
    ):
        pairs_for(method, 0, 8)


# -- killed and resumed --------------------------------------------------------------------------------------


TIED = {"random": True, "shape": {"tie_word_embeddings": True}, "train": "all", "keep_generation": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [{"dropout": 0.5}, TIED, {"start": "ridge", "teacher": "start"}],
    ids=["clamp", "lit-tied", "own-start"],
)
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_with_the_same_losses(
    table, tiny_clip, lm, tmp_path, monkeypatch, own
):
    own = {"chunk": 2, "teacher": str(tiny_clip), **own}
    unbroken = fit(settings(table, tiny_clip, lm, tmp_path / "one", **own))
    with monkeypatch.context() as patch:
        calls = killed_at(patch, 4)
        with pytest.raises(MemoryError):
            fit(settings(table, tiny_clip, lm, tmp_path / "two", **own))
        resumed = fit(settings(table, tiny_clip, lm, tmp_path / "two", **own))
    assert calls == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (2, 0)]
    assert losses(resumed) == losses(unbroken) and losses(unbroken).keys() == {1, 2, 3, 4, 5}
    assert same(tensors_of(unbroken.folder), tensors_of(resumed.folder))


@pytest.mark.slow
def test_a_run_whose_pairs_have_changed_is_not_resumed(table, tiny_clip, lm, tmp_path):
    lines = (table / "captions.csv").read_text().splitlines()
    for row in lines[1:]:
        (tmp_path / row.split(",")[0]).write_bytes((table / row.split(",")[0]).read_bytes())
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    run = fit(settings(tmp_path, tiny_clip, lm, tmp_path / "run"))
    for changed, count in (
        (lines[:-1], "14 images with 23 captions"),
        ([*lines[:-1], lines[-1].replace("wall", "hall")], "15 images with 25 captions"),
    ):
        (tmp_path / "captions.csv").write_text("\n".join(changed))
        with pytest.raises(
            WordsightError,
            match=f"holds another run: pairs are '15 images with 25 captions, .* there and '{count}, .* "
            f"here. Give an",
        ):
            fit(settings(tmp_path, tiny_clip, lm, run.folder))
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    assert fit(settings(tmp_path, tiny_clip, lm, run.folder)).finished


# -- on a CUDA device ----------------------------------------------------------------------------------------


def fit_on(device, *asked, dtype="float32", **own):
    return fit(replace(settings(*asked, **own), device=device, dtype=dtype))


@pytest.mark.gpu
def test_on_a_card_training_is_that_of_the_cpu_and_resumes(card, table, tiny_clip, lm, tmp_path, monkeypatch):
    own = {"chunk": 2, "teacher": str(tiny_clip), "start": "ridge"}
    here, there = (
        fit_on(device, table, tiny_clip, lm, tmp_path / device, {"optimizer": "sgd"}, dropout=0.0, **own)
        for device in ("cpu", card)
    )
    near(tensors_of(there.folder), tensors_of(here.folder), 1e-2)
    for step, terms in losses(there).items():
        assert terms == pytest.approx(losses(here)[step], abs=1e-2)
    unbroken = fit_on(card, table, tiny_clip, lm, tmp_path / "one", dropout=0.5, **own)
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(MemoryError):
            fit_on(card, table, tiny_clip, lm, tmp_path / "two", dropout=0.5, **own)
        resumed = fit_on(card, table, tiny_clip, lm, tmp_path / "two", dropout=0.5, **own)
    assert losses(resumed).keys() == losses(unbroken).keys() == {1, 2, 3, 4, 5}
    for step, terms in losses(resumed).items():
        assert terms == pytest.approx(losses(unbroken)[step], abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "own",
    [{"chunk": 2}, {"train": "layernorms", "front": 2, "prompts": 0, "pooling": "last", "chunk": 2}],
    ids=["clamp", "ln-prefix"],
)
def test_on_a_card_bfloat16_trains_nearly_as_float32(card, table, tiny_clip, lm, tmp_path, own):
    own = {"dropout": 0.0, "keep_generation": "train" not in own} | own
    changed = {"optimizer": "sgd", "lr": 1e-2}
    full, half = (
        fit_on(card, table, tiny_clip, lm, tmp_path / dtype, changed, dtype=dtype, **own)
        for dtype in ("float32", "bfloat16")
    )
    assert {tensor.dtype for tensor in tensors_of(half.folder / "text").values()} == {torch.float32}
    for step, terms in losses(half).items():
        assert terms == pytest.approx(losses(full)[step], abs=0.1)


def process_on_a_card(rank, card, folder, data, eyes, lm, own_cards, port):
    """One of two: each on its card, by NCCL, as a launcher starts them; or both on one card, by gloo."""
    torch.set_num_threads(1)
    if own_cards:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    else:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    own = {"dropout": 0.0, "chunk": 2, "teacher": eyes}
    assert fit_on(card, data, eyes, lm, f"{folder}/two", {"optimizer": "sgd"}, **own).finished
    assert not own_cards or pick_device(card).index == rank
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("own_cards", [False, True], ids=["one-card", "two-cards"])
def test_two_processes_on_cards_train_as_one(card, table, tiny_clip, lm, tmp_path, own_cards):
    if own_cards and torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device only")
    places = [str(place) for place in (table, tiny_clip, lm)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {"dropout": 0.0, "chunk": 2, "teacher": places[1]}
    one = fit_on(card, *places, tmp_path / "one", {"optimizer": "sgd"}, **own)
    in_processes(process_on_a_card, 2, card, str(tmp_path), *places, own_cards, port)
    near(tensors_of(tmp_path / "two"), tensors_of(one.folder), 1e-3)
    assert Run.open(tmp_path / "two").events("fit")[0]["processes"] == 2


# -- from a stream -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Two shards of six captioned images each."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for index, (name, colour) in enumerate([*COLOURS.items(), ("red", COLOURS["red"])]):
                buffer = io.BytesIO()
                paint(colour, 10 * shard + index).save(buffer, "PNG")
                for suffix, content in (
                    ("png", buffer.getvalue()),
                    ("txt", f"{name} paint {shard}".encode()),
                ):
                    info = tarfile.TarInfo(f"{index}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({"chunk": 2}, marks=pytest.mark.slow),
        {"prompts": 0, "pooling": "mean", "train": "head", "features": "store"},
    ],
    ids=["clamp", "head-store"],
)
def test_a_stream_trains_and_resumes_to_the_same_bits(tars, table, tiny_clip, lm, tmp_path, monkeypatch, own):
    from wordsight.data.stream import StreamBatches

    data, own = f"{tars}::{table}", {"weights": "0.6,0.4", "teacher": str(tiny_clip), **own}
    unbroken = fit(settings(data, tiny_clip, lm, tmp_path / "one", **own))
    real, calls = StreamBatches.batch, []

    def batch(self, epoch, index):
        calls.append(index)
        if len(calls) == 5:
            raise MemoryError
        return real(self, epoch, index)

    with monkeypatch.context() as patch:
        patch.setattr(StreamBatches, "batch", batch)
        with pytest.raises(MemoryError):
            fit(settings(data, tiny_clip, lm, tmp_path / "two", **own))
        resumed = fit(settings(data, tiny_clip, lm, tmp_path / "two", **own))
    assert losses(unbroken).keys() == {1, 2, 3, 4, 5}
    assert same(tensors_of(unbroken.folder), tensors_of(resumed.folder)) and losses(resumed) == losses(
        unbroken
    )
    assert resumed.events("fit")[0]["images"] == 30


@pytest.mark.slow
def test_a_stream_gives_the_mean_image_and_a_table_may_be_streamed(
    table, tiny_clip, lm, tmp_path, monkeypatch
):
    monkeypatch.setattr("wordsight.data.stream.MEAN_OF", 12)
    run = fit(
        settings(
            table,
            tiny_clip,
            lm,
            tmp_path / "run",
            {"max_steps": None, "min_steps": 0, "epochs": 2},
            features="stream",
            centre=True,
        )
    )
    assert load_file(run.folder / "weights.safetensors")["image_mean"].abs().sum() > 0
    assert losses(run).keys() == {1, 2, 3, 4}  # fifteen images in sixes, twice


@pytest.mark.parametrize(
    "data, own, changed, says",
    [
        ("tars", {}, {"max_steps": None}, "nobody knows how many samples .* train.max_steps=10000"),
        ("tars", {"start": "ridge"}, {}, "settings.start=ridge reads all captions first"),
        ("both", {"weights": "0.6,0.6"}, {}, "add up to 1.2; they must add up to 1"),
        ("table", {}, {"max_steps": 0}, "train.max_steps=0 is not possible; it is 1 or more"),
        (
            "table",
            {"prompt_only_lora": True, "compile": True},
            {},
            "settings.prompt_only_lora runs texts without gradient",
        ),
        (
            "table",
            {"train": "all", "keep_generation": False, "shard": True},
            {},
            "shares out frozen weights; settings.train=all leaves none",
        ),
        (
            "table",
            {"train": "head", "shard": True},
            {},
            "with settings.train=head the LM does not run while it trains",
        ),
        ("table", {"compile": True, "shard": True}, {}, "settings.compile is untested with it; set it false"),
    ],
)
def test_what_cannot_be_trained_on_is_answered_in_words(
    tars, table, tiny_clip, lm, tmp_path, data, own, changed, says
):
    places = {"tars": str(tars), "table": str(table), "both": f"{tars}::{table}"}
    with pytest.raises(WordsightError, match=says):
        fit(settings(places[data], tiny_clip, lm, tmp_path / "run", changed, **own))
