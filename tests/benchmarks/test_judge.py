"""The judge against a real server that answers, stalls, refuses and talks nonsense."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from efficientllava.benchmarks.judge.client import Judge, JudgeSettings, Judging
from efficientllava.benchmarks.llava_bench.scores import parsed_scores
from efficientllava.benchmarks.mmvet.grading import EXAMPLES, parsed_grade
from efficientllava.benchmarks.scoring import score_files
from efficientllava.errors import UserError
from efficientllava.registry import BENCHMARKS
from tests.benchmarks.judge_server import judge_server

KEY = "sk-secret-of-this-test"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge_at(url: str, cache: Path, attempts: int = 4, timeout: float = 5.0) -> Judge:
    return Judge(JudgeSettings("gpt-x", url, 4, attempts, timeout, first_wait=0.01), cache)


def in_turn(*actions: Any) -> Any:
    left = list(actions)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


HELLO = [{"role": "user", "content": "hello"}]


def test_replies_are_kept_and_never_asked_for_again(tmp_path: Path) -> None:
    with judge_server(in_turn("0.5", "0.7")) as served:
        judge = judge_at(served.url, tmp_path)
        assert judge.ask(HELLO, temperature=0.0).content == "0.5"
        assert judge.ask(HELLO, temperature=0.0).content == "0.5"
        assert judge.ask(HELLO, sample=1, temperature=0.0).content == "0.7"
        again = judge_at(served.url, tmp_path)
        assert again.ask(HELLO, temperature=0.0).model == "judge-0613"
        assert len(served.requests) == 2 and again.requests == 0 and again.cached == 1
        assert served.requests[0] == {"model": "gpt-x", "messages": HELLO, "temperature": 0.0}
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in kept and "hello" in kept


@pytest.mark.parametrize(
    "trouble",
    [
        (429, '{"error": {"message": "slow down"}}'),
        (500, "oops"),
        (503, ""),
        (200, "garbage"),
        (200, '{"choices": []}'),
        (200, '"text"'),
        0.8,
    ],
    ids=str,
)
def test_trouble_that_passes_is_waited_out(tmp_path: Path, trouble: Any) -> None:
    with judge_server(in_turn(trouble, trouble, "fine")) as served:
        judge = judge_at(served.url, tmp_path, timeout=0.3)
        assert judge.ask(HELLO).content == "fine"
        assert judge.retries == 2 and len(served.requests) == 3


def test_judge_that_never_answers(tmp_path: Path) -> None:
    with judge_server(in_turn(1.0)) as served:
        judge = judge_at(served.url, tmp_path, attempts=2, timeout=0.2)
        with pytest.raises(UserError, match=r"no usable reply in 2 attempts: no reply within"):
            judge.map({str(n): lambda n=n: judge.ask(HELLO, sample=n) for n in range(3)})
    assert not list(tmp_path.iterdir())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n"


@pytest.mark.parametrize("answer", [HEAD, HEAD[:9]], ids=["body", "head"])
def test_a_judge_that_drips_is_given_up_in_time(tmp_path: Path, answer: bytes) -> None:
    """Every byte begins the client's own timeout anew."""
    with judge_server(in_turn(answer + b"x" * 80)) as served:
        judge = judge_at(served.url, tmp_path, attempts=1, timeout=0.4)
        began = time.monotonic()
        with pytest.raises(UserError, match="no reply within"):
            judge.ask(HELLO)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("content", ["[]", '{"reply": {"content": 5}}', "x", '{"reply": null}'])
def test_a_damaged_reply_that_was_kept_is_told(tmp_path: Path, content: str) -> None:
    with judge_server(in_turn("fine")) as served:
        judge_at(served.url, tmp_path).ask(HELLO)
        (file,) = tmp_path.iterdir()
        file.write_text(content)
        with pytest.raises(UserError, match=file.name):
            judge_at(served.url, tmp_path).ask(HELLO)


def test_a_deeply_nested_reply_is_waited_out(tmp_path: Path) -> None:
    with judge_server(in_turn((200, "[" * 10**5), "fine")) as served:
        assert judge_at(served.url, tmp_path).ask(HELLO).content == "fine"


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no connection"):
        judge_at("http://127.0.0.1:9/v1", tmp_path, attempts=2).ask(HELLO)


def test_refusal_is_told_without_the_key(tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}})
    with judge_server(in_turn((401, body))) as served:
        with pytest.raises(UserError, match="refuses the request: status 401") as raised:
            judge_at(served.url, tmp_path).ask(HELLO)
        assert KEY not in str(raised.value) and len(served.requests) == 1


def test_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="no API key"):
        judge_at("http://127.0.0.1:9/v1", tmp_path).ask(HELLO)


@pytest.mark.parametrize(
    "content, grade",
    [
        ("0.5", 0.5),
        ("1.0 because", 1.0),
        ("1", 1.0),
        (" 0.5", None),
        ("1.1", None),
        ("-0.1", None),
        ("good", None),
        ("nan", None),
        ("", None),
        (None, None),
        ("0.5\n", 0.5),
    ],
)
def test_grade(content: str | None, grade: float | None) -> None:
    assert parsed_grade(content) == grade


@pytest.mark.parametrize(
    "review, pair",
    [
        ("8 9\nGood.", [8, 9]),
        ("8.5,9", [8.5, 9]),
        ("8, 9", [-1, -1]),
        ("8 9 ", [-1, -1]),
        ("8", [-1, -1]),
        ("a b", [-1, -1]),
        ("Scores: 8 9", [-1, -1]),
        ("nan 3", [-1, -1]),
        ("", [-1, -1]),
    ],
)
def test_review(review: str, pair: list[float]) -> None:
    assert parsed_scores(review) == pair


@pytest.fixture
def mmvet(tmp_path: Path) -> Path:
    def record(answer: str, *capabilities: str) -> dict[str, Any]:
        return {
            "imagename": "v1_0.png",
            "question": "x?",
            "answer": answer,
            "capability": list(capabilities),
        }

    folder = tmp_path / "mmvet"
    folder.mkdir()
    records = {"v1_0": record("1<AND>2", "ocr", "math"), "v1_1": record("3<OR>4", "rec")}
    (folder / "mm-vet.json").write_text(json.dumps(records))
    (folder / "answers.json").write_text(json.dumps({"v1_0": "one", "v1_1": "three"}))
    return folder


def user_text(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def test_mmvet_is_graded_as_published(mmvet: Path, tmp_path: Path) -> None:
    def act(request: dict[str, Any]) -> str:
        return "0.5" if "one" in user_text(request).splitlines()[-1] else "bad"

    with judge_server(act) as served:
        judging = Judging(judge_at(served.url, tmp_path / "cache"), runs=2)
        outcome = score_files(BENCHMARKS["mmvet"], [mmvet / "answers.json"], mmvet, judging=judging)
        again = score_files(BENCHMARKS["mmvet"], [mmvet / "answers.json"], mmvet, judging=judging)
    scores = outcome.scores
    assert again.scores == scores and len(served.requests) == 2 * (1 + 5)
    assert scores["official"]["total"] == 25.0 and scores["official"]["runs"] == [25.0, 25.0]
    assert scores["official"]["only_ocr_math"] == 50.0 and scores["malformed"] == 10
    assert scores["judge"] == {"asked": "gpt-x", "models": ["judge-0613"], "runs": 2}
    first = next(each for each in served.requests if "one" in user_text(each).splitlines()[-1])
    assert user_text(first) == EXAMPLES + "\nx? | 1 <AND> 2 | one | "
    assert (first["temperature"], first["max_tokens"]) == (0.0, 3)
    others = [each for each in served.requests if "3 <OR> 4" in user_text(each)]
    assert sorted(each["temperature"] for each in others) == sorted([0.0, 0.0, 0.5, 1.0, 1.5] * 2)
    last = "\nPredict the correctness of the answer (digit): "
    assert sum(user_text(each).endswith(last) for each in others) == 8
    file = tmp_path / "grades.json"
    (grades,) = outcome.judgements.values()
    file.write_text(json.dumps(grades))
    read = score_files(BENCHMARKS["mmvet"], [file], mmvet).scores
    assert read["official"] == scores["official"]


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    folder.mkdir()

    def lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    kinds = ("conv", "detail", "complex")
    lines(
        "questions.jsonl",
        [
            {"question_id": n, "image": "1.jpg", "text": f"q{n}", "category": kind}
            for n, kind in enumerate(kinds)
        ],
    )
    lines("context.jsonl", [{"id": "1", "image": "1.jpg", "caption": ["A", "B"]}])
    lines("answers_gpt4.jsonl", [{"question_id": n, "text": f"ref{n}"} for n in range(3)])
    lines(
        "answers.jsonl",
        [{"question_id": n, "text": f"mine{n}", "answer_id": f"a{n}"} for n in range(3)],
    )
    rules = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": "Rate."} for kind in kinds}
    (folder / "rule.json").write_text(json.dumps(rules))
    return folder


def test_llava_bench_is_reviewed_as_published(bench: Path, tmp_path: Path) -> None:
    replies = {"mine0": "8 4\nx", "mine1": "10 9", "mine2": "8, 9"}

    def act(request: dict[str, Any]) -> str:
        return next(reply for name, reply in replies.items() if name in user_text(request))

    with judge_server(act) as served:
        judging = Judging(judge_at(served.url, tmp_path / "cache"))
        outcome = score_files(
            BENCHMARKS["llava_bench"], [bench / "answers.jsonl"], bench, judging=judging
        )
    official = outcome.scores["official"]
    assert (official["conv"], official["detail"], official["complex"]) == (50.0, 90.0, 100.0)
    assert official["all"] == round(round(12 / 3, 3) / round(17 / 3, 3) * 100, 1)
    assert outcome.scores["malformed"] == 1
    asked = next(each for each in served.requests if "mine0" in user_text(each))
    assert user_text(asked) == (
        "[Context]\nA\nB\n\n[Question]\nq0\n\n[Assistant 1]\nref0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nmine0\n\n[End of Assistant 2]\n\n[System]\nRate.\n\n"
    )
    assert (asked["temperature"], asked["max_tokens"]) == (0.2, 1024)
    reviews = outcome.judgements["reviews-1.jsonl"]
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in reviews))
    read = score_files(BENCHMARKS["llava_bench"], [file], bench).scores
    assert read["official"] == official
    assert reviews[0]["answer2_id"] == "a0" and reviews[2]["tuple"] == [-1.0, -1.0]


def test_names_of_parts_are_such_as_mlflow_takes(mmvet: Path, tmp_path: Path) -> None:
    with judge_server(in_turn("1.0")) as served:
        judging = Judging(judge_at(served.url, tmp_path / "cache"))
        answers = [mmvet / "answers.json"]
        scores = score_files(BENCHMARKS["mmvet"], answers, mmvet, judging=judging).scores
    assert scores["accuracy"] == 1.0 and "only_rec" in scores["breakdowns"]
    assert all(name.replace("_", "").isalnum() for name in scores["breakdowns"])
