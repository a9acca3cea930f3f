"""How a question is put to a model, and what the model should say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from efficientllava.data.conversations import CONVERSATIONS, IMAGE_TOKEN
from efficientllava.data.questions import Question
from efficientllava.errors import UserError


def question_prompt(
    question: Question, image_token: str = IMAGE_TOKEN, processor: Any = None
) -> str:
    """The prompt of a question; the answer follows it (see `join_answer`).

    Args:
        image_token: what stands for an image in a prompt of the model's family.
        processor: whose chat template is used, where it has one.
    """
    text = format_prompt(question.question, question.choices, question.hint)
    return chat_prompt(processor, text, None if question.image is None else image_token)


def chat_prompt(processor: Any, message: str, image_token: str | None) -> str:
    """Everything the model reads before its answer to a user's message.

    It is what `apply_chat_template` gives for one user turn with the answer's opening: of the
    processor, which is handed the image as a part of the message; or, where only the tokenizer has
    a template, of the tokenizer, with the image token on a line in front. Without a template the
    model reads the message as it is, the image token in front.

    Args:
        image_token: what stands for the image; None without an image.

    Raises:
        UserError: the template refuses the message.
    """
    plain = message if image_token is None else f"{image_token}\n{message}"
    tokenizer = getattr(processor, "tokenizer", None)
    content: Any
    if getattr(processor, "chat_template", None):
        image = [] if image_token is None else [{"type": "image"}]
        writer, content = processor, [*image, {"type": "text", "text": message}]
    elif getattr(tokenizer, "chat_template", None):
        writer, content = tokenizer, plain
    else:
        return plain
    try:
        prompt: str = writer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    except (ValueError, TypeError, ImportError, TemplateError) as error:
        raise UserError(
            f"the chat template refuses a user's message: {str(error).strip()}",
            where="the checkpoint's chat_template",
            remedy="mend the template, or set evaluation.chat_template to none",
        ) from error
    return prompt


def processor_settings(
    processor: Any, prompt: str, image: Any, tensors: str = "pt"
) -> dict[str, Any]:
    """What a processor is given beside one text; one sample needs no padding, nor a pad token.

    Args:
        image: a PIL image, or None.
        tensors: "pt" or "np".
    """
    return {
        "images": None if image is None else [image],
        "padding": False,
        "return_tensors": tensors,
        **special_tokens(processor, prompt),
    }


def special_tokens(processor: Any, prompt: str) -> dict[str, bool]:
    """No special tokens beside those that a chat template wrote, as `apply_chat_template` encodes.

    A processor's template is known by the token that begins a text; a tokenizer's own template
    writes all of them.
    """
    begin = getattr(processor.tokenizer, "bos_token", None)
    whole = getattr(processor, "writes_special_tokens", False)
    return {"add_special_tokens": False} if whole or begin and prompt.startswith(begin) else {}


def choose_template(processor: Any, name: str, image_token: str, where: str) -> None:
    """Let a processor ask with one of its templates, with another, or without any; in place.

    Args:
        name: `evaluation.chat_template`: "auto" leaves the usual template, where there is one,
            "none" takes all away, another value names one of its own
            (additional_chat_templates/) or of `CONVERSATIONS`.
        where: of the processor, for messages.

    Raises:
        UserError: there is no template of that name.
    """
    tokenizer = processor.tokenizer
    known: dict[str, str] = {}
    for each in (tokenizer, processor):
        templates = getattr(each, "chat_template", None)
        if isinstance(templates, dict):
            known |= templates
            if name == "auto":
                each.chat_template = templates.get("default")
    if name == "auto":
        return
    known |= {key: text.jinja(image_token) for key, text in CONVERSATIONS.items()}
    if name != "none" and name not in known:
        raise UserError(
            f"no chat template {name!r} (there are: auto, none, {', '.join(sorted(known))})",
            where=f"params.yaml, evaluation.chat_template, for {where}",
        )
    for each in (tokenizer, processor):
        if hasattr(each, "chat_template"):
            each.chat_template = None
    if name in CONVERSATIONS and hasattr(processor, "chat_template"):
        processor.chat_template = known[name]
    elif name != "none":
        owner = processor if hasattr(processor, "chat_template") else tokenizer
        owner.chat_template = known[name]


def asks_as_vicuna(processor: Any) -> bool:
    """Whether a processor has no template, or one that asks as Vicuna does (USER, ASSISTANT).

    The hub's LLaVA-1.5 has such a one, without the system sentence of the official scripts.
    """
    if not any(
        getattr(each, "chat_template", None)
        for each in (processor, getattr(processor, "tokenizer", None))
    ):
        return True
    prompt = chat_prompt(processor, "w", None).rstrip()
    return "USER:" in prompt and prompt.endswith("ASSISTANT:")


def join_answer(prompt: str, answer: str) -> str:
    """The answer behind its prompt, after a space where the prompt does not end in white space."""
    return f"{prompt}{answer}" if prompt[-1:].isspace() else f"{prompt} {answer}"


def answer_text(question: Question) -> str:
    """The right choice."""
    return question.choices[question.answer]


def format_prompt(question: str, choices: Sequence[str], hint: str) -> str:
    """Context, options and question; parts without content are left out.

    The question comes last, beside its answer: a tiny model learns that order much faster.
    """
    parts = [f"Context: {hint}"] if hint else []
    if choices:
        parts.append(f"Options: {', '.join(choices)}.")
    parts.append(f"Question: {question}")
    return " ".join(parts)
