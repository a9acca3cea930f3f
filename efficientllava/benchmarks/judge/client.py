"""A judge behind an OpenAI-compatible endpoint: parallel, patient, and never asked twice.

The key comes from the environment (OPENAI_API_KEY) and goes nowhere but to the endpoint: it is
taken out of every reply, message and log (`redaction`), as is a password in the endpoint's address.
Every reply is kept on disk under the digest of its request, so that a rerun costs nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from efficientllava.benchmarks.judge.deadline import joined, within
from efficientllava.benchmarks.judge.redaction import (
    FRAGMENT,
    guard_loggers,
    secrets_of,
    shown,
    without_secrets,
)
from efficientllava.errors import UserError
from efficientllava.files import read_json, value_digest, write_json
from efficientllava.progress import Event, Progress, silent
from efficientllava.reading import checked, parse_json

KEY_VARIABLE = "OPENAI_API_KEY"
ADDRESS_VARIABLE = "OPENAI_BASE_URL"
"""Where OpenAI's client looks for an address when it is given none."""
LONGEST_WAIT = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class JudgeSettings:
    """How the judge is reached.

    Attributes:
        model: the judge's model.
        base_url: an OpenAI-compatible endpoint; None for OpenAI's own.
        parallel: requests under way at the same time.
        attempts: tries of one request before it is given up.
        timeout: seconds until a request whose reply is not whole counts as failed.
        first_wait: seconds before the second try; doubles with each further one.
    """

    model: str
    base_url: str | None = field(default=None, repr=False)
    parallel: int = 8
    attempts: int = 6
    timeout: float = 60.0
    first_wait: float = 1.0


@dataclass(frozen=True)
class Reply:
    """The judge's reply, and the model that the reply names."""

    content: str | None
    model: str


@dataclass(frozen=True)
class _Kept:
    """What is read of a reply that was kept."""

    reply: Reply


@dataclass(frozen=True)
class _Refusal:
    """An error of a server that no further try can help."""

    reason: str


def require_key() -> str:
    """The judge's key.

    Raises:
        UserError: the environment has none, or one that no request can carry.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise UserError(
            f"no API key for the judge: the environment variable {KEY_VARIABLE} is not set",
            where="judge",
            remedy=f"export {KEY_VARIABLE}=... (a local server that needs none takes any text)",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the API key in {KEY_VARIABLE} holds a line break or another character that no "
            "request can carry",
            where="judge",
            remedy=f"export {KEY_VARIABLE} again, on one line",
        )
    return key


class Judge:
    """Answers chat requests; `requests`, `retries` and `cached` count what happened."""

    def __init__(self, settings: JudgeSettings, cache: Path) -> None:
        """Prepare the cache folder; the key is looked up with the first request."""
        self.settings, self.cache = settings, Path(cache)
        self.requests = self.retries = self.cached = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._client: Any = None
        self._key = ""

    def ask(self, messages: list[dict[str, str]], sample: int = 0, **options: Any) -> Reply:
        """The reply to a chat request, from the cache where it has been asked before.

        Args:
            sample: tells apart requests that are the same and shall be answered anew.
            options: temperature, max_tokens, ...

        Raises:
            UserError: no key; the request is refused; no usable reply after all attempts.
        """
        request = {"model": self.settings.model, "messages": messages, **options}
        address = self.settings.base_url
        endpoint = None if address is None else shown(address)
        key = {"request": request, "endpoint": endpoint, "sample": sample}
        file = self.cache / f"{value_digest(key)}.json"
        if file.exists():
            with self._lock:
                self.cached += 1
            kept: _Kept = checked(read_json(file), _Kept, str(file), "remove it: it is asked anew")
            return self._cleaned(kept.reply)
        reply = self._answered(request)
        with self._lock:
            write_json(file, {**key, "reply": {"content": reply.content, "model": reply.model}})
        return reply

    def map(self, work: Mapping[str, Callable[[], T]], progress: Progress = silent) -> dict[str, T]:
        """Run pieces of work that ask the judge side by side; results in the order of `work`.

        Raises:
            UserError: the first that fails; what has been answered by then stays in the cache.
        """
        self._stopped.clear()
        results: dict[str, T] = {}
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            names = {pool.submit(piece): name for name, piece in work.items()}
            try:
                for done in as_completed(names):
                    results[names[done]] = done.result()
                    progress(Event("judgement", len(results), len(work)))
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return {name: results[name] for name in work}

    def _answered(self, request: dict[str, Any]) -> Reply:
        problem = ""
        for attempt in range(self.settings.attempts):
            if attempt:
                with self._lock:
                    self.retries += 1
                wait = self.settings.first_wait * 2 ** (attempt - 1)
                # ends at once when another request has failed for good
                if self._stopped.wait(min(wait, LONGEST_WAIT)):
                    break
            with self._lock:
                self.requests += 1
            outcome = self._try(request)
            if isinstance(outcome, Reply):
                return outcome
            if isinstance(outcome, _Refusal):
                raise UserError(
                    f"the judge refuses the request: {outcome.reason}",
                    where=self._place(),
                    remedy=f"check {KEY_VARIABLE}, the judge's model and its address",
                )
            problem = outcome
        raise UserError(
            f"the judge gave no usable reply in {self.settings.attempts} attempts: {problem}",
            where=self._place(),
            remedy="start again later: replies that came are kept and not asked for again",
        )

    def _try(self, request: dict[str, Any]) -> Reply | _Refusal | str:
        """The reply, or what was wrong with it where another try may help.

        Returns instead of raising: an error of the client, which holds the key, would go on as the
        context of ours.
        """
        import openai

        client = self._connected()
        started = time.monotonic()
        try:
            return self._parsed(within(self.settings.timeout, lambda: _sent(client, request)))
        except (openai.APITimeoutError, TimeoutError):
            return f"no reply within {time.monotonic() - started:.1f} s"
        except openai.APIConnectionError as error:
            return f"no connection ({self._told(error.__cause__ or error)})"
        except openai.APIStatusError as error:
            reason = f"status {error.status_code} ({self._told(error.message)})"
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                return reason
            return _Refusal(reason)
        except Exception as error:  # of the client, which may quote what it sends
            return _Refusal(f"{type(error).__name__} ({self._told(error)})")

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._key = require_key()
                opened = self._opened()
                if isinstance(opened, str):
                    raise UserError(
                        f"the judge's address cannot be used: {opened}",
                        where=self._place(),
                        remedy="write it as http(s)://HOST:PORT/v1, a password percent-encoded",
                    )
                guard_loggers(self._secrets())
                self._client = opened
            return self._client

    def _opened(self) -> Any:
        """The client, or what is wrong with the address."""
        import openai

        try:
            return openai.OpenAI(
                api_key=self._key,
                base_url=self.settings.base_url,
                timeout=self.settings.timeout,
                # `_answered` retries: the client would take a reply that cannot be used for an
                # answer, would go on after another request has failed for good, and tells no count
                max_retries=0,
            )
        except Exception as error:  # the client's libraries have several kinds
            return self._told(error)

    def _place(self) -> str:
        where = shown(self.settings.base_url or "api.openai.com")
        return without_secrets(f"judge {self.settings.model} at {where}", self._secrets())

    def _secrets(self) -> tuple[str, ...]:
        key = self._key or os.environ.get(KEY_VARIABLE, "").strip()
        address = self.settings.base_url or os.environ.get(ADDRESS_VARIABLE, "")
        return secrets_of(key, address)

    def _told(self, said: object) -> str:
        """A server's words, in one line, without secrets (some servers repeat the key)."""
        return " ".join(without_secrets(str(said), self._secrets()).split())[:300]

    def _cleaned(self, reply: Reply) -> Reply:
        """A reply without secrets; a short key is no secret, and may be a part of any grade."""
        content, secrets = reply.content, self._secrets()
        return Reply(
            None if content is None else without_secrets(content, secrets, FRAGMENT),
            without_secrets(reply.model, secrets, FRAGMENT),
        )

    def _parsed(self, body: str) -> Reply | str:
        try:
            value = parse_json(body, "reply")
            message = value["choices"][0]["message"]
            content = message.get("content")
        except (UserError, KeyError, IndexError, TypeError, AttributeError):
            return f"no chat completion, but {self._told(body)[:80]!r}"
        if content is not None and not isinstance(content, str):
            return f"content is no text: {self._told(content)[:80]!r}"
        return self._cleaned(Reply(content, str(value.get("model", ""))))


def _sent(client: Any, request: dict[str, Any]) -> str:
    """The body of the reply to a request."""
    with client.chat.completions.with_streaming_response.create(**request) as response:
        return joined(response.iter_bytes())


@dataclass(frozen=True)
class Judging:
    """A judge, and how often each answer is judged."""

    judge: Judge
    runs: int = 1


UNNAMED = "not named in the file"
"""The judge's model, where a file of judgements does not say it."""


def models_of(replies: Iterable[str]) -> list[str]:
    """The distinct names of the models that answered, sorted."""
    return sorted({name for name in replies if name})
