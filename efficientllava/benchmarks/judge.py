"""A judge behind an OpenAI-compatible endpoint: parallel, patient, and never asked twice.

The key comes from the environment (OPENAI_API_KEY) and goes nowhere but to the endpoint. Every
reply is kept on disk under the digest of its request, so that a rerun costs nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from efficientllava.errors import UserError
from efficientllava.files import read_json, value_digest, write_json
from efficientllava.progress import Event, Progress, silent

KEY_VARIABLE = "OPENAI_API_KEY"
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
        timeout: seconds until a request without a reply counts as failed.
        first_wait: seconds before the second try; doubles with each further one.
    """

    model: str
    base_url: str | None = None
    parallel: int = 8
    attempts: int = 6
    timeout: float = 60.0
    first_wait: float = 1.0


@dataclass(frozen=True)
class Reply:
    """What the judge said, and the model that said it by its own account."""

    content: str | None
    model: str


def require_key() -> str:
    """The judge's key.

    Raises:
        UserError: the environment has none.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise UserError(
            f"no API key for the judge: the environment variable {KEY_VARIABLE} is not set",
            where="judge",
            remedy=f"export {KEY_VARIABLE}=... (a local server that needs none takes any text)",
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

    def ask(self, messages: list[dict[str, str]], sample: int = 0, **options: Any) -> Reply:
        """The reply to a chat request, from the cache where it has been asked before.

        Args:
            sample: tells apart requests that are the same and shall be answered anew.
            options: temperature, max_tokens, ...

        Raises:
            UserError: no key; the request is refused; no usable reply after all attempts.
        """
        request = {"model": self.settings.model, "messages": messages, **options}
        key = {"request": request, "endpoint": self.settings.base_url, "sample": sample}
        file = self.cache / f"{value_digest(key)}.json"
        if file.is_file():
            with self._lock:
                self.cached += 1
            kept = read_json(file)
            return Reply(kept["reply"]["content"], kept["reply"]["model"])
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
            found = self._try(request)
            if isinstance(found, Reply):
                return found
            problem = found
        raise UserError(
            f"the judge gave no usable reply in {self.settings.attempts} attempts: {problem}",
            where=self._place(),
            remedy="start again later: replies that came are kept and not asked for again",
        )

    def _try(self, request: dict[str, Any]) -> Reply | str:
        """The reply, or what was wrong with it where another try may help."""
        import openai

        client = self._connected()
        started = time.monotonic()
        try:
            raw = client.chat.completions.with_raw_response.create(**request)
            return _parsed(raw.http_response.text)
        except openai.APITimeoutError:
            return f"no reply within {time.monotonic() - started:.1f} s"
        except openai.APIConnectionError as error:
            return f"no connection ({self._without_key(error.__cause__ or error)})"
        except openai.APIStatusError as error:
            told = f"status {error.status_code} ({self._without_key(error.message)})"
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                return told
            raise UserError(
                f"the judge refuses the request: {told}",
                where=self._place(),
                remedy=f"check {KEY_VARIABLE}, the judge's model and its address",
            ) from None

    def _connected(self) -> Any:
        import openai

        with self._lock:
            if self._client is None:
                self._client = openai.OpenAI(
                    api_key=require_key(),
                    base_url=self.settings.base_url,
                    timeout=self.settings.timeout,
                    max_retries=0,  # counted and bounded here
                )
            return self._client

    def _place(self) -> str:
        return f"judge {self.settings.model} at {self.settings.base_url or 'api.openai.com'}"

    def _without_key(self, told: object) -> str:
        """A server's words, in one line, without the key (some servers repeat it)."""
        return " ".join(str(told).replace(require_key(), "***").split())[:300]


def _parsed(body: str) -> Reply | str:
    try:
        value = json.loads(body)
        message = value["choices"][0]["message"]
        content = message.get("content")
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return f"no chat completion, but {body[:80]!r}"
    if content is not None and not isinstance(content, str):
        return f"content is no text: {str(content)[:80]!r}"
    return Reply(content, str(value.get("model", "")))


def models_of(replies: Iterable[str]) -> list[str]:
    """The distinct names of the models that answered, sorted."""
    return sorted({name for name in replies if name})
