"""Proxy text: what is read, what is held out, how segments are drawn."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from efficientllava.data.text import (
    _docstrings,
    _tokenise,
    demo_text,
    held_out_segments,
    read_text,
    sample_segments,
)
from efficientllava.errors import UserError


@pytest.fixture(scope="module")
def numbers() -> PreTrainedTokenizerFast:
    """One token a word: "17" is token 17."""
    vocabulary = {str(number): number for number in range(1000)} | {"<unk>": 1000}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def count_to(number: int) -> str:
    return " ".join(map(str, range(number)))


def test_segments_are_windows_of_the_text(numbers: PreTrainedTokenizerFast) -> None:
    segments = sample_segments(numbers, count_to(500), 40, 16, seed=3)
    assert segments.shape == (40, 16) and segments.dtype == torch.int64
    assert torch.equal(segments, segments[:, :1] + torch.arange(16))
    assert len(set(segments[:, 0].tolist())) > 30  # starts are spread ...
    assert int(segments[:, 0].max()) > 400 and int(segments[:, 0].min()) < 100
    assert torch.equal(segments, sample_segments(numbers, count_to(500), 40, 16, seed=3))
    assert not torch.equal(segments, sample_segments(numbers, count_to(500), 40, 16, seed=4))


def test_segments_are_drawn_as_sparsegpt_does(numbers: PreTrainedTokenizerFast) -> None:
    """`random.seed(s); i = random.randint(0, tokens - length - 1)`, for every segment."""
    import random

    random.seed(11)
    starts = [random.randint(0, 300 - 16 - 1) for _ in range(10)]
    segments = sample_segments(numbers, count_to(300), 10, 16, seed=11)
    assert segments[:, 0].tolist() == starts


def test_segments_that_overlap_are_told(
    numbers: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    sample_segments(numbers, count_to(100), 6, 16, seed=0)
    assert not caplog.messages
    sample_segments(numbers, count_to(100), 7, 16, seed=0)
    assert caplog.messages == [
        "7 segments of 16 tokens come from a text of 100 tokens: they overlap, so that what is "
        "measured on some is no test of others; give more text"
    ]


def test_too_little_text(numbers: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="too short: it has 16 tokens, a segment needs 16"):
        sample_segments(numbers, count_to(16), 1, 16, seed=0)
    assert sample_segments(numbers, count_to(20), 4, 16, seed=0).shape == (4, 16)
    with pytest.raises(UserError, match="more segments than the text holds: 5"):
        sample_segments(numbers, count_to(20), 5, 16, seed=0)
    with pytest.raises(UserError, match="text is empty"):
        sample_segments(numbers, " \n", 1, 16, seed=0)


def test_a_file_is_cut_into_two_parts(tmp_path: Path, numbers: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "text.txt"
    file.write_text(count_to(1000))
    proxy, held_out = read_text(str(file)).split(), read_text(str(file), "held_out").split()
    assert proxy + held_out == count_to(1000).split()
    assert 0.1 < len(held_out) / 1000 < 0.2
    segments = held_out_segments(numbers, str(file), 5, 16)
    assert segments.shape == (5, 16)
    assert segments.flatten().tolist() == [int(word) for word in held_out[: 5 * 16]]
    assert len(held_out_segments(numbers, str(file), 1000, 16)) == len(held_out) // 16
    with pytest.raises(UserError, match="held-out text is too short"):
        held_out_segments(numbers, str(file), 1, 500)


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such text"):
        read_text(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"ptb\.train\.txt: no such file"):
        read_text(str(tmp_path))
    file = tmp_path / "text.txt"
    file.write_bytes(b"plain \xff text")
    with pytest.raises(UserError, match=r"text\.txt: not UTF-8 text \(.* at byte 6"):
        read_text(str(file))
    file.write_text(" \n ")
    with pytest.raises(UserError, match=r"text\.txt: the text is empty"):
        read_text(str(file))


def test_mikolov_files_are_joined_by_blanks(tmp_path: Path) -> None:
    (tmp_path / "ptb.train.txt").write_text(" a <unk> b \n\n c N \n")
    (tmp_path / "ptb.valid.txt").write_text(" d \n e \n")
    assert read_text(str(tmp_path)) == "a <unk> b c N"
    assert read_text(str(tmp_path), "held_out") == "d e"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    """As Windows programs begin a UTF-8 file."""
    for name in ("ptb.train.txt", "ptb.valid.txt"):
        (tmp_path / name).write_text("a b", encoding="utf-8-sig")
        assert read_text(str(tmp_path), "proxy" if "train" in name else "held_out") == "a b"
    assert read_text(str(tmp_path / "ptb.train.txt")).startswith("a")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"empty\.txt: the text is empty"):
        read_text(str(tmp_path / "empty.txt"))


@pytest.mark.skipif("EFFICIENTLLAVA_DATA" not in os.environ, reason="needs EFFICIENTLLAVA_DATA")
def test_penn_treebank() -> None:
    words = read_text(str(Path(os.environ["EFFICIENTLLAVA_DATA"]) / "ptb")).split(" ")
    assert words[:3] == ["aer", "banknote", "berlitz"]
    assert len(words) == 887_521 and words.count("<unk>") == 45_020


def test_demo_text_is_english_in_two_disjoint_parts() -> None:
    proxy, held_out = demo_text().splitlines(), demo_text("held_out").splitlines()
    assert not set(proxy) & set(held_out)
    assert len(" ".join(proxy).split()) > 50_000
    assert len(" ".join(held_out).split()) > 8_000
    words = " ".join(held_out).lower().split()
    assert 0.03 < words.count("the") / len(words) < 0.12


def test_demo_text_does_not_depend_on_the_process() -> None:
    """Hash seeds and installed packages change nothing."""
    import hashlib
    import subprocess

    script = (
        "import hashlib; from efficientllava.data.text import demo_text; "
        "print(hashlib.sha256(demo_text().encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout.strip() == hashlib.sha256(demo_text().encode()).hexdigest()


def test_docstrings_are_found_wherever_a_definition_can_stand(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""1"""\nif x:\n def a():\n  """2"""\nelse:\n class B:\n  """3"""\n  async def c(self):\n'
        '   """4"""\ntry:\n def d(): "5"\nexcept E:\n def e(): "6"\nelse:\n def f(): "7"\n'
        'finally:\n def g(): "8"\nwhile x:\n with y:\n  for z in y:\n   def h(): "9"\n'
        'match x:\n case 1:\n  def i(): "10"\nj = [lambda: "no", "no", f"{x}"]\n'
    )
    assert sorted(_docstrings(file), key=int) == [str(number) for number in range(1, 11)]


def byte_pairs(words: list[str], normalised: bool) -> PreTrainedTokenizerFast:
    """A trained byte-pair tokenizer: as GPT-2's (words apart), or as Llama 2's (none apart)."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    if normalised:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"])
    backend.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("normalised", [False, True], ids=["byte level", "one word"])
@pytest.mark.parametrize("piece", [31, 97, 1000])
def test_pieces_have_the_tokens_of_the_whole(
    normalised: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = demo_text()[:6000].replace(". ", ".  ").replace(", ", ",\n \t")
    tokenizer = byte_pairs(text.split("\n"), normalised)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("efficientllava.data.text.PIECE", piece)
    monkeypatch.setattr("efficientllava.data.text.MARGIN", 200)
    assert list(_tokenise(tokenizer, text)) == whole


def test_the_test_text_of_a_folder_is_held_out_before_the_validation_text(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        (tmp_path / f"ptb.{part}.txt").write_text(f" {part} text \n")
    assert read_text(str(tmp_path), "held_out") == "valid text"
    (tmp_path / "ptb.test.txt").write_text(" test text \n")
    assert read_text(str(tmp_path), "held_out") == "test text"
    assert read_text(str(tmp_path)) == "train text"
