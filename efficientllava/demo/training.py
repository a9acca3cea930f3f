"""The two training loops of the demo model: the vision tower, then projector and decoder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from efficientllava.demo.head_loss import weighted_loss
from efficientllava.demo.muon import StackedMuon
from efficientllava.demo.questions.items import split_of
from efficientllava.demo.questions.pictures import (
    COLOURS,
    SHAPES,
    Picture,
    draw_digit,
    draw_map,
    draw_scene,
)
from efficientllava.demo.sequences import (
    ANSWER,
    IGNORED,
    PROMPT,
    TEXT,
    Conversations,
    picture_tensor,
)
from efficientllava.progress import Event, Progress

PIXEL_MEAN, PIXEL_STD = 0.25, 0.30
_UNLABELLED = -100
_REPORT_EVERY = 25


def normalise(pixels: Tensor) -> Tensor:
    """uint8 pixels -> the vision tower's input, as the processor makes it."""
    return (pixels.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """uint8 [n, 3, height, width] -> what the projector receives, [n, image tokens, width]."""
    states = model.model.vision_tower(normalise(pixels), output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer][:, 1:]


@torch.no_grad()
def all_image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Features of all pictures [n, tokens, width], batch by batch."""
    parts = [image_features(model, part) for part in pixels.split(512)]
    return torch.cat(parts) if parts else torch.zeros(0)


# --- optimisers -------------------------------------------------------------------------------


class Schedule:
    """Warm-up, constant, then linear decay of the learning rates of several optimisers."""

    def __init__(
        self, optimisers: list[torch.optim.Optimizer], steps: int, warm_up: int, decay: float
    ) -> None:
        self.optimisers, self.steps, self.warm_up, self.decay = optimisers, steps, warm_up, decay
        self.peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]

    def step(self, done: int, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """One step down the loss, the norm of its gradient clipped at 1."""
        left = 1 - done / self.steps
        factor = min(1.0, (done + 1) / self.warm_up) * min(1.0, max(0.02, left / self.decay))
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()


def _optimisers(
    matrices: list[nn.Parameter], others: list[nn.Parameter], muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    return [
        StackedMuon(matrices, lr=muon_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.95)),
    ]


def _block_matrices(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices inside its blocks, all other parameters that are trained)."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = parameter.ndim == 2 and "layers." in name
            (matrices if inside else others).append(parameter)
    return matrices, others


# --- vision tower -----------------------------------------------------------------------------


class _PictureHeads(nn.Module):
    """Small classifiers on the tower's features; thrown away after training.

    Every image token learns the shape, the colour and the position of the whole cell that it
    lies in: the decoder then finds all of an object in any one token.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, 1 + len(SHAPES))
        self.colour = nn.Linear(width, 1 + len(COLOURS))
        self.cell = nn.Linear(width, 4)
        self.digit = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))
        row = torch.arange(side).repeat_interleave(side)
        column = torch.arange(side).repeat(side)
        self.cell_of_token = row // (side // 2) * 2 + column // (side // 2)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """features [n, tokens, width]; labels [n, 9] = four shapes, four colours, the digit."""
        cells = self.cell_of_token
        terms = (
            (self.shape(features), labels[:, :4][:, cells]),
            (self.colour(features), labels[:, 4:8][:, cells]),
            (self.cell(features), cells.expand(len(features), -1)),
            (self.digit(features.mean(dim=1)), labels[:, 8]),
        )
        losses = [
            F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=_UNLABELLED)
            for logits, target in terms
            if bool((target != _UNLABELLED).any())
        ]
        return torch.stack(losses).sum()


def train_vision_tower(
    model: LlavaForConditionalGeneration, steps: int, seed: int, progress: Progress
) -> None:
    """Teach the tower what the training split's pictures show."""
    pool, batch = min(6000, 128 * steps), 128
    draw = random.Random(f"pictures {seed}")
    pictures = [training_picture(draw) for _ in range(pool)]
    pixels, labels = picture_tensor(pictures), torch.tensor([*map(_labels, pictures)])
    vision = model.config.vision_config
    heads = _PictureHeads(vision.hidden_size, vision.image_size // vision.patch_size)
    matrices, others = _block_matrices(model.model.vision_tower)
    others += list(heads.parameters())
    schedule = Schedule(_optimisers(matrices, others, 0.02, 2e-3), steps, warm_up=20, decay=0.5)
    batches = _batches(pool, batch, seed)
    for step in range(steps):
        chosen = next(batches)
        loss = heads.loss(image_features(model, pixels[chosen]), labels[chosen])
        schedule.step(step, loss, matrices + others)
        _report(progress, "vision step", step, steps, loss=loss.item())


def training_picture(draw: random.Random) -> Picture:
    """A picture of the training split, of any kind."""
    while True:
        picture = draw.choices((draw_scene, draw_digit, draw_map), (3, 6, 1))[0](draw)
        if split_of(picture.key) == "train":
            return picture


def _labels(picture: Picture) -> list[int]:
    """Four shapes, four colours (0 where a cell is empty), the digit."""
    unlabelled = [_UNLABELLED] * 4
    shapes, colours = unlabelled, unlabelled
    if picture.kind == "scene":
        shapes = [0 if shape is None else 1 + SHAPES.index(shape) for shape in picture.shapes]
    if picture.kind in ("scene", "map"):
        names = list(COLOURS)
        colours = [0 if name is None else 1 + names.index(name) for name in picture.colours]
    digit = _UNLABELLED if picture.digit is None else picture.digit
    return [*shapes, *colours, digit]


# --- projector and decoder --------------------------------------------------------------------


@torch.no_grad()
def standardise_projector(model: LlavaForConditionalGeneration, features: Tensor) -> None:
    """Fresh projector weights that first bring every feature to mean 0 and deviation 1."""
    flat = features[:1000].flatten(0, 1)
    mean, deviation = flat.mean(dim=0), flat.std(dim=0) + 1e-3
    first = model.model.multi_modal_projector.linear_1
    second = model.model.multi_modal_projector.linear_2
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight.div_(deviation)
    first.bias.copy_(-(first.weight @ mean))
    nn.init.normal_(second.weight, std=0.05)


@dataclass(frozen=True)
class DecoderRecipe:
    """Settings that train the decoder fast, found by trial.

    Attributes:
        prompt_share: share of the prompts' tokens, drawn at every step, whose loss is taken: the
            mean over them estimates the mean over all. Nine of ten tokens are the prompts', and a
            loss takes logits over the whole vocabulary, which cost as much as a decoder block.
        text_batch: windows of ordinary text in a step, each as long as a conversation: they go
            through the decoder in the same pass.
    """

    steps: int
    batch_size: int
    seed: int
    muon_rate: float = 0.01
    adam_rate: float = 5e-3
    warm_up: int = 40
    decay: float = 0.4
    prompt_weight: float = 0.1
    prompt_share: float = 0.5
    text_weight: float = 0.1
    text_batch: int = 4


def train_decoder(
    model: LlavaForConditionalGeneration,
    conversations: Conversations,
    text: Tensor,
    recipe: DecoderRecipe,
    progress: Progress,
) -> None:
    """Train projector and decoder; the vision tower stays as it is.

    Args:
        text: [tokens], ordinary text of which every step sees a few windows.
    """
    model.model.vision_tower.requires_grad_(False)
    features = all_image_features(model, conversations.pixels)
    if len(features):
        standardise_projector(model, features)
    matrices, others = _block_matrices(model)
    schedule = Schedule(
        _optimisers(matrices, others, recipe.muon_rate, recipe.adam_rate),
        recipe.steps,
        recipe.warm_up,
        recipe.decay,
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    batches = _batches(len(conversations.ids), recipe.batch_size, recipe.seed)
    window = torch.arange(conversations.ids.shape[1])
    for step in range(recipe.steps):
        rows = next(batches)
        drawn = torch.rand(conversations.ids[rows, 1:].shape, generator=generator)
        starts = torch.randint(
            0, len(text) - len(window), (recipe.text_batch,), generator=generator
        )
        total, answer_loss, text_loss = _losses(
            model,
            _Batch(
                conversations.ids[rows],
                conversations.roles[rows],
                features[conversations.picture[rows][conversations.picture[rows] >= 0]],
                text[starts[:, None] + window],
                drawn < recipe.prompt_share,
            ),
            recipe,
        )
        schedule.step(step, total, matrices + others)
        _report(
            progress, "training step", step, recipe.steps,
            answer_loss=answer_loss, text_loss=text_loss,
        )  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """Conversations and ordinary text that go through the decoder together.

    Attributes:
        ids, roles: [conversations, length], as in `Conversations`.
        features: of the pictures of those that have one.
        text: [windows, length].
        chosen: [conversations, length - 1] bool: the tokens, but the first, whose loss is taken
            where they are a prompt's.
    """

    ids: Tensor
    roles: Tensor
    features: Tensor
    text: Tensor
    chosen: Tensor


def _losses(
    model: LlavaForConditionalGeneration, batch: _Batch, recipe: DecoderRecipe
) -> tuple[Tensor, float, float]:
    """The loss of a step, and the mean ones of answers and of ordinary text."""
    longest = int((batch.roles != IGNORED).nonzero()[:, 1].max()) + 1
    ids = torch.cat([batch.ids, batch.text])[:, :longest]
    roles = torch.cat([batch.roles, torch.full_like(batch.text, TEXT)])[:, 1:longest]
    decoder = model.model.language_model
    embedded = decoder.embed_tokens(ids)
    if len(batch.features):
        projected = model.model.multi_modal_projector(batch.features)
        image_positions = (ids == model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(image_positions, projected)
    states = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
    used = (roles == ANSWER) | (roles == TEXT)
    used[: len(batch.ids)] |= batch.chosen[:, : longest - 1] & (roles[: len(batch.ids)] == PROMPT)
    role = roles[used]
    shares = torch.tensor([0.0, recipe.prompt_weight, 1.0, recipe.text_weight])
    weights = (shares / torch.bincount(role, minlength=len(shares)).clamp(min=1))[role]
    total, losses = weighted_loss(
        states[:, :-1][used], model.lm_head.weight, ids[:, 1:][used], weights
    )
    return total, losses[role == ANSWER].mean().item(), losses[role == TEXT].mean().item()


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Random rows without end; every row once before any row twice."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: max(count // size, 1) * size].split(size)


def _report(progress: Progress, name: str, step: int, steps: int, **values: float) -> None:
    if (step + 1) % _REPORT_EVERY == 0 or step + 1 == steps:
        progress(Event(name, step + 1, steps, {key: round(v, 4) for key, v in values.items()}))
