"""Questions about scenes, handwritten digits and maps."""

from __future__ import annotations

import random

from efficientllava.demo.questions import stories
from efficientllava.demo.questions.items import Ask, Item, offer
from efficientllava.demo.questions.pictures import (
    COLOURS,
    CORNERS,
    SHAPES,
    draw_digit,
    draw_map,
    draw_scene,
)
from efficientllava.demo.questions.stories import NUMBERS


def scene_ground(draw: random.Random) -> Ask:
    """Four cells with coloured shapes: shapes, colours, corners, how many."""
    picture = draw_scene(draw)
    cells = [cell for cell in range(4) if picture.shapes[cell]]
    shapes, colours = picture.shapes, picture.colours
    single_shapes = [cell for cell in cells if shapes.count(shapes[cell]) == 1]
    single_colours = [cell for cell in cells if colours.count(colours[cell]) == 1]

    def colour_of_shape(draw: random.Random) -> Item:
        cell = draw.choice(single_shapes)
        shape, colour = str(shapes[cell]), str(colours[cell])
        return Item(
            "natural science", "lower", "pictures", "colours", f"What colour is the {shape}?",
            colour, offer(draw, colour, COLOURS), f"The {shape} is {colour}.", picture=picture,
        )  # fmt: skip

    def shape_of_colour(draw: random.Random) -> Item:
        cell = draw.choice(single_colours)
        shape, colour = str(shapes[cell]), str(colours[cell])
        return Item(
            "language science", "lower", "pictures", "naming shapes",
            f"Which word names the {colour} shape?", shape, offer(draw, shape, SHAPES),
            f"The {colour} shape is a {shape}.", picture=picture,
        )  # fmt: skip

    def shape_at_corner(draw: random.Random) -> Item:
        cell = draw.choice(cells)
        shape, corner = str(shapes[cell]), CORNERS[cell]
        return Item(
            "social science", "lower", "pictures", "directions", f"What is in the {corner}?",
            shape, offer(draw, shape, SHAPES), f"In the {corner} is a {shape}.",
            picture=picture,
        )  # fmt: skip

    def corner_of_colour(draw: random.Random) -> Item:
        cell = draw.choice(single_colours)
        colour, corner = str(colours[cell]), CORNERS[cell]
        return Item(
            "social science", "upper", "pictures", "directions",
            f"Where is the {colour} shape?", corner, offer(draw, corner, CORNERS),
            f"The {colour} shape is in the {corner}.", picture=picture,
        )  # fmt: skip

    def colour_shown(draw: random.Random) -> Item:
        colour = draw.choice([str(colours[cell]) for cell in cells])
        absent = [other for other in COLOURS if other not in colours]
        return Item(
            "social science", "upper", "pictures", "finding colours",
            "Which of these colours is shown?", colour, offer(draw, colour, absent),
            f"There is something {colour}.", picture=picture,
        )  # fmt: skip

    def shape_shown(draw: random.Random) -> Item:
        shape = draw.choice([str(shapes[cell]) for cell in cells])
        absent = [other for other in SHAPES if other not in shapes]
        return Item(
            "language science", "upper", "pictures", "finding shapes",
            "Which of these shapes is shown?", shape, offer(draw, shape, absent),
            f"There is a {shape}.", picture=picture,
        )  # fmt: skip

    def count(draw: random.Random) -> Item:
        answer = NUMBERS[len(cells)]
        return Item(
            "natural science", "lower", "pictures", "counting", "How many shapes are there?",
            answer, offer(draw, answer, NUMBERS[1:6]), f"There are {answer}.", picture=picture,
        )  # fmt: skip

    asks: list[Ask] = [shape_at_corner, count]
    if len(set(colours) - {None}) < len(COLOURS):
        asks.append(colour_shown)
    if len(set(shapes) - {None}) < len(SHAPES):
        asks.append(shape_shown)
    if single_shapes:
        asks.append(colour_of_shape)
    if single_colours:
        asks += [shape_of_colour, corner_of_colour]
    return lambda draw: draw.choice(asks)(draw)


def digit_ground(draw: random.Random) -> Ask:
    """A real digit: its number, odd or even, a sum, a price."""
    picture = draw_digit(draw)
    assert picture.digit is not None
    digit = picture.digit
    name, goods = draw.choice(stories.NAMES), draw.choice(stories.GOODS)

    def number(draw: random.Random) -> Item:
        answer = NUMBERS[digit]
        return Item(
            "natural science", "lower", "numbers", "reading digits", "Which number is shown?",
            answer, offer(draw, answer, NUMBERS[:10]), f"The number is {answer}.",
            picture=picture,
        )  # fmt: skip

    def parity(draw: random.Random) -> Item:
        answer = "odd" if digit % 2 else "even"
        return Item(
            "natural science", "upper", "numbers", "odd and even",
            "Is the number shown odd or even?", answer, offer(draw, answer, ("odd", "even")),
            f"{NUMBERS[digit]} is {answer}.", picture=picture,
        )  # fmt: skip

    def addition(draw: random.Random) -> Item:
        more = draw.randint(1, 2)
        answer = NUMBERS[digit + more]
        return Item(
            "natural science", "upper", "numbers", "addition",
            f"What is the number shown plus {NUMBERS[more]}?", answer,
            offer(draw, answer, NUMBERS), f"{NUMBERS[digit]} plus {NUMBERS[more]} is {answer}.",
            picture=picture,
        )  # fmt: skip

    def price(draw: random.Random) -> Item:
        answer = NUMBERS[digit]
        return Item(
            "social science", "lower", "economics", "prices",
            f"How many coins does {name} pay for the {goods}?", answer,
            offer(draw, answer, NUMBERS[:10]), f"The number is {answer}.", picture=picture,
            hint=f"{name} buys {goods} for the number of coins that is shown.",
        )  # fmt: skip

    return lambda draw: draw.choice((number, number, parity, addition, price))(draw)


def map_ground(draw: random.Random) -> Ask:
    """A map of four countries: corners and cardinal directions."""
    picture = draw_map(draw)
    colours = [str(colour) for colour in picture.colours]

    def country_at_corner(draw: random.Random) -> Item:
        cell = draw.randrange(4)
        answer, corner = colours[cell], CORNERS[cell]
        return Item(
            "social science", "lower", "geography", "reading maps",
            f"Which country is in the {corner}?", answer, offer(draw, answer, COLOURS),
            f"The country in the {corner} is {answer}.", picture=picture,
        )  # fmt: skip

    def neighbour(draw: random.Random) -> Item:
        cell = draw.randrange(4)
        if draw.random() < 0.5:
            other, direction = cell ^ 2, "north" if cell >= 2 else "south"
        else:
            other, direction = cell ^ 1, "west" if cell % 2 else "east"
        answer = colours[other]
        pool = [colour for colour in COLOURS if colour != colours[cell]]
        return Item(
            "social science", "upper", "geography", "cardinal directions",
            f"Which country is {direction} of the {colours[cell]} country?", answer,
            offer(draw, answer, pool),
            f"{direction} of the {colours[cell]} country is the {answer} one.", picture=picture,
        )  # fmt: skip

    return lambda draw: draw.choice((country_at_corner, neighbour))(draw)
