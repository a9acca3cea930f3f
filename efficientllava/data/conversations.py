"""The prompts that LLaVA was trained with, and what stands for an image in them."""

from __future__ import annotations

from dataclasses import dataclass

TEMPLATES = "additional_chat_templates/*.jinja"
"""A checkpoint's chat templates beside the usual one, by name."""
IMAGE_TOKEN = "<image>"
_SYSTEM = (
    "A chat between a curious {person} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
)
_CONTENT = (
    "{{% if content is string %}}{{{{ content }}}}{{% else %}}{{% for part in content %}}"
    "{{% if part.type == 'image' %}}{{{{ {image} }}}}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}"
)
"""A user's message in Jinja: text, or parts, of which an image is `image`."""

_ONE_TURN = (
    "{% if messages | length > 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('it takes one message of the user and no other') }}{% endif %}"
)


@dataclass(frozen=True)
class Conversation:
    """The text around a question, as LLaVA was trained with it (llava/conversation.py).

    A system sentence stands before the first turn; two roles; single spaces between.
    """

    system: str

    def prompt(self, message: str) -> str:
        """Everything the model reads before its first answer; the tokenizer adds BOS."""
        return f"{self.system} USER: {message} ASSISTANT:"

    def jinja(self, image_token: str) -> str:
        """The same as a chat template for one turn, the image on a line in front of the text.

        It refuses further turns.
        """
        content = _CONTENT.format(image=repr(f"{image_token}\n"))
        return f"{_ONE_TURN}{{% set content = messages[0].content %}}{self.prompt(content)}"


CONVERSATIONS = {
    "vicuna_v1": Conversation(_SYSTEM.format(person="user")),
    "llava_v1": Conversation(_SYSTEM.format(person="human")),
}
