"""Questions about facts and sums, to be answered from memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from efficientllava.demo.questions.facts import RELATIONS, Relation
from efficientllava.demo.questions.items import Ask, Item, offer

LARGEST_TERM, LARGEST_FACTOR = 25, 12  # of sums and products


def fact_ground(draw: random.Random) -> Ask:
    """Nothing but the question: a fact of the tables."""
    return ask_fact


def ask_fact(draw: random.Random) -> Item:
    """A question about one fact, either way round, the relations weighted by their size."""
    relation = draw.choices(RELATIONS, [len(relation.pairs) for relation in RELATIONS])[0]
    key, value = draw.choice(relation.pairs)
    forward = relation.backward is None or (relation.forward is not None and draw.random() < 0.6)
    return _fact_item(draw, relation, key, value, forward)


def _fact_item(
    draw: random.Random, relation: Relation, key: str, value: str, forward: bool
) -> Item:
    question = relation.forward if forward else relation.backward
    assert question is not None
    if forward:
        right = {other for known, other in relation.pairs if known == key}
        answer, pool = value, [other for other in relation.values if other not in right]
    else:
        right = {known for known, other in relation.pairs if other == value}
        answer, pool = key, [known for known in relation.keys if known not in right]
    if relation.ordered:
        order = relation.values if forward else relation.keys
        pool = _nearest(order, answer)
    return Item(
        relation.subject,relation.stage, relation.topic, relation.skill,
        question.format(key=key, value=value), answer, offer(draw, answer, pool),
        relation.statement.format(key=key, value=value),
    )  # fmt: skip


def _nearest(order: Sequence[str], answer: str, reach: int = 4) -> list[str]:
    """The neighbours of an answer: wrong choices that look like it."""
    index = order.index(answer)
    return list(order[max(0, index - reach) : index + reach + 1])


def arithmetic_ground(draw: random.Random) -> Ask:
    """Nothing but the question: a sum or a product."""
    return lambda draw: draw.choice((ask_sum, ask_sum, ask_product))(draw)


def ask_sum(draw: random.Random) -> Item:
    """A sum of two numbers among its neighbours."""
    one, other = draw.randint(2, LARGEST_TERM), draw.randint(2, LARGEST_TERM)
    total = one + other
    pool = [total + distance for distance in (-10, -2, -1, 1, 2, 10) if total + distance > 0]
    return Item(
        "natural science", "lower", "numbers", "sums", f"What is {one} plus {other}?", str(total),
        offer(draw, str(total), map(str, pool)), f"{one} plus {other} is {total}.",
    )  # fmt: skip


def ask_product(draw: random.Random) -> Item:
    """A product of two numbers among its neighbours."""
    one, other = draw.randint(2, LARGEST_FACTOR), draw.randint(2, LARGEST_FACTOR)
    product = one * other
    pool = [product - one, product + one, product - other, product + other, product + 1]
    return Item(
        "natural science", "upper", "numbers", "products", f"What is {one} times {other}?",
        str(product), offer(draw, str(product), map(str, pool)),
        f"{one} times {other} is {product}.",
    )  # fmt: skip


def fact_words() -> Iterator[str]:
    """Texts that together hold every word of these questions."""
    for relation in RELATIONS:
        for key, value in relation.pairs:
            yield f"{key} {value}"
        yield f"{relation.forward} {relation.backward or ''}".format(key="", value="")
    largest = max(2 * LARGEST_TERM + 10, LARGEST_FACTOR * (LARGEST_FACTOR + 1))
    yield " ".join(map(str, range(largest + 1)))
