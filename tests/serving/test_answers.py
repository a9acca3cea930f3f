"""Over HTTP, with OpenAI's client, a checkpoint answers exactly as it does in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from efficientllava.commands.ask import checkpoint_reply
from efficientllava.data.prompts import conversation_prompt
from efficientllava.models.folder_kind import checkpoint_in
from tests.serving.conftest import Served, data_url, noise, picture_of_size, running

QUESTIONS = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10")
LONGEST = 230


@pytest.fixture(scope="module", params=["pruned", "packed"])
def case(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Iterator[Any]:
    with running(checkpoint_in(checkpoints[request.param])) as served:
        yield served, checkpoints[request.param]


@pytest.fixture(scope="module")
def served(checkpoints: dict[str, Path]) -> Iterator[Served]:
    with running(checkpoints["pruned"], waiting=1) as server:
        yield server


def user(text: str, picture: Path | None) -> list[Any]:
    image = (
        {"type": "image_url", "image_url": {"url": data_url(picture.read_bytes())}}
        if picture
        else None
    )
    return [
        {"role": "user", "content": [{"type": "text", "text": text}, *([image] if image else [])]}
    ]


def ask(served: Served, messages: list[Any], **settings: Any) -> Any:
    return served.client().chat.completions.create(model="tiny", messages=messages, **settings)


def test_answers_are_those_of_this_process(case: Any, picture: Path) -> None:
    served, folder = case
    answers = set()
    for question in QUESTIONS:
        for image in (picture, None):
            expected = checkpoint_reply(folder, image, question, False, 9, 1)
            answer = ask(served, user(question, image), max_tokens=9)
            assert answer.choices[0].message.content == expected
            stream = ask(served, user(question, image), max_completion_tokens=9, stream=True)
            pieces = [chunk.choices[0].delta.content for chunk in stream]
            assert "".join(piece or "" for piece in pieces) == expected
            assert len([piece for piece in pieces if piece]) > 1
            answers.add(expected)
    assert len(answers) == 2 * len(QUESTIONS)


def test_an_answer_says_how_it_ended(served: Served, picture: Path) -> None:
    whole = ask(served, user("w1", picture), max_tokens=6)
    assert whole.choices[0].finish_reason == "length"
    # 16 image tokens, one line and one word
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (17, 6)
    words = whole.choices[0].message.content.split()
    place = next(n for n in range(5, 0, -1) if words[n] not in " ".join(words[:n]))
    before = " ".join(words[:place])
    cut = ask(served, user("w1", picture), max_tokens=6, stop=[words[place]])
    assert cut.choices[0].message.content == before
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens < 6
    stream = ask(
        served,
        user("w1", picture),
        max_tokens=6,
        stop=words[place],
        stream=True,
        stream_options={"include_usage": True},
    )
    *pieces, last = stream
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == before
    assert last.usage.completion_tokens < 6 and not last.choices
    assert len(ask(served, user("w1", picture)).choices[0].message.content.split()) == 16


def test_sampling_follows_its_seed(served: Served) -> None:
    def sampled(seed: int, temperature: float = 1.0) -> str:
        settings = {"max_tokens": 20, "temperature": temperature, "seed": seed}
        return str(ask(served, user("w1", None), **settings).choices[0].message.content)

    assert sampled(1) == sampled(1) != sampled(2)
    assert sampled(1, 0.0) == sampled(2, 0.0)


def test_models_and_states(served: Served) -> None:
    assert [model.id for model in served.client().models.list()] == ["tiny"]
    assert served.client().models.retrieve("tiny").object == "model"
    assert httpx.get(f"{served.address}/health").status_code == 200
    assert httpx.get(f"{served.address}/ready").json() == {"status": "ready", "waiting": 0}
    served.engine.ready.clear()
    try:
        assert httpx.get(f"{served.address}/ready").status_code == 503
        with pytest.raises(openai.InternalServerError, match="loading the model"):
            ask(served, user("w1", None))
    finally:
        served.engine.ready.set()


def test_one_at_a_time_and_a_bounded_queue(served: Served) -> None:
    """One is answered and one waits; the others are refused, and may try again."""

    def one(_: int) -> str:
        try:
            reply = ask(served, user("w1", None), max_tokens=LONGEST)
            return str(reply.choices[0].message.content)
        except openai.RateLimitError as error:
            assert error.response.headers["retry-after"] == "1"
            assert "1 wait already" in str(error) and error.code == "queue_full"
            return "refused"

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(6)))
    assert "refused" in answers and len(set(answers) - {"refused"}) == 1
    assert len(answers) - answers.count("refused") >= 2
    patient = served.client().with_options(max_retries=10)
    with ThreadPoolExecutor(4) as pool:
        replies = pool.map(
            lambda _: patient.chat.completions.create(
                model="tiny", messages=user("w1", None), max_tokens=40
            ),
            range(4),
        )
        assert len({reply.choices[0].message.content for reply in replies}) == 1


def test_an_answer_ends_when_nobody_waits(served: Served) -> None:
    stream = ask(served, user("w1", None), max_tokens=LONGEST, stream=True)
    next(iter(stream))
    stream.close()
    # else it would be the second that waits: the first is answered to its end
    assert ask(served, user("w1", None), max_tokens=2).usage.completion_tokens == 2


IMAGE_ERRORS = {
    "a fetched one": ("http://127.0.0.1:1/p.png", "only data URLs"),
    "a file": ("file:///etc/passwd", "only data URLs"),
    "no base64": ("data:image/png,abc", "only data URLs"),
    "bad base64": ("data:image/png;base64,a?", "a broken image"),
    "no image": (data_url(b"abc"), "not an image in one of these formats"),
    "a program's": (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not an image in one of these"),
    "half an image": (data_url(noise()[:-500]), "broken image"),
    "a bomb": (data_url(picture_of_size(10_000, 5_001)), "50,010,000 pixels"),
    "a larger bomb": (data_url(picture_of_size(20_000, 20_000)), "image_too_large|exceeds limit"),
}


@pytest.mark.parametrize("kind", IMAGE_ERRORS)
def test_images_that_cannot_be_used(served: Served, kind: str) -> None:
    url, words = IMAGE_ERRORS[kind]
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "w1"}]
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(served, [{"role": "user", "content": content}])
    assert caught.value.param == "messages.0.content.0.image_url.url"


BAD = {
    "another model": ({"model": "other"}, openai.NotFoundError, "there is 'tiny'"),
    "no message": ({"messages": []}, openai.BadRequestError, "messages: "),
    "a role": ({"messages": [{"role": "tool", "content": ""}]}, openai.BadRequestError, "role: "),
    "two answers": ({"n": 2}, openai.BadRequestError, "n: "),
    "tools": ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools: "),
    "JSON": (
        {"response_format": {"type": "json_object"}},
        openai.BadRequestError,
        "response_format.type: ",
    ),
    "unknown": ({"extra_body": {"top_q": 1}}, openai.BadRequestError, "top_q: .*not know"),
    "too long": ({"max_tokens": 300}, openai.BadRequestError, "reads and writes 256 tokens"),
    "a long prompt": (
        {"messages": [{"role": "user", "content": "w1 " * 300}]},
        openai.BadRequestError,
        "the messages have 300",
    ),
    "an image token": (
        {"messages": [{"role": "user", "content": "<image> w1"}]},
        openai.BadRequestError,
        "the processor refuses the prompt",
    ),
    "two turns without a template": (
        {"messages": [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]},
        openai.BadRequestError,
        "no chat template",
    ),
    "large": (
        {"messages": [{"role": "user", "content": "w" * 2_000_000}]},
        openai.APIStatusError,
        "more than 1,000,000 bytes",
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_bad_requests(served: Served, kind: str, stream: bool) -> None:
    """Also of a stream: the status is that of the error, not of a stream that then breaks."""
    changes, error, words = BAD[kind]
    settings: Any = {"messages": user("w1", None), "model": "tiny", **changes}
    with pytest.raises(error, match=words):
        served.client().chat.completions.create(**settings, stream=stream)


def test_a_browser_s_pages_are_kept_out(served: Served) -> None:
    """A page cannot declare JSON unasked, nor let its own name lead here."""
    url = f"{served.address}/v1/chat/completions"
    assert httpx.post(url, content=b"{}").status_code == 415
    assert httpx.get(f"{served.address}/v1/models", headers={"Host": "evil.org"}).status_code == 400
    body = httpx.post(url, content=b"{", headers={"Content-Type": "application/json"}).json()
    assert body["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{served.address}/nowhere").json()["error"]["message"].startswith("Not Found")


def test_a_key(checkpoints: dict[str, Path]) -> None:
    with running(checkpoints["pruned"], key="right") as server:
        assert server.client("right").models.list()
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").chat.completions.create(model="tiny", messages=user("w1", None))
        assert httpx.get(f"{server.address}/ready").status_code == 200


def test_turns_reach_the_template_whole() -> None:
    """Parts stay in their order, and a system turn before them."""

    class Processor:
        chat_template = "given"

        def apply_chat_template(self, turns: list[Any], **settings: Any) -> str:
            return repr(
                [(turn["role"], [part["type"] for part in turn["content"]]) for turn in turns]
            )

    turns = [
        {"role": "system", "content": [{"type": "text", "text": "w1"}]},
        {"role": "user", "content": [{"type": "text", "text": "w2"}, {"type": "image"}]},
    ]
    prompt = conversation_prompt(Processor(), turns, "<image>")
    assert prompt == "[('system', ['text']), ('user', ['text', 'image'])]"
