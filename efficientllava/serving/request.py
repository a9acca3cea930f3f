"""A chat-completions request: the fields that this server answers, and what it makes of them.

A field that would change the answer and is not known here is an error; fields for bookkeeping
(`user`, `metadata`, ...) are taken and not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientllava.serving.pictures import picture_of
from efficientllava.serving.refusal import Refusal

Zero = Annotated[float, Field(ge=0, le=0)]


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _ImageUrl(BaseModel):
    url: str
    detail: str | None = None


class _ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: _ImageUrl


Part = Annotated[_TextPart | _ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn. Fields of other protocols' answers may be there, but empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    tool_calls: None = None
    function_call: None = None


class _TextFormat(BaseModel):
    type: Literal["text"]


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = Field(None, max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # taken where they change nothing
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logprobs: Literal[False] | None = None
    response_format: _TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    user: str | None = None
    metadata: Any = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def new_tokens(self) -> int | None:
        """The longest answer that is asked for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


@dataclass(frozen=True)
class Conversation:
    """The turns as a chat template takes them, and the picture that belongs to them."""

    turns: list[dict[str, Any]]
    image: Image.Image | None


def parse_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        Refusal: it is no JSON, or a field is wrong or asks for what this server does not do.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    said = problem["msg"]
    if problem["type"] == "extra_forbidden":
        said = "this server does not know this parameter"
    raise Refusal(f"{place}: {said}" if place else said, param=place or None, code="invalid_value")


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """The turns of a request, its picture decoded.

    Raises:
        Refusal: a picture cannot be used, is not in a user's message, or is one of several.
    """
    turns: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        parts = message.content
        content: list[dict[str, Any]] = []
        if isinstance(parts, str):
            content, parts = [{"type": "text", "text": parts}], []
        for index, part in enumerate(parts):
            place = f"messages.{number}.content.{index}"
            if isinstance(part, _TextPart):
                content.append({"type": "text", "text": part.text})
                continue
            if role != "user":
                raise Refusal(f"{place}: only a user's message holds an image", param=place)
            if images:
                raise Refusal(f"{place}: this server takes one image a request", param=place)
            images.append(picture_of(part.image_url.url, f"{place}.image_url.url"))
            content.append({"type": "image"})
        turns.append({"role": role, "content": content})
    if turns[-1]["role"] != "user":
        raise Refusal("the last message must be a user's", param="messages", code="invalid_value")
    return Conversation(turns, images[0] if images else None)
