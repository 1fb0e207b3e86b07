"""Two towers: a language model learns to be the text tower of a frozen image tower, from image-text pairs."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wordsight.backbones import readonly, unit
from wordsight.backbones.text_tower import TextBatch, TextTower
from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.contrast import (
    cached,
    gather,
    same_number,
    tiled_info_nce,
    tiled_pairwise_sigmoid,
    tiled_similarity_distillation,
)
from wordsight.losses import MAX_SCALE, info_nce, pairwise_sigmoid, similarity_distillation
from wordsight.methods import Embedder, Learner
from wordsight.tower_settings import TowerSettings, TwoTowerSettings, check_dtype

START = {"contrastive": math.log(1 / 0.07), "sigmoid": math.log(10)}  # log of the scale: CLIP's and SigLIP's
SIGMOID_BIAS = -10.0
RIDGE = 3.0
TILED, TILED_DISTILLED = (
    8192,
    4096,
)  # pairs from which losses in tiles pay, without and with distillation (measured); they are equal
PART = 64  # texts that pass through the LM together on a CPU, whose caches want small pieces


class TwoTower(Embedder, Learner):
    """A language model learns to say in vectors what a frozen image tower sees: images and texts meet in one
    space, and the LM still writes.

    CLAMP (Teterwak et al. 2023), eqs. 6-10: the contrastive loss with a learned scale, both directions
    summed, plus distillation of a stronger model's similarities. As in the paper, image vectors are the
    frozen tower's. Differs from the paper: the temperature of distillation is the teacher's own scale, a
    guess (tau_d); with `centre` image vectors lose their mean; with `start=ridge` the projection starts at a
    closed-form map, where a few hundred steps get nowhere from a random one. LiT, LN-prefix, LoRA alone, a
    frozen LM with an MLP on top and full tuning are settings of it (configs/)."""

    Settings: ClassVar[type] = TwoTowerSettings
    fits: ClassVar[str] = "wordsight.fit_pairs:fit_pairs"
    image_mean: Tensor
    training_defaults = TrainSettings(
        epochs=10,
        batch_size=256,
        lr=5e-4,
        weight_decay=0.5,
        clip_norm=1.0,
        schedule="step",
        warmup_steps=20,
        save_seconds=60,
    )  # for thousands of pairs; the paper's, for millions, are in clamp-vicuna13b

    shared_out = False  # whether the LM's frozen weights are

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        super().check(settings)
        check_dtype(settings.settings, settings.dtype)

    def __init__(
        self, text: TextTower, settings: TwoTowerSettings, image_mean: Float[Tensor, " D"] | None = None
    ):
        super().__init__()
        self.text, self.settings = text, settings
        self.log_scale = nn.Parameter(torch.tensor(START[settings.loss], device=text.device))
        self.bias = (
            nn.Parameter(torch.tensor(SIGMOID_BIAS, device=text.device))
            if settings.loss == "sigmoid"
            else None
        )
        mean = torch.zeros(text.dim) if image_mean is None else image_mean
        self.register_buffer("image_mean", mean.to(text.device, torch.float32))
        if settings.checkpointing:
            _checkpoint(text, True)
        if settings.compile:
            text.trunk.compile(dynamic=True)  # in place: names of tensors stay

    def share_out(self) -> None:
        """Leave in each process a part of the LM's frozen weights: a layer's are gathered when it runs and
        let go behind it (FSDP2).

        What is trained stays whole in every process, so gradients, clipping and saving are as without. There
        is no way back: train, and make another. Errors: WordsightError where texts may be longer than the
        LM's sliding window."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from transformers.modeling_layers import GradientCheckpointingLayer

        sees, longest = (
            readonly.window(self.text.trunk.config),
            self.text.max_tokens + self.text.settings.prompts,
        )
        if (
            sees is not None and sees < longest
        ):  # such texts take two passes, and processes would wait for one another's
            raise WordsightError(
                f"settings.shard needs texts within the LM's window of {sees} tokens, prompts included; "
                f"give settings.max_tokens={sees - self.text.settings.prompts}"
            )
        trunk, trained = (
            self.text.trunk,
            {parameter for parameter in self.parameters() if parameter.requires_grad},
        )
        mesh = init_device_mesh(self.text.device.type, (torch.distributed.get_world_size(),))
        for layer in [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
        fully_shard(
            trunk, mesh=mesh, ignored_params=set(trunk.parameters())
        )  # which lets one layer be gathered while another runs
        self.shared_out = True

    @property
    def logit_scale(self) -> float:
        return min(self.log_scale.exp().item(), MAX_SCALE)

    @property
    def condition(self) -> str:
        return f"the scale is {self.logit_scale:.4g}, of at most {MAX_SCALE:g}"

    @property
    def at_bound(self) -> bool:
        return self.log_scale.item() >= math.log(MAX_SCALE)

    def finish(self) -> None:
        """The LM as it was: what only training needed is off."""
        if self.settings.checkpointing:
            _checkpoint(self.text, False)
        if self.settings.compile:
            self.text.trunk._compiled_call_impl = None  # torch has no public way back

    @property
    def learns_head_alone(self) -> bool:
        """Whether pooled states of a text never change in training, so that they are computed once (SAIL,
        ShareLock).
        """
        return self.settings.train == "head" and self.text.pool is None

    def encode_text(self, batch: dict[str, Tensor]) -> Float[Tensor, "M D"]:
        """Unit vectors of a batch's distinct captions, with gradient."""
        if "pooled" in batch:
            return unit(self.text.head(batch["pooled"]))
        ids, lengths, chunk = batch["ids"], batch["lengths"], self.settings.chunk
        order = lengths.argsort(descending=True)  # like lengths together: little padding
        size = chunk or (PART if ids.device.type == "cpu" else len(ids))
        rows = same_number(order, size) if self.shared_out else order.split(size)
        parts = [TextBatch(ids[some, : int(lengths[some].max())], lengths[some]) for some in rows]
        vectors = (
            cached(self.text, parts, devices=[self.text.device])
            if chunk
            else torch.cat([self.text(part) for part in parts])
        )
        return vectors[: len(order)][order.argsort()]

    @torch.no_grad()
    def start_at_ridge(self, states: Float[Tensor, "N V"], images: Float[Tensor, "N D"]) -> None:
        """Set the projection to the ridge map from pooled states of captions to the vectors of their images.
        Both without their means, since nine tenths of an LM's states are the same for all texts. In float64
        and on the CPU, since not every device has it, with lambda in units of the states' mean square, as
        `wordsight join` has it for unit vectors."""
        inputs, projection = self.text.head[:-1](states).cpu().double(), self.text.head[-1]
        targets = unit(images - self.image_mean).cpu().double()
        assert isinstance(projection, nn.Linear)
        centres = inputs.mean(0), targets.mean(0)
        inputs, targets = inputs - centres[0], targets - centres[1]
        penalty = RIDGE * inputs.square().sum(1).mean() * torch.eye(inputs.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)
        projection.weight.copy_(solved.T.to(projection.weight))
        projection.bias.copy_((centres[1] - centres[0] @ solved).to(projection.bias))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """For a batch of `PairBatches`: contrastive or sigmoid, and distillation where there is a teacher. Of
        the whole batch, in every process of several.
        """
        text_of, taught = batch["text_of"], "teacher_texts" in batch
        images, texts = (
            gather(unit(batch["images"] - self.image_mean)),
            gather(self.encode_text(batch)[text_of]),
        )
        tiled = len(texts) >= (TILED_DISTILLED if taught else TILED)
        if self.bias is not None:
            terms = {
                "sigmoid": (tiled_pairwise_sigmoid if tiled else pairwise_sigmoid)(
                    images, texts, self.log_scale, self.bias
                )
            }
        else:
            terms = {"contrastive": (tiled_info_nce if tiled else info_nce)(images, texts, self.log_scale)}
        if taught:
            teacher = (gather(batch["teacher_images"]), gather(batch["teacher_texts"][text_of]))
            tau_d = self.settings.tau_d
            assert tau_d is not None  # the teacher's own scale where nothing else was asked for
            if tiled:
                terms["distillation"] = tiled_similarity_distillation(images, texts, *teacher, tau_d)
            else:
                terms["distillation"] = similarity_distillation(
                    images @ texts.T, teacher[0] @ teacher[1].T, tau_d
                )
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Gains, biases and the scale are not decayed, as in CLIP."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim < 2]
        return [
            {"params": matrices, "lr_scale": 1.0},
            {"params": vectors, "lr_scale": 1.0, "weight_decay": 0.0},
        ]


def _checkpoint(text: TextTower, on: bool) -> None:
    with warnings.catch_warnings():  # transformers 5 is renaming both of these
        warnings.simplefilter("ignore", FutureWarning)
        text.plain.gradient_checkpointing_enable(
            {"use_reentrant": False}
        ) if on else text.plain.gradient_checkpointing_disable()


def tower_settings(settings: TwoTowerSettings, dim: int) -> TowerSettings:
    """The part of the settings that is the tower's, at the image tower's width."""
    if settings.dim not in (None, dim):
        raise WordsightError(
            f"settings.dim={settings.dim}, but the image tower's vectors are {dim} wide; leave it out"
        )
    shared: dict[str, Any] = {f.name: getattr(settings, f.name) for f in dataclasses.fields(TowerSettings)}
    return TowerSettings(**{**shared, "dim": dim})
