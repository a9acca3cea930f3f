"""The normalisation of m4c with its oddities, and the leave-one-out accuracy."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllava.benchmarks.vizwiz.contractions import CONTRACTIONS
from efficientllava.benchmarks.vizwiz.vqa_answers import answer_accuracy, normalise


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Unanswerable", "unanswerable"),
        ("The cat.", "cat"),
        ("1,000", "1000"),
        ("what's that?", "what 's that"),
        ("whats", "what's"),
        ("what's", "what 's"),
        ("Dont", "don't"),
        ("Im", "im"),  # keys in upper case never match
        ("somebody'd", "somebodyd"),
        ("none", "0"),
        ("Ten of a kind", "10 of kind"),
        ("10:30", "10:30"),
        ("50% $5 #1 a&b *", "50% $5 #1 a&b *"),
        ("red/blue", "red blue"),
        ("red / blue-green/x", "red bluegreenx".replace("bluegreenx", "blue greenx")),
        ("semi-final -x", "semifinal x"),
        ("3.5", "3.5"),
        ("v.2", "v.2"),
        ("a.b", "ab"),
        ("line\nbreak\ttab", "line break tab"),
        ("a\tan\tthe", ""),
        ("", ""),
        ("don\u2019t", "don\u2019t"),
        ("(x)", "x"),
        ("." * 40, "." * 8),
        ("x" + "." * 33, "x."),
    ],
)
def test_examples(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def plain(text: str) -> str:
    """The published steps, in their order, as a list of loops."""
    numbers = "zero one two three four five six seven eight nine ten".split()
    text = text.lower()
    for mark in ",?":
        text = "".join(letter for letter in text if letter != mark)
    text = text.replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        spaced = any(pair in before for pair in (mark + " ", " " + mark))
        text = ("" if spaced else " ").join(text.split(mark))
    kept, taken = [], 0
    for place, letter in enumerate(text):
        digit_next = re.match(r"\d", text[place + 1 : place + 2]) is not None
        if letter == "." and not digit_next and taken < 32:
            taken += 1
        else:
            kept.append(letter)
    words = []
    for word in "".join(kept).lower().split():
        word = "0" if word == "none" else str(numbers.index(word)) if word in numbers else word
        if word not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


ODD = st.text(
    alphabet=st.sampled_from(list("aeht'sn ,?.;/[]\"{}()=+\\_-><@`!:%1 3\n\tX"))
    | st.characters(codec="utf-8"),
    max_size=60,
)


@given(ODD)
def test_equals_the_steps_written_out(text: str) -> None:
    assert normalise(text) == plain(text)


def test_leave_one_out_by_place() -> None:
    expected = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 10: 1.0}
    for matches, accuracy in expected.items():
        answers = ["Yes."] * matches + [f"other {n}" for n in range(10 - matches)]
        assert answer_accuracy("the yes", answers) == pytest.approx(accuracy, abs=1e-12)


def test_table_is_complete() -> None:
    assert len(CONTRACTIONS) == 120
    assert sum(key != key.lower() for key in CONTRACTIONS) == 4
