"""A judge's key and password stay where they are: in the environment and in the address."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from efficientllava.benchmarks.judge.client import Judge, JudgeSettings, Reply, require_key
from efficientllava.benchmarks.judge.redaction import (
    guard_loggers,
    secrets_of,
    shown,
    without_secrets,
)
from efficientllava.errors import UserError, without_users
from efficientllava.parsing import parse_parameters
from flows.tracking.live import logged_parameters
from flows.tracking.record import ModelRecord
from tests.benchmarks.judge_server import judge_server

KEY = "sk-secret/of+this_test"
PASSWORD = "pa55word-of-a-judge"
HELLO = [{"role": "user", "content": "hello"}]
PIECE = 8
ROOT = Path(__file__).parents[2]

FORMS: dict[str, Callable[[str], str]] = {
    "whole": str,
    "first half": lambda key: key[: len(key) // 2],
    "second half": lambda key: key[len(key) // 2 :],
    "without its ends": lambda key: key[3:-3],
    "URL-encoded": lambda key: quote(key, safe=""),
    "every letter URL-encoded": lambda key: "".join(f"%{ord(letter):02x}" for letter in key),
    "escaped as in JSON": lambda key: "".join(f"\\u{ord(letter):04X}" for letter in key),
    "escaped as in Python": lambda key: "".join(f"\\x{ord(letter):02x}" for letter in key),
    "on two lines": lambda key: f"{key[:10]}\n{key[10:]}",
    "on two lines, escaped": lambda key: f"{key[:10]}\\r\\n{key[10:]}",
    "spaced": " ".join,
    "as bytes": lambda key: repr(f"Bearer {key}".encode()),
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge_at(url: str, cache: Path) -> Judge:
    return Judge(JudgeSettings("gpt-x", url, 4, 2, 5.0, first_wait=0.01), cache)


def everything_of(error: BaseException | None) -> str:
    """An error and all errors behind it, shown by default or not."""
    told = ""
    while error is not None:
        told += "".join(traceback.format_exception(error)) + repr(error)
        error = error.__cause__ or error.__context__
    return told


def assert_hidden(text: str, secret: str = KEY) -> None:
    """Neither the secret nor a piece of it, on one line or over several, plain or encoded."""
    plain = "".join(text.encode().decode("unicode_escape", errors="replace").split())
    for read in ("".join(text.split()), plain):
        for start in range(len(secret) - PIECE + 1):
            assert secret[start : start + PIECE] not in read
    assert quote(secret, safe="")[:12] not in text and "%73%6b%2d" not in text


def kept_in(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


REPLIES: dict[str, Callable[[str], Any]] = {
    "no chat completion": lambda said: (200, f"bad key {said} here"),
    "content that is no text": lambda said: (
        200,
        json.dumps({"choices": [{"message": {"content": {"key": said}}}]}),
    ),
    "refused": lambda said: (401, json.dumps({"error": {"message": f"wrong: {said}"}})),
    "refused as a page": lambda said: (403, f"<html>{said}</html>"),
    "out of order": lambda said: (500, f"oops {said}"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reply", REPLIES)
def test_an_echoed_key_is_in_no_message(tmp_path: Path, reply: str, form: str) -> None:
    with judge_server(lambda request: REPLIES[reply](FORMS[form](KEY))) as served:
        with pytest.raises(UserError) as raised:
            judge_at(served.url, tmp_path).ask(HELLO)
    # the client tells no body that is no JSON
    assert ("***" in str(raised.value)) == (reply not in ("refused as a page", "out of order"))
    assert_hidden(everything_of(raised.value))
    assert served.keys[0] == f"Bearer {KEY}" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_an_echoed_key_is_in_no_reply_and_no_record(tmp_path: Path, form: str) -> None:
    content = f"0.5\nyour key is {FORMS[form](KEY)}, thank you"
    with judge_server(lambda request: content) as served:
        judge = judge_at(served.url, tmp_path)
        reply, again = judge.ask(HELLO), judge.ask(HELLO)
    assert reply == again and reply.content is not None
    assert reply.content.startswith("0.5\nyour key is ")
    assert reply.content.endswith(", thank you")
    assert_hidden(reply.content + kept_in(tmp_path))


def test_a_reply_that_was_kept_before_is_read_without_the_key(tmp_path: Path) -> None:
    with judge_server(lambda request: "fine") as served:
        judge = judge_at(served.url, tmp_path)
        judge.ask(HELLO)
        [file] = tmp_path.iterdir()
        file.write_text(file.read_text().replace("fine", f"0.5 {KEY}"))
        assert judge.ask(HELLO) == Reply("0.5 ***", "judge-0613")


@pytest.mark.parametrize("short", ["0", "5", "0.5", "x", "none"])
def test_a_short_key_changes_no_grade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    """A local server that needs no key takes any text."""
    monkeypatch.setenv("OPENAI_API_KEY", short)
    with judge_server(lambda request: "0.5 none x") as served:
        assert judge_at(served.url, tmp_path).ask(HELLO) == Reply("0.5 none x", "judge-0613")
        assert served.keys == [f"Bearer {short}"]


@pytest.mark.parametrize(
    "key", ["sk-first-part\nsk-second-part", "sk-first\rsk-second", "sk-de\x7flete", "sk-schlüssel"]
)
def test_a_key_that_no_request_can_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    for ask in (require_key, lambda: judge_at("http://127.0.0.1:9/v1", tmp_path).ask(HELLO)):
        with pytest.raises(UserError, match="line break or another character") as raised:
            ask()
        assert not any(part in everything_of(raised.value) for part in key.split())


@pytest.mark.parametrize("key", ["", " ", " \n\t", "\u00a0"])
def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="no API key"):
        require_key()


def test_blanks_around_a_key_are_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with judge_server(lambda request: (401, f"bad {KEY}")) as served:
        with pytest.raises(UserError) as raised:
            judge_at(served.url, tmp_path).ask(HELLO)
    assert served.keys == [f"Bearer {KEY}"]
    assert_hidden(everything_of(raised.value))


ADDRESSES = {
    "nobody there": "http://user:{}@127.0.0.1:9/v1",
    "no scheme": "user:{}@127.0.0.1:9/v1",
    "another scheme": "ftp://user:{}@127.0.0.1/v1",
    "no port": "http://user:{}@127.0.0.1:abc/v1",
    "no host": "http://user:{}@[::1/v1",
    "a slash in the password": "http://user:ab/{}@127.0.0.1:9/v1",
    "a user alone": "http://{}@127.0.0.1:9/v1",
    "a user and no password": "http://{}:@127.0.0.1:9/v1",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_password_in_the_address_is_in_no_message(tmp_path: Path, address: str) -> None:
    settings = JudgeSettings("gpt-x", ADDRESSES[address].format(PASSWORD), 4, 1, 1.0)
    with pytest.raises(UserError, match="127.0.0.1|::1") as raised:
        Judge(settings, tmp_path).ask(HELLO)
    assert_hidden(everything_of(raised.value) + repr(settings), PASSWORD)


def test_a_password_in_the_address_goes_to_the_server_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    basic = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    with judge_server(lambda request: f"0.5 {PASSWORD} {basic}") as served:
        judge = judge_at(served.url.replace("://", f"://user:{PASSWORD}@"), tmp_path)
        assert judge.ask(HELLO).content == "0.5 ***"
        assert served.keys == [f"Basic {basic}"]
        judge_at(served.url, tmp_path).ask(HELLO)
        assert len(served.requests) == 1  # the same endpoint, whoever asks
    assert_hidden(kept_in(tmp_path) + caplog.text, PASSWORD)


@pytest.mark.parametrize("trouble", [(401, f"bad {KEY}"), "fine"], ids=str)
def test_the_clients_logs_hold_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai._base_client")  # another judge in this process has its own key
    guard_loggers((KEY[:PIECE],))
    with judge_server(lambda request: trouble) as served:
        judge = judge_at(served.url.replace("://", f"://user:{PASSWORD}@"), tmp_path)
        try:
            judge.ask(HELLO)
        except UserError:
            assert trouble != "fine"
    assert "HTTP Request: POST http://" in caplog.text
    try:
        raise RuntimeError(f"in a traceback {quote(KEY, safe='')}")
    except RuntimeError:
        words = {"password": PASSWORD}
        logging.getLogger("openai._base_client").exception("sent %s to %s", f"Bearer {KEY}", words)
    assert "in a traceback ***" in caplog.text and "sent Bearer ***" in caplog.text
    assert_hidden(caplog.text)
    assert_hidden(caplog.text, PASSWORD)


def test_an_unforeseen_error_of_the_client_is_told_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_at("http://127.0.0.1:9/v1", tmp_path)
    client = judge._connected()

    def fail(**request: Any) -> Any:
        raise RuntimeError(f"headers: Bearer {KEY}")

    monkeypatch.setattr(client.chat.completions.with_streaming_response, "create", fail)
    with pytest.raises(UserError, match=r"RuntimeError \(headers: Bearer \*\*\*\)") as raised:
        judge.ask(HELLO)
    assert_hidden(everything_of(raised.value))


def test_secrets_of_an_address() -> None:
    assert secrets_of("k", "http://host/v1") == ("k",)
    assert secrets_of("", "http://host:80/a@b") == ()
    assert secrets_of("k", "http://me:pass@host/v1")[:2] == ("k", "pass")
    assert secrets_of("k", "http://me@host/v1")[1] == "me"
    assert shown("http://me:pass@host/v1") == "http://host/v1"
    assert shown("http://host:80/a@b") == "http://host:80/a@b"
    assert without_secrets("p%40ss-word and p@ss-word", ["p%40ss-word"]) == "*** and ***"
    assert without_secrets("any+text, any%20text", ["any text"]) == "***, ***"
    assert without_secrets(r"a\\b-c and a\b-c", [r"a\b-c"]) == "*** and ***"
    assert without_secrets("no secret", []) == "no secret"
    assert without_secrets("tell nothing", ["tel", ""]) == "tell nothing"


def test_users_of_addresses_are_in_no_message() -> None:
    address = f"http://user:{PASSWORD}@host/v1"
    values = {"evaluation": {"benchmark": "mmvet", "judge": {"base_url": address}}}
    with pytest.raises(UserError, match="needs its folder") as raised:
        parse_parameters(values)
    assert_hidden(everything_of(raised.value), PASSWORD)
    error = UserError(address, where=address, remedy=address)
    assert str(error) == "http://***@host/v1: http://***@host/v1\n  -> http://***@host/v1"
    for text in ("http://host/v1", "a@b.c", "sqlite:///a@b.db", "x://y and a@b"):
        assert without_users(text) == text


def test_mlflow_is_given_no_password() -> None:
    name = "evaluation.judge.base_url"
    record = ModelRecord("a-0.5", "a", 0.5, {name: f"http://user:{PASSWORD}@host/v1"})
    assert logged_parameters(record)[name] == "http://***@host/v1"


def test_the_command_line_shows_no_secret(tmp_path: Path) -> None:
    question = {"imagename": "x.png", "question": "x?", "answer": "1", "capability": ["rec"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": question}))
    (tmp_path / "answers.json").write_text(json.dumps({"v1_0": "one"}))
    with judge_server(lambda request: (200, f"who are you, {KEY}?")) as served:
        url = served.url.replace("://", f"://user:{PASSWORD}@")
        command = ["-m", "efficientllava.cli", "score", "mmvet", "answers.json", "--data", "."]
        asked = ["--judge", "gpt-x", "--judge-url", url, "--attempts", "1"]
        done = subprocess.run(
            [sys.executable, *command, *asked],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_LOG": "debug"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2 and "who are you, ***?" in done.stderr
    for secret in (KEY, PASSWORD):
        assert_hidden(done.stdout + done.stderr + kept_in(tmp_path), secret)
