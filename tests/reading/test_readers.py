"""Whatever bytes a file holds, a reader gives a value or an error that a user can mend."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efficientllava.errors import UserError
from efficientllava.reading import (
    checked,
    expanded,
    load_tensors,
    parse_json,
    read_bytes,
    read_json,
    read_model_config,
    read_text,
    require_floats,
    require_plain_yaml,
)
from tests.reading.fuzz import READERS

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
MANY = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(VALUES)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value), "x") == value


@MANY
@given(st.text(alphabet='{}[]":,0123456789.eE+-truefalsnNaInity\\u \n'))
def test_json_text_is_read_or_told(text: str) -> None:
    try:
        value = parse_json(text, "place")
    except UserError as error:
        assert str(error).startswith("place: ")
    else:
        assert json.loads(text) == value


@MANY
@given(st.text(alphabet="{}[]:,&*!|>-%@#'\"abc0123 \n\t"))
def test_yaml_text_is_read_or_told(text: str) -> None:
    try:
        require_plain_yaml(text, "place")
    except UserError as error:
        assert str(error).startswith("place: ")
    else:
        yaml.compose(text, Loader=yaml.SafeLoader)


@MANY
@given(st.binary(max_size=300))
@pytest.mark.parametrize("name", READERS)
def test_bytes_are_read_or_told(name: str, tmp_path: Path, content: bytes) -> None:
    suffix, read = READERS[name]
    (file := tmp_path / f"config{suffix}").write_bytes(content)
    try:
        read(file)
    except UserError as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    "text, told",
    [
        ("[" * 65 + "]" * 65, "nested deeper"),
        ("[" * 10**6, "nested deeper"),
        ('{"a": {"b": 1, "b": 2}}', "'b' twice"),
        ("[9223372036854775808]", "beyond 64 bits"),
        ("[" + "9" * 5000 + "]", "beyond 64 bits"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("", "not valid JSON"),
    ],
)
def test_unusual_json_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_json(text, "x")


def test_depth_and_digits_that_are_usual_are_read() -> None:
    assert parse_json("[" * 64 + "]" * 64, "x")
    assert parse_json("[9223372036854775807, -9223372036854775807]", "x")[0] == 2**63 - 1
    assert parse_json('{"a": Infinity}', "x", constants=True) == {"a": float("inf")}


def test_no_regular_file_is_told_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(11))
    for name, told in (
        (".", "folder"), ("pipe", "no regular file"), ("loop", "no regular file"),
        ("zero", "no regular file"), ("none", "no such file"), ("large", "at most"),
        ("large/x", "cannot be read"), ("a\0b", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            read_bytes(tmp_path / name, 10)
    assert read_bytes(tmp_path / "large", 11) == bytes(11)


def test_text_is_utf8_without_a_mark(tmp_path: Path) -> None:
    (file := tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\nb\rc")
    assert read_text(file) == "a\nb\nc"
    file.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match="not UTF-8 text .* at byte 3"):
        read_text(file)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x") == Path("/somewhere/x") and expanded("a/~") == Path("a/~")
    with pytest.raises(UserError, match="zero byte"):
        expanded("a\0b")


def test_a_schema_names_the_field() -> None:
    assert checked({"a": [1]}, dict[str, list[int]], "x") == {"a": [1]}
    with pytest.raises(UserError, match=r"^x: a\.1: .*given: 'b'"):
        checked({"a": [1, "b"]}, dict[str, list[int]], "x")


@pytest.mark.parametrize(
    "content, told",
    [
        ({"text_config": {"num_hidden_layers": 2**40}}, "text_config.num_hidden_layers"),
        ({"depths": [2, 10**6]}, "depths.1"),
        ({"num_experts": 10**5}, "num_experts"),
        ({"hidden_size": 2**31}, "hidden_size"),
        ([], "no JSON object"),
    ],
)
def test_numbers_of_no_model_are_told(content: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        read_model_config(tmp_path)


def test_numbers_of_models_pass(tmp_path: Path) -> None:
    content = {
        "rope_theta": 10**11,
        "max_position_embeddings": 10_485_760,
        "num_hidden_layers": 126,
    }
    (tmp_path / "config.json").write_text(json.dumps(content)[:-1] + ', "limit": [0.0, Infinity]}')
    assert read_model_config(tmp_path)["rope_theta"] == 10**11


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64]
)
def test_weights_that_are_no_floats_are_told_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"good.weight": torch.ones(2), "bad.weight": torch.ones(2).to(dtype)}
    save_file(tensors, tmp_path / "x")
    with pytest.raises(UserError, match="bad.weight is "):
        require_floats(tmp_path / "x")
    save_file({"position_ids": torch.arange(3), **{"a": torch.ones(1)}}, tmp_path / "x")
    require_floats(tmp_path / "x")
    assert set(load_tensors(tmp_path / "x")) == {"position_ids", "a"}


def test_a_json_file_of_the_wrong_kind_names_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        read_json(tmp_path)
