"""Prompts of the benchmarks, and messages before any question is asked."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efficientllava.benchmarks.base import full_prompt, require_images
from efficientllava.benchmarks.generation import Asked, generate_answers
from efficientllava.benchmarks.journal import Journal
from efficientllava.benchmarks.records import Record
from efficientllava.benchmarks.run import Plan, prompt_of
from efficientllava.benchmarks.scienceqa.benchmark import SCIENCEQA
from efficientllava.benchmarks.scienceqa.reading import Problem
from efficientllava.benchmarks.vizwiz.benchmark import VIZWIZ
from efficientllava.data.prompts import choose_template
from efficientllava.errors import UserError
from efficientllava.models.likelihood import choice_likelihoods
from efficientllava.progress import Event, announce_if_long
from tests.data.test_chat_templates import chats
from tests.models.families import TINY

PROBLEM = Problem("7", "<image>\nWhy?\nA. yes\nB. no", Path("7.png"), 2, 0, False, True)
SUFFIX = "Answer with the option's letter from the given choices directly."
MESSAGE = f"Why?\nA. yes\nB. no\n{SUFFIX}"
VICUNA = (
    "{{ 'USER: ' }}{% for part in messages[0].content %}{% if part.type == 'image' %}"
    "{{ '<image>\n' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ ' ASSISTANT:' }}"
)


def model_of(name: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(model_type=name))


def plan(template: str = "auto", style: str = "llava_v1_5") -> Plan:
    return Plan(SCIENCEQA, "here", style=style, chat_template=template)


@pytest.mark.parametrize("style", ["llava_v1_5", "llava_sqa"])
@pytest.mark.parametrize("template", [None, VICUNA])
def test_llava_keeps_its_official_prompts(template: str | None, style: str) -> None:
    """Also beside the hub's template, which has no system sentence."""
    processor = TINY["llava"].processor()
    processor.chat_template = template
    told = prompt_of(model_of("llava"), processor, plan(style=style), PROBLEM)
    assert told == full_prompt(SCIENCEQA, PROBLEM, style)
    person = "human" if style == "llava_sqa" else "user"
    assert told.startswith(f"A chat between a curious {person} and an artificial")
    assert told.endswith(" ASSISTANT:") and " USER: <image>\nWhy?" in told


def test_others_are_asked_with_their_own_template() -> None:
    processor, token = chats("qwen2_vl")
    told = prompt_of(model_of("qwen2_vl"), processor, plan(), PROBLEM)
    parts = [{"type": "image"}, {"type": "text", "text": MESSAGE}]
    turns = [{"role": "user", "content": parts}]
    assert told == processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert token in told and "<image>" not in told
    plain = replace(PROBLEM, text="Why?\nA. yes\nB. no", image=None, has_image=False)
    told = prompt_of(model_of("qwen2_vl"), processor, plan(), plain)
    assert token not in told and MESSAGE in told


def test_a_llava_with_a_template_of_its_own_is_asked_with_it() -> None:
    processor, _ = chats("llava")
    told = prompt_of(model_of("llava"), processor, plan(), PROBLEM)
    assert told.startswith("w40 <image>\nWhy?") and "USER" not in told


def test_without_a_template_the_message_is_bare() -> None:
    processor = TINY["paligemma"].processor()
    assert prompt_of(model_of("paligemma"), processor, plan(), PROBLEM) == f"<image>\n{MESSAGE}"
    llava = TINY["llava"].processor()
    choose_template(llava, "none", "<image>", "here")
    assert prompt_of(model_of("llava"), llava, plan("none"), PROBLEM) == f"<image>\n{MESSAGE}"


def test_a_named_template_is_taken() -> None:
    processor, _ = chats("qwen2_vl")
    token = "<|vision_start|><|image_pad|><|vision_end|>"
    choose_template(processor, "vicuna_v1", token, "here")
    told = prompt_of(model_of("qwen2_vl"), processor, plan("vicuna_v1"), PROBLEM)
    assert told == full_prompt(SCIENCEQA, PROBLEM).replace("<image>", token)


def test_questions_without_an_image_are_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record("1", "w1", Path("1.png")), Record("2", "w2", None), Record("3", "w3", None)]
    monkeypatch.setattr(type(VIZWIZ), "read", lambda self, *given: records)
    require_images(VIZWIZ, "here", None, None, 1)
    with pytest.raises(UserError, match=r"2 of 3 questions have no image \(first: 2\)"):
        require_images(VIZWIZ, "here", None, None, None)


def test_hours_are_announced_after_a_trial(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        announce_if_long(4, 8.0, 1000)
        assert not caplog.text
        announce_if_long(4, 8.0, 9000)
    assert "9000 questions are left and the first 4 took 2.0 s each: about 5.0 hours" in caplog.text


def test_progress_counts_questions(tmp_path: Path) -> None:
    """Also where a question takes a row for each of its choices."""
    from efficientllava.data.questions import Question

    model, processor = TINY["qwen2_5_vl"].build()
    texts = ["w1", "w2 w3", "w4"]
    questions = [
        Question(str(i), text, ("w5 w6", "w7", "w8"), 0, "", None, "", "grade1", "test")
        for i, text in enumerate(texts)
    ]
    seen: list[Event] = []
    choice_likelihoods(model, processor, questions, 2, seen.append)
    assert [(event.done, event.total) for event in seen] == [(0, 3), (1, 3), (2, 3), (2, 3), (3, 3)]
    seen.clear()
    asked = [Asked(Record(str(i), text, None), text) for i, text in enumerate(texts)]
    journal = Journal(tmp_path / "j")
    generate_answers(model, processor, asked, 2, 2, journal, "m", seen.append)
    assert [(event.done, event.total) for event in seen] == [(2, 3), (3, 3)]


def test_what_a_model_thinks_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = TINY["qwen2_5_vl"].build()
    monkeypatch.setattr(
        processor, "batch_decode", lambda *given, **more: ["<think>A or B</think>\n\nB", " C "]
    )
    asked = [Asked(Record(text, text, None), text) for text in ("w1", "w2")]
    journal = Journal(tmp_path / "j")
    told = generate_answers(model, processor, asked, 2, 1, journal, "m", lambda event: None)
    assert told == ["B", "C"]
