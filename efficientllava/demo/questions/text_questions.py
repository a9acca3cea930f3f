"""Questions about short texts: clues, tenses and small tables."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from efficientllava.demo.questions import stories
from efficientllava.demo.questions.facts import Stage, Subject
from efficientllava.demo.questions.items import Ask, Item, offer
from efficientllava.demo.questions.stories import NUMBERS


def clue_ground(draw: random.Random) -> Ask:
    """A sentence with two clues to an animal, a country, a job or a kind of story."""
    kind = draw.choice(("animal", "country", "country", "job", "job", "story", "tense"))
    if kind == "tense":
        return tense_ground(draw)
    clues, subject, stage, hint, question = _CLUES[kind]
    answer = draw.choice(list(clues))
    first, second = draw.sample(clues[answer], 2)
    text = hint.format(first=first, second=second, name=draw.choice(stories.NAMES))

    def ask(draw: random.Random) -> Item:
        return Item(
            subject, stage, "reading", f"clues to a {kind}", question, answer,
            offer(draw, answer, clues), f"The clues point to {answer}.", hint=text,
        )  # fmt: skip

    return ask


_CLUES: dict[str, tuple[Mapping[str, Sequence[str]], Subject, Stage, str, str]] = {
    "animal": (
        stories.ANIMAL_CLUES, "natural science", "lower",
        "It has {first} and {second}.", "What kind of living thing is it?",
    ),
    "country": (
        stories.COUNTRY_CLUES, "social science", "upper",
        "{name} saw {first} and {second}.", "Which country was visited?",
    ),
    "job": (
        stories.JOB_CLUES, "social science", "lower",
        "{name} wrote about the {first} and the {second}.", "What is the job?",
    ),
    "story": (
        stories.STORY_CLUES, "language science", "upper",
        "The story has a {first} and a {second}.", "What kind of story is it?",
    ),
}  # fmt: skip


def tense_ground(draw: random.Random) -> Ask:
    """A sentence and its tense."""
    tense = draw.choice(list(stories.TENSES))
    text = stories.TENSES[tense].format(
        name=draw.choice(stories.NAMES),
        verb=draw.choice(stories.VERBS),
        place=draw.choice(stories.PLACES),
    )

    def ask(draw: random.Random) -> Item:
        return Item(
            "language science", "lower", "grammar", "tenses", "Which tense does the text use?",
            tense, offer(draw, tense, stories.TENSES), f"The tense is {tense}.", hint=text,
        )  # fmt: skip

    return ask


@dataclass(frozen=True)
class Table:
    """A small table of two columns, read aloud: "Prices in coins: fish nine, wool two."

    Attributes:
        forward: question with {key} that asks for the value beside it; backward the reverse.
    """

    subject: Subject
    stage: Stage
    topic: str
    skill: str
    title: str
    keys: Sequence[str]
    values: Sequence[str]
    forward: str
    backward: str


TABLES = (
    Table(
        "language science", "lower", "reading", "who and where", "Places",
        stories.NAMES, stories.PLACES, "Where is {key}?", "Who is at the {value}?",
    ),
    Table(
        "social science", "upper", "economics", "price lists", "Prices in coins",
        stories.GOODS, NUMBERS[1:10], "What is the price of {key}?", "What has price {value}?",
    ),
    Table(
        "natural science", "upper", "physics", "weights", "Weights in kilograms",
        stories.THINGS, NUMBERS[1:10], "What is the weight of the {key}?",
        "What has weight {value}?",
    ),
    Table(
        "natural science", "lower", "physics", "materials", "Materials",
        stories.THINGS, stories.MATERIALS, "What is the material of the {key}?",
        "Which thing is of {value}?",
    ),
)  # fmt: skip


def table_ground(draw: random.Random) -> Ask:
    """A table of two to four rows, to be read either way round."""
    table, count = draw.choice(TABLES), draw.randint(2, 3)
    keys, values = draw.sample(table.keys, count), draw.sample(table.values, count)
    rows = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    text = f"{table.title}: {rows}."

    def ask(draw: random.Random) -> Item:
        row, forward = draw.randrange(count), draw.random() < 0.6
        question = (table.forward if forward else table.backward).format(
            key=keys[row], value=values[row]
        )
        answer = values[row] if forward else keys[row]
        read, others = (values, table.values) if forward else (keys, table.keys)
        pool = draw.sample(others, 5) if count == 2 or draw.random() < 0.3 else read
        return Item(
            table.subject, table.stage, table.topic, table.skill, question, answer,
            offer(draw, answer, pool), f"The table says {keys[row]} {values[row]}.", hint=text,
        )  # fmt: skip

    return ask


def text_words() -> Iterator[str]:
    """Texts that together hold every word of these questions."""
    for names in (stories.NAMES, stories.PLACES, stories.GOODS, stories.THINGS, stories.MATERIALS):
        yield " ".join((*names, *NUMBERS))
    for table in TABLES:
        yield f"{table.title} {table.forward} {table.backward}".format(key="", value="")
    for clues, *_ in _CLUES.values():
        for answer, words in clues.items():
            yield f"{answer} {' '.join(words)}"
    for verb in stories.VERBS:
        yield f"{verb} {verb}s {verb}ed"
