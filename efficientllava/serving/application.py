"""The HTTP routes: chat completions, models, health, readiness."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as Change
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from efficientllava.serving.engine import Answer, Engine, Job, Sampling
from efficientllava.serving.refusal import Refusal
from efficientllava.serving.request import ChatRequest, conversation_of, parse_request

GONE_SECONDS = 0.5
"""How often it is looked whether a client is still there."""

Event = str | Answer | Exception


def application(
    engine: Engine,
    name: str,
    hosts: list[str],
    most_bytes: int,
    key: str | None = None,
    is_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application of one model.

    Args:
        name: the model's, in requests and answers.
        hosts: names of this server that a request may carry; ["*"] for any. A page that lets a
            browser resolve its own name to the loopback address is not among them.
        most_bytes: of a request's body.
        key: requests need it as bearer token; None: they need none.
        is_ready: called once the model is loaded.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        watcher = asyncio.create_task(_announce(engine, is_ready))
        yield
        watcher.cancel()
        await asyncio.to_thread(engine.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    _handle_errors(app)
    _add_states(app, engine)
    _add_models(app, name, key)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        _require_key(request, key)
        asked = parse_request(await _body(request, most_bytes))
        _require_name(asked.model, name)
        conversation = await asyncio.to_thread(conversation_of, asked.messages)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(conversation, _sampling(asked), tell, pieces=bool(asked.stream))
        engine.submit(job)
        first = await _first(job, events, request)
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        if not asked.stream:
            assert isinstance(first, Answer)
            return JSONResponse(_completion(identity, name, first).model_dump(mode="json"))
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        stream = _stream(identity, name, job, first, events, usage)
        return StreamingResponse(stream, media_type="text/event-stream")

    return app


async def _announce(engine: Engine, is_ready: Callable[[], None]) -> None:
    while not engine.ready.is_set():
        await asyncio.sleep(0.1)
    is_ready()


def _add_models(app: FastAPI, name: str, key: str | None) -> None:
    model = Model(id=name, created=int(time.time()), object="model", owned_by="efficientllava")

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        _require_key(request, key)
        return JSONResponse({"object": "list", "data": [model.model_dump()]})

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str, request: Request) -> JSONResponse:
        _require_key(request, key)
        _require_name(asked, name)
        return JSONResponse(model.model_dump())


def _add_states(app: FastAPI, engine: Engine) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        is_ready = engine.ready.is_set()
        status = {"status": "ready" if is_ready else "loading", "waiting": engine.waiting}
        return JSONResponse(status, status_code=200 if is_ready else 503)


def _handle_errors(app: FastAPI) -> None:
    """Every error has OpenAI's body."""

    def respond(refusal: Refusal, headers: dict[str, str] | None = None) -> JSONResponse:
        if refusal.status == 429:
            headers = {"Retry-After": "1"}
        return JSONResponse(refusal.body, status_code=refusal.status, headers=headers)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return respond(error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        said = f"{error.detail}: {request.method} {request.url.path}"
        return respond(Refusal(said, status=error.status_code), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return respond(_failure(error))


def _failure(error: Exception) -> Refusal:
    said = f"the model failed: {type(error).__name__}; the server's log has the rest"
    return Refusal(said, status=500)


def _require_key(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "")
    if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise Refusal("a wrong or no API key", status=401, code="invalid_api_key")


def _require_name(asked: str, name: str) -> None:
    if asked != name:
        raise Refusal(
            f"no model {asked[:200]!r} is served here; there is {name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


async def _body(request: Request, most: int) -> bytes:
    """A request's body.

    JSON must be declared: a page of another site cannot send that from a browser unasked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("the content type must be application/json", status=415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refusal(
                f"a request of more than {most:,} bytes", status=413, code="request_too_large"
            )
    return bytes(body)


def _sampling(asked: ChatRequest) -> Sampling:
    return Sampling(
        asked.new_tokens,
        asked.temperature or 0.0,
        1.0 if asked.top_p is None else asked.top_p,
        asked.seed,
        asked.stops,
    )


async def _first(job: Job, events: asyncio.Queue[Event], request: Request) -> str | Answer:
    """The first event that is no error; the answer is ended when the client is gone."""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), GONE_SECONDS)
                break
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refusal("the client is gone", status=499) from None
    except BaseException:
        job.cancelled.set()
        raise
    if isinstance(event, Refusal):
        raise event
    if isinstance(event, Exception):
        raise _failure(event)
    return event


def _usage(answer: Answer) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.new_tokens,
        total_tokens=answer.prompt_tokens + answer.new_tokens,
    )


def _completion(identity: str, name: str, answer: Answer) -> ChatCompletion:
    message = ChatCompletionMessage(role="assistant", content=answer.text)
    finish: Any = answer.finish
    return ChatCompletion(
        id=identity,
        object="chat.completion",
        created=int(time.time()),
        model=name,
        choices=[Choice(index=0, finish_reason=finish, message=message, logprobs=None)],
        usage=_usage(answer),
    )


async def _stream(
    identity: str,
    name: str,
    job: Job,
    event: Event,
    events: asyncio.Queue[Event],
    usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events: a chunk with the role, one per piece, one with the finish."""
    created = int(time.time())

    def line(*changes: Change, of: CompletionUsage | None = None) -> str:
        chunk = ChatCompletionChunk(
            id=identity,
            object="chat.completion.chunk",
            created=created,
            model=name,
            choices=list(changes),
            usage=of,
        )
        return f"data: {chunk.model_dump_json()}\n\n"

    try:
        yield line(Change(index=0, delta=ChoiceDelta(role="assistant", content="")))
        while isinstance(event, str):
            yield line(Change(index=0, delta=ChoiceDelta(content=event)))
            event = await events.get()
        if isinstance(event, Exception):
            failure = event if isinstance(event, Refusal) else _failure(event)
            yield f"data: {json.dumps(failure.body)}\n\n"
            return
        finish: Any = event.finish
        yield line(Change(index=0, delta=ChoiceDelta(), finish_reason=finish))
        if usage:
            yield line(of=_usage(event))
        yield "data: [DONE]\n\n"
    finally:
        job.cancelled.set()
