"""How a question is put to a model, and what the model should say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    It is what `apply_chat_template` gives for one user turn with the answer's opening
    (`conversation_prompt`). Without a template the model reads the message as it is, the image
    token on a line in front.

    Args:
        image_token: what stands for the image; None without an image.

    Raises:
        UserError: the template refuses the message.
    """
    image = [] if image_token is None else [{"type": "image"}]
    turn = {"role": "user", "content": [*image, {"type": "text", "text": message}]}
    return conversation_prompt(processor, [turn], image_token or "")


def conversation_prompt(
    processor: Any, turns: Sequence[Mapping[str, Any]], image_token: str
) -> str:
    """Everything the model reads before its answer to the last of several turns.

    The processor's template is handed images as parts of a turn, in their place. Where only the
    tokenizer has a template, image tokens stand on lines in front of the turn's text.

    Args:
        turns: {"role": system, user or assistant, "content": a list of {"type": "image"} and
            {"type": "text", "text": ...}}.
        image_token: what stands for an image.

    Raises:
        UserError: the template refuses the turns, or there is no template and more than one turn.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    plain = [{**turn, "content": _plain(turn["content"], image_token)} for turn in turns]
    messages: Sequence[Mapping[str, Any]]
    if getattr(processor, "chat_template", None):
        writer, messages = processor, turns
    elif getattr(tokenizer, "chat_template", None):
        writer, messages = tokenizer, plain
    elif [turn["role"] for turn in turns] == ["user"]:
        return str(plain[0]["content"])
    else:
        raise UserError(
            "the checkpoint has no chat template, so that it takes one user's message and no other",
            where="messages",
            remedy="put all of it into one message of the role user",
        )
    try:
        prompt: str = writer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
    except (ValueError, TypeError, ImportError, TemplateError) as error:
        raise UserError(
            f"the chat template refuses a user's message: {str(error).strip()}",
            where="the checkpoint's chat_template",
            remedy="mend the template, or set evaluation.chat_template to none",
        ) from error
    return prompt


def _plain(content: Sequence[Mapping[str, Any]], image_token: str) -> str:
    images = [image_token for part in content if part["type"] == "image"]
    return "\n".join([*images, *(part["text"] for part in content if part["type"] == "text")])


def processor_settings(
    processor: Any, prompt: str, image: Any, tensors: str = "pt"
) -> dict[str, Any]:
    """What a processor is given beside one text; one sample needs no padding, nor a pad token.

    Args:
        image: a PIL image, a list of those that the text names in this order, or None.
        tensors: "pt" or "np".
    """
    return {
        "images": [image] if image is not None and not isinstance(image, list) else image,
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
