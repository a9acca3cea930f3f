"""Every family answers a batch as it answers each question alone, and as transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientllava.benchmarks.generation import Asked, generate_answers, generated_tokens
from efficientllava.benchmarks.journal import Journal
from efficientllava.benchmarks.records import Record
from efficientllava.data.prompts import question_prompt
from efficientllava.data.proxy import build_pairs
from efficientllava.data.questions import Question
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
from efficientllava.models.families import FAMILIES
from efficientllava.models.likelihood import choice_likelihoods
from efficientllava.progress import silent
from tests.models.families import PICTURED, TINY
from tests.models.families.by_hand import ByHand

SIZES = [(20, 30), (40, 16), (16, 16), (30, 30), (17, 64), (33, 20)]
"""Width and height: the families cut these into different numbers of tiles."""
PLAIN = (1, 4)
"""The questions that are asked without their image, where a family takes such."""
LENGTHS = (2, 9, 1, 14, 5, 3)
NEW = 6
BATCHES = (2, 3, 6)


@dataclass
class Case:
    family: str
    model: Any
    processor: Any
    images: list[Path]

    @property
    def token(self) -> str:
        return FAMILIES[self.model.config.model_type].image_token

    @property
    def plain(self) -> tuple[int, ...]:
        if self.family not in PICTURED:
            return tuple(range(len(SIZES)))
        return () if self.model.config.model_type == "paligemma" else PLAIN

    def image(self, index: int) -> Path | None:
        return None if index in self.plain else self.images[index]

    def asked(self) -> list[Asked]:
        questions = []
        for index, length in enumerate(LENGTHS):
            text = " ".join(f"w{(7 * index + n) % 50}" for n in range(length))
            image = self.image(index)
            prompt = f"w40 w41 <image>\n{text}" if image else f"w40 w41 {text}"
            questions.append(Asked(Record(str(index), text, image), prompt))
        return questions

    def questions(self) -> list[Question]:
        """Choices of one token, and of several."""
        choices = [("w2", "w3", "w4"), ("w5 w6 w7", "w8", "w9 w10")]
        texts = [" ".join(f"w{(3 * i + n) % 50}" for n in range(k)) for i, k in enumerate(LENGTHS)]
        return [
            Question(str(i), text, choices[i % 2], i % 3, "", self.image(i), "", "grade1", "test")
            for i, text in enumerate(texts)
        ]


@pytest.fixture(scope="module", params=TINY)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    built, processor = TINY[request.param].build()
    save_checkpoint(built, processor, folder / "model")
    if not isinstance(processor, ByHand):
        processor = load_processor(folder / "model")
    generator = np.random.default_rng(0)
    images = []
    for index, (width, height) in enumerate(SIZES):
        images.append(folder / f"{index}.png")
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images[-1])
    model = load_model(folder / "model")
    return Case(request.param, model, processor, images)


def opened(path: Path | None) -> list[Image.Image] | None:
    return None if path is None else [Image.open(path).convert("RGB")]


@torch.no_grad()
def transformers_answer(case: Case, each: Asked) -> torch.Tensor:
    """The new tokens of a question alone, by transformers' processor and `generate`."""
    image = each.record.image
    assert not isinstance(image, bytes)
    prompt = each.prompt.replace("<image>", case.token)
    inputs = case.processor(text=[prompt], images=opened(image), return_tensors="pt")
    inputs.pop("labels", None)
    if case.model.config.model_type != "paligemma":
        inputs.pop("token_type_ids", None)
    ids = case.model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
    return ids[0, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def transformers_likelihoods(case: Case, question: Question) -> list[float]:
    """One plain forward pass for every choice, whose tokens do not melt with the prompt's."""
    likelihoods = []
    prompt, images = question_prompt(question, case.token), opened(question.image)
    for choice in question.choices:
        words = case.processor.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        if case.model.config.model_type == "paligemma":
            inputs = case.processor(
                text=[prompt], suffix=[choice], images=images, return_tensors="pt"
            )
            inputs.pop("labels")
            behind = 1  # the end token
        else:
            inputs = case.processor(text=[f"{prompt} {choice}"], images=images, return_tensors="pt")
            behind = 0
        ids = inputs["input_ids"][0]
        first = len(ids) - behind - len(words)
        assert ids[first : first + len(words)].tolist() == words
        logits = case.model(**inputs).logits[0].log_softmax(-1)
        likelihoods.append(sum(float(logits[first + n - 1, word]) for n, word in enumerate(words)))
    return likelihoods


@contextmanager
def padded_with(tokenizer: Any, token: str | None) -> Iterator[None]:
    usual, tokenizer.pad_token = tokenizer.pad_token, token
    try:
        yield
    finally:
        tokenizer.pad_token = usual


def assert_answers(case: Case, alone: list[torch.Tensor]) -> None:
    asked = case.asked()
    for size in BATCHES:
        for start in range(0, len(asked), size):
            rows = generated_tokens(case.model, case.processor, asked[start : start + size], NEW)
            for row, expected in zip(rows, alone[start : start + size], strict=True):
                assert torch.equal(row[: len(expected)], expected)


def test_answers_of_a_batch_are_those_of_single_questions(case: Case) -> None:
    alone = [transformers_answer(case, each) for each in case.asked()]
    assert len({tuple(row.tolist()) for row in alone}) > 2
    for each, expected in zip(case.asked(), alone, strict=True):
        assert torch.equal(generated_tokens(case.model, case.processor, [each], NEW)[0], expected)
    assert_answers(case, alone)


def test_answers_are_greedy_whatever_the_checkpoint_asks_for(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2.5-VL asks for a repetition penalty."""
    alone = [transformers_answer(case, each) for each in case.asked()]
    asked_for = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "use_cache": False}
    asked_for |= {"return_dict_in_generate": True, "num_beams": 2, "min_new_tokens": NEW}
    for name, value in asked_for.items():
        monkeypatch.setattr(case.model.generation_config, name, value)
    assert_answers(case, alone)
    assert case.model.generation_config.repetition_penalty == 3.0


def test_likelihoods_of_a_batch_are_those_of_single_questions(case: Case) -> None:
    questions = case.questions()
    expected = [transformers_likelihoods(case, each) for each in questions]
    for size in (1, *BATCHES, 64):
        found = choice_likelihoods(case.model, case.processor, questions, size, silent)
        for row, values in zip(found, expected, strict=True):
            assert row == pytest.approx(values, rel=1e-4, abs=1e-4)


def test_prompts_hold_the_image_as_the_family_writes_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2.5-VL: between <|vision_start|> and <|vision_end|>."""
    if case.family not in PICTURED:
        pytest.skip("takes no images")
    seen = []
    generate = case.model.generate

    def watched(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"])
        return generate(**inputs)

    monkeypatch.setattr(case.model, "generate", watched)
    each = case.asked()[0]
    generated_tokens(case.model, case.processor, [each], 1)
    prompt = each.prompt.replace("<image>", case.token)
    expected = case.processor(text=[prompt], images=opened(case.images[0]), return_tensors="pt")
    assert torch.equal(seen[0], expected["input_ids"])


def test_tokenizer_without_pad_token(case: Case) -> None:
    """Llama's own has none: padding is masked, whatever it is."""
    questions, model, processor = case.questions(), case.model, case.processor
    pictured = [
        replace(each, image=path) for each, path in zip(questions, case.images, strict=True)
    ]
    tokens = generated_tokens(model, processor, case.asked(), NEW)
    likelihoods = choice_likelihoods(model, processor, questions, 6, silent)
    with_pairs = case.family in PICTURED
    pairs = build_pairs(pictured, processor, len(pictured), 0, case.token) if with_pairs else None
    with padded_with(processor.tokenizer, None):
        assert processor.tokenizer.pad_token_id is None
        assert torch.equal(generated_tokens(model, processor, case.asked(), NEW), tokens)
        assert choice_likelihoods(model, processor, questions, 6, silent) == likelihoods
        if pairs is None:
            return
        same = build_pairs(pictured, processor, len(pictured), 0, case.token)
    assert torch.equal(same.labels, pairs.labels)
    read = pairs.inputs["attention_mask"].bool()
    assert torch.equal(same.inputs["input_ids"][read], pairs.inputs["input_ids"][read])
    with torch.no_grad():
        logits = [model(**each.inputs).logits[read] for each in (pairs, same)]
    assert torch.equal(*logits)


def test_padding_behind_an_answer_is_no_text(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may pad with an ordinary word."""
    word = case.processor.tokenizer("w49", add_special_tokens=False)["input_ids"][0]
    alone = [transformers_answer(case, each).tolist() for each in case.asked()]
    ends = [3, *{row[1] for row in alone[::2]}]
    monkeypatch.setattr(case.model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(case.model.generation_config, "pad_token_id", word)
    texts = [
        generate_answers(
            case.model,
            case.processor,
            case.asked(),
            size,
            NEW,
            Journal(tmp_path / str(size)),
            "m",
            silent,
        )
        for size in (1, 6)
    ]
    assert texts[0] == texts[1]


def test_question_that_a_family_does_not_take_is_told(case: Case) -> None:
    """PaliGemma takes no question without an image."""
    if case.model.config.model_type != "paligemma":
        pytest.skip("takes them")
    asked = [*case.asked()[:2], Asked(Record("plain", "w1", None), "w1")]
    with pytest.raises(UserError, match="question plain"):
        generated_tokens(case.model, case.processor, asked, 1)
    questions = [*case.questions()[:2], replace(case.questions()[2], id="plain", image=None)]
    with pytest.raises(UserError, match="question plain"):
        choice_likelihoods(case.model, case.processor, questions, 3, silent)
