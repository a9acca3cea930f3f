"""Choices by likelihood, against one plain forward pass for every choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from efficientllava.benchmarks.demo_questions.multiple_choice import (
    Prediction,
    answer_questions,
    scores,
)
from efficientllava.benchmarks.text_loss import perplexity, text_loss
from efficientllava.data.prompts import question_prompt
from efficientllava.data.questions import Question, read_questions
from efficientllava.demo.model import build_model, build_processor
from efficientllava.demo.questions.layout import write_questions
from efficientllava.demo.tokenizer import build_tokenizer
from efficientllava.parameters import DemoParameters
from efficientllava.progress import Event, silent

PARAMETERS = DemoParameters(
    width=32,
    mlp_width=48,
    blocks=2,
    vocabulary=2048,
    train_questions=1,
    validation_questions=1,
    test_questions=14,
)


@pytest.fixture(scope="module")
def model_and_processor() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(PARAMETERS.vocabulary)
    model = build_model(PARAMETERS, tokenizer).eval()
    with torch.no_grad():  # larger than at the start of training, so that choices differ
        for parameter in model.parameters():
            parameter.mul_(3)
    return model, build_processor(tokenizer)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """Single-token choices with and without pictures, and choices of several tokens."""
    folder = tmp_path_factory.mktemp("choice") / "questions"
    write_questions(folder, PARAMETERS, silent)
    plain = read_questions(folder, "test")
    long = [
        Question(
            id=f"long {index}",
            question="Which city is it?",
            choices=("a very large city", "Paris", "the city of Rome by the sea"),
            answer=index % 3,
            hint="",
            image=each.image,
            subject="social science",
            grade="grade9",
            split="test",
        )
        for index, each in enumerate(plain[:4])
    ]
    assert {each.image is None for each in plain} == {True, False}
    return plain[:7] + long + plain[7:]


@torch.no_grad()
def reference_likelihoods(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, question: Question
) -> list[float]:
    """Prompt and choice alone in a batch; transformers' own loss over the choice's tokens."""
    likelihoods = []
    image = question.open_image()
    images = None if image is None else [image]
    before = processor(text=[question_prompt(question)], images=images, return_tensors="pt")
    for choice in question.choices:
        text = f"{question_prompt(question)} {choice}"
        inputs = processor(text=[text], images=images, return_tensors="pt")
        labels = inputs["input_ids"].clone()
        labels[:, : before["input_ids"].shape[1]] = -100
        count = int((labels != -100).sum())
        likelihoods.append(-float(model(**inputs, labels=labels).loss) * count)
    return likelihoods


def test_predictions_equal_plain_forward_passes(
    model_and_processor: tuple[LlavaForConditionalGeneration, LlavaProcessor],
    questions: list[Question],
) -> None:
    model, processor = model_and_processor
    predictions = answer_questions(model, processor, questions, 8, silent)
    chosen = set()
    for question, prediction in zip(questions, predictions, strict=True):
        expected = reference_likelihoods(model, processor, question)
        assert prediction.id == question.id and prediction.answer == question.answer
        assert prediction.predicted == expected.index(max(expected))
        assert prediction.answer_nll == pytest.approx(-expected[question.answer], abs=2e-4)
        chosen.add(prediction.predicted)
    assert len(chosen) > 1


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_padding_change_nothing(
    model_and_processor: tuple[LlavaForConditionalGeneration, LlavaProcessor],
    questions: list[Question],
    batch_size: int,
    side: str,
) -> None:
    model, processor = model_and_processor
    events: list[Event] = []
    expected = answer_questions(model, processor, questions, 7, silent)
    usual, processor.tokenizer.padding_side = processor.tokenizer.padding_side, side
    try:
        found = answer_questions(model, processor, questions, batch_size, events.append)
    finally:
        processor.tokenizer.padding_side = usual
    assert [each.predicted for each in found] == [each.predicted for each in expected]
    nll = [each.answer_nll for each in expected]
    assert [each.answer_nll for each in found] == pytest.approx(nll, abs=1e-4)
    assert events[-1].done == events[-1].total == len(questions)


def test_scores_by_hand() -> None:
    def question(number: int, subject: str, hint: str, image: bool, grade: int) -> Question:
        return Question(
            id=str(number),
            question="?",
            choices=("a", "b"),
            answer=0,
            hint=hint,
            image=Path("x.png") if image else None,
            subject=f"{subject} science",
            grade=f"grade{grade}",
            split="test",
        )

    questions = [
        question(0, "natural", "", False, 1),
        question(1, "natural", "text", True, 6),
        question(2, "social", "text", False, 7),
        question(3, "language", "", True, 12),
    ]
    predicted = (0, 1, 0, 0)
    predictions = [
        Prediction(each.id, choice, 0, nll)
        for each, choice, nll in zip(questions, predicted, (0.5, 2.0, 1.0, 0.5), strict=True)
    ]
    found = scores(questions, predictions)
    assert found["accuracy"] == 0.75 and found["n"] == 4 and found["answer_nll"] == 1.0
    assert found["standard_error"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    accuracies = {name: (each["accuracy"], each["n"]) for name, each in found["breakdowns"].items()}
    assert accuracies == {
        "NAT": (0.5, 2),
        "SOC": (1.0, 1),
        "LAN": (1.0, 1),
        "TXT": (0.5, 2),
        "IMG": (0.5, 2),
        "NO": (1.0, 1),
        "G1-6": (0.5, 2),
        "G7-12": (1.0, 2),
    }


def test_a_class_without_questions_has_no_accuracy() -> None:
    found = scores([], [])
    assert found["breakdowns"]["IMG"] == {"accuracy": None, "standard_error": None, "n": 0}


def test_text_loss_equals_transformers_loss(
    model_and_processor: tuple[LlavaForConditionalGeneration, LlavaProcessor],
) -> None:
    model, _ = model_and_processor
    segments = torch.randint(5, 2048, (5, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = float(model(input_ids=segments, labels=segments).loss)
    for batch_size in (1, 2, 8):
        assert text_loss(model, segments, batch_size) == pytest.approx(expected, rel=1e-5)


def test_perplexity_and_its_error_are_those_of_the_segments() -> None:
    """Independent of the code: jackknife over segments."""
    losses = torch.tensor([3.1, 2.9, 3.4, 3.0, 3.2, 2.8], dtype=torch.float64)
    found = perplexity(losses)
    n = len(losses)
    assert found["perplexity"] == pytest.approx(float(losses.mean().exp()))
    left_out = [float(torch.cat([losses[:i], losses[i + 1 :]]).mean().exp()) for i in range(n)]
    mean = sum(left_out) / n
    jackknife = ((n - 1) / n * sum((value - mean) ** 2 for value in left_out)) ** 0.5
    assert found["perplexity_error"] == pytest.approx(jackknife, rel=0.02)
    assert found["text_segments"] == n
    assert perplexity(losses[:1])["perplexity_error"] is None
