"""Trains the bridge: the demo's vision tower, then the projector before a frozen language model.

The projector is trained twice. First every image token learns the embedding of one word of a
caption ("red", "circle"), which takes no pass through the language model. Then it learns through
the frozen language model, in bfloat16, to have picture questions of the training split answered.
"""

from __future__ import annotations

import copy
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from efficientllava.data.prompts import chat_prompt, format_prompt, join_answer
from efficientllava.demo.model import IMAGE_TOKENS
from efficientllava.demo.pretrained.language_model import IMAGE_TOKEN
from efficientllava.demo.pretrained.llava import bridge_of, load_bridge
from efficientllava.demo.questions.generator import PICTURE_GROUNDS, draw_item
from efficientllava.demo.questions.items import Item
from efficientllava.demo.questions.pictures import Picture
from efficientllava.demo.sequences import picture_tensor
from efficientllava.demo.training import (
    all_image_features,
    standardise_projector,
    train_vision_tower,
    training_picture,
)
from efficientllava.files import load_tensors, read_json, save_tensors, value_digest, write_json
from efficientllava.progress import Event, Progress

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_KEEP_EVERY = 10
_ALIKE = 8  # batches whose prompts are sorted by length


@dataclass(frozen=True)
class BridgeRecipe:
    """How long each part is trained; the learning rate belongs to AdamW.

    Attributes:
        vision_steps: steps of the vision tower (batches of 128 pictures).
        pictures, ridge: image tokens towards words; the ridge is a share of the mean diagonal.
        steps, batch, rate: through the language model.
    """

    seed: int = 0
    vision_steps: int = 150
    pictures: int = 2000
    ridge: float = 1e-4
    steps: int = 60
    batch: int = 16
    rate: float = 1e-3


def train_bridge(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    recipe: BridgeRecipe,
    work: Path,
    progress: Progress,
) -> None:
    """Train vision tower and projector of `model` in place; the language model stays as it is.

    Unfinished training lies in `work` and is continued; the outcome is the same.
    """
    folder = work / f"bridge-{value_digest(asdict(recipe))[:16]}"
    if not (folder / "words.safetensors").is_file():
        torch.manual_seed(recipe.seed)
        _draw_again(model)
        train_vision_tower(model, recipe.vision_steps, recipe.seed, progress)
        _learn_words(model, processor, recipe, progress)
        save_tensors(folder / "words.safetensors", bridge_of(model))
    load_bridge(model, folder / "words.safetensors")
    _learn_answers(model, processor, recipe, folder, progress)
    model.requires_grad_(True)


@torch.no_grad()
def _draw_again(model: LlavaForConditionalGeneration) -> None:
    """Every weight of the bridge from torch's generator, whatever stood there before."""
    for name, weight in bridge_of(model).items():
        if name.endswith("bias"):
            weight.zero_()
        elif "norm" in name:
            weight.fill_(1.0)
        else:
            weight.normal_(std=0.02)


# --- image tokens towards words ---------------------------------------------------------------


@torch.no_grad()
def _learn_words(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    recipe: BridgeRecipe,
    progress: Progress,
) -> None:
    """Fit the projector's second layer by ridge regression; the first one stays as it is drawn."""
    draw = random.Random(f"words {recipe.seed}")
    pictures = [training_picture(draw) for _ in range(recipe.pictures)]
    features = all_image_features(model, picture_tensor(pictures))
    words = _Words(model, processor)
    wanted = torch.stack([words.tokens(picture) for picture in pictures])
    standardise_projector(model, features)
    projector = model.model.multi_modal_projector
    hidden = projector.act(projector.linear_1(features.flatten(0, 1))).double()
    inputs = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
    gram = inputs.T @ inputs
    gram.diagonal().add_(recipe.ridge * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, inputs.T @ wanted.flatten(0, 1).double()).float()
    projector.linear_2.weight.copy_(solved[:-1].T)
    projector.linear_2.bias.copy_(solved[-1])
    missed = (projector(features) - wanted).pow(2).mean() / wanted.flatten(0, 1).var(dim=0).mean()
    progress(Event("words", 1, 1, {"unexplained": round(missed.item(), 4)}))


class _Words:
    """The word that every image token stands for, as its embedding.

    A cell of a scene is two by two tokens: its colour and its shape, twice.
    """

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self._embeddings = model.model.language_model.embed_tokens.weight.detach()
        self._tokenizer, self._known = processor.tokenizer, dict[str, Tensor]()
        side = round(IMAGE_TOKENS**0.5)
        self._cells = [
            row // (side // 2) * 2 + column // (side // 2)
            for row in range(side)
            for column in range(side)
        ]

    def _word(self, word: str) -> Tensor:
        if word not in self._known:
            tokens = self._tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            self._known[word] = self._embeddings[tokens].mean(dim=0)
        return self._known[word]

    def tokens(self, picture: Picture) -> Tensor:
        """[image tokens, width]."""
        words = [_word_of(picture, cell, token % 2) for token, cell in enumerate(self._cells)]
        return torch.stack([self._word(word) for word in words])


def _word_of(picture: Picture, cell: int, place: int) -> str:
    """What the left (0) or right (1) token of a cell says."""
    if picture.digit is not None:
        return NUMBERS[picture.digit]
    if place == 0:
        return picture.colours[cell] or "nothing"
    return picture.shapes[cell] or ("country" if picture.colours[cell] else "nothing")


# --- answers through the frozen language model ------------------------------------------------


def _learn_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    recipe: BridgeRecipe,
    folder: Path,
    progress: Progress,
) -> None:
    model.requires_grad_(False)
    frozen = copy.deepcopy(model.model.language_model).to(torch.bfloat16)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    optimiser = torch.optim.AdamW(projector.parameters(), weight_decay=0.0)
    draw = random.Random(f"answers {recipe.seed}")
    batches = _batches(draw, recipe, processor)
    done = _continue(folder, projector, optimiser)
    for step in range(done, recipe.steps):
        _rate(optimiser, recipe.rate, step, recipe.steps)
        loss = _answer_loss(model, processor, frozen, batches[step])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % _KEEP_EVERY == 0 or step + 1 == recipe.steps:
            _keep(folder, projector, optimiser, step + 1)
        progress(Event("answer step", step + 1, recipe.steps, {"loss": round(loss.item(), 4)}))


def _batches(
    draw: random.Random, recipe: BridgeRecipe, processor: LlavaProcessor
) -> list[list[Item]]:
    """All batches, each of prompts of about the same length: padding takes as long as tokens."""
    batches: list[list[Item]] = []
    while len(batches) < recipe.steps:
        items = [draw_item(draw, "train", PICTURE_GROUNDS) for _ in range(_ALIKE * recipe.batch)]
        items.sort(key=lambda item: len(_tokens(processor, item)[0]))
        some = [items[i : i + recipe.batch] for i in range(0, len(items), recipe.batch)]
        draw.shuffle(some)
        batches += some
    return batches[: recipe.steps]


def _answer_loss(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    frozen: Any,
    items: list[Item],
) -> Tensor:
    """Mean negative log-likelihood of the answers' first tokens, over the whole vocabulary."""
    pictures = [item.picture for item in items if item.picture is not None]
    features = all_image_features(model, picture_tensor(pictures))
    projected = model.model.multi_modal_projector(features).to(torch.bfloat16)
    rows, answers = zip(*(_tokens(processor, item) for item in items), strict=True)
    longest = max(map(len, rows))
    # padded on the right: causal attention never looks there
    ids = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows])
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    embedded = frozen.embed_tokens(ids).masked_scatter((ids == image)[..., None], projected)
    states = frozen(inputs_embeds=embedded, use_cache=False).last_hidden_state
    last = states[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
    logits = (last @ frozen.embed_tokens.weight.T).float()
    return F.cross_entropy(logits, torch.tensor(answers))


def _tokens(processor: LlavaProcessor, item: Item) -> tuple[list[int], int]:
    """The prompt's tokens, the image's among them, and the first one of the answer."""
    message = format_prompt(item.question, item.choices, item.hint)
    prompt = chat_prompt(processor, message, IMAGE_TOKEN)
    expanded = prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * IMAGE_TOKENS)
    ids = processor.tokenizer([expanded, join_answer(expanded, item.answer)])["input_ids"]
    return ids[0], ids[1][len(ids[0])]


# --- both -------------------------------------------------------------------------------------


def _rate(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Ten steps of warm-up, constant, linear decay over the second half."""
    factor = min(1.0, (step + 1) / 10) * max(0.03, min(1.0, 2 * (1 - step / steps)))
    for group in optimiser.param_groups:
        group["lr"] = peak * factor


def _keep(folder: Path, projector: nn.Module, optimiser: torch.optim.Optimizer, done: int) -> None:
    tensors = {f"weight.{name}": weight for name, weight in projector.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"state.{number}.{name}": value for name, value in state.items()}
    save_tensors(folder / f"answers-{done}.safetensors", tensors)
    write_json(folder / "answers.json", {"done": done})
    (folder / f"answers-{done - _KEEP_EVERY}.safetensors").unlink(missing_ok=True)


def _continue(folder: Path, projector: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Take up what an earlier run kept; the number of steps that are done."""
    if not (folder / "answers.json").is_file():
        return 0
    done = int(read_json(folder / "answers.json")["done"])
    tensors = load_tensors(folder / f"answers-{done}.safetensors")
    prefix = "weight."
    projector.load_state_dict(
        {name.removeprefix(prefix): w for name, w in tensors.items() if name.startswith(prefix)}
    )
    state = optimiser.state_dict()
    for name, value in tensors.items():
        if name.startswith("state."):
            _, number, key = name.split(".")
            state["state"].setdefault(int(number), {})[key] = value
    optimiser.load_state_dict(state)
    return done
