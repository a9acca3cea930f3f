"""The texts around a question, as LLaVA was trained with them (llava/conversation.py)."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_TOKEN = "<image>"
_SYSTEM = (
    "A chat between a curious {person} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
)


@dataclass(frozen=True)
class Conversation:
    """A system sentence before the first turn; two roles; single spaces between."""

    system: str

    def prompt(self, message: str) -> str:
        """What the model reads before its first answer; the tokenizer adds BOS."""
        return f"{self.system} USER: {message} ASSISTANT:"


CONVERSATIONS = {
    "vicuna_v1": Conversation(_SYSTEM.format(person="user")),
    "llava_v1": Conversation(_SYSTEM.format(person="human")),
}


def with_image(text: str, has_image: bool) -> str:
    """The user's message: the image token on a line of its own in front."""
    return f"{IMAGE_TOKEN}\n{text}" if has_image else text
