"""Questions about scenes, handwritten digits and maps."""

from __future__ import annotations

import random

from efficientllava.demo.questions import stories
from efficientllava.demo.questions.items import Ask, Item, offer
from efficientllava.demo.questions.pictures import (
    COLOURS,
    CORNERS,
    SHAPES,
    Picture,
    draw_digit,
    draw_map,
    draw_scene,
)
from efficientllava.demo.questions.stories import NUMBERS


class _Scene:
    """Questions about four cells with coloured shapes."""

    def __init__(self, picture: Picture) -> None:
        self.picture, self.shapes, self.colours = picture, picture.shapes, picture.colours
        self.cells = [cell for cell in range(4) if self.shapes[cell]]
        # those of which there is only one
        self.single_shapes = [c for c in self.cells if self.shapes.count(self.shapes[c]) == 1]
        self.single_colours = [c for c in self.cells if self.colours.count(self.colours[c]) == 1]

    def colour_of_shape(self, draw: random.Random) -> Item:
        """The colour of a shape that is there once."""
        cell = draw.choice(self.single_shapes)
        shape, colour = str(self.shapes[cell]), str(self.colours[cell])
        return Item(
            "natural science", "lower", "pictures", "colours", f"What colour is the {shape}?",
            colour, offer(draw, colour, COLOURS), f"The {shape} is {colour}.", picture=self.picture,
        )  # fmt: skip

    def shape_of_colour(self, draw: random.Random) -> Item:
        """The name of the only shape in a colour."""
        cell = draw.choice(self.single_colours)
        shape, colour = str(self.shapes[cell]), str(self.colours[cell])
        return Item(
            "language science", "lower", "pictures", "naming shapes",
            f"Which word names the {colour} shape?", shape, offer(draw, shape, SHAPES),
            f"The {colour} shape is a {shape}.", picture=self.picture,
        )  # fmt: skip

    def shape_at_corner(self, draw: random.Random) -> Item:
        """The shape in a cell."""
        cell = draw.choice(self.cells)
        shape, corner = str(self.shapes[cell]), CORNERS[cell]
        return Item(
            "social science", "lower", "pictures", "directions", f"What is in the {corner}?",
            shape, offer(draw, shape, SHAPES), f"In the {corner} is a {shape}.",
            picture=self.picture,
        )  # fmt: skip

    def corner_of_colour(self, draw: random.Random) -> Item:
        """The cell of the only shape in a colour."""
        cell = draw.choice(self.single_colours)
        colour, corner = str(self.colours[cell]), CORNERS[cell]
        return Item(
            "social science", "upper", "pictures", "directions",
            f"Where is the {colour} shape?", corner, offer(draw, corner, CORNERS),
            f"The {colour} shape is in the {corner}.", picture=self.picture,
        )  # fmt: skip

    def colour_shown(self, draw: random.Random) -> Item:
        """Ask for the colour, of several, that is in the picture."""
        colour = draw.choice([str(self.colours[cell]) for cell in self.cells])
        absent = [other for other in COLOURS if other not in self.colours]
        return Item(
            "social science", "upper", "pictures", "finding colours",
            "Which of these colours is shown?", colour, offer(draw, colour, absent),
            f"There is something {colour}.", picture=self.picture,
        )  # fmt: skip

    def shape_shown(self, draw: random.Random) -> Item:
        """Ask for the shape, of several, that is in the picture."""
        shape = draw.choice([str(self.shapes[cell]) for cell in self.cells])
        absent = [other for other in SHAPES if other not in self.shapes]
        return Item(
            "language science", "upper", "pictures", "finding shapes",
            "Which of these shapes is shown?", shape, offer(draw, shape, absent),
            f"There is a {shape}.", picture=self.picture,
        )  # fmt: skip

    def count(self, draw: random.Random) -> Item:
        """How many shapes there are."""
        answer = NUMBERS[len(self.cells)]
        return Item(
            "natural science", "lower", "pictures", "counting", "How many shapes are there?",
            answer, offer(draw, answer, NUMBERS[1:6]), f"There are {answer}.", picture=self.picture,
        )  # fmt: skip


def scene_ground(draw: random.Random) -> Ask:
    """Four cells with coloured shapes: shapes, colours, corners, how many."""
    scene = _Scene(draw_scene(draw))
    asks: list[Ask] = [scene.shape_at_corner, scene.count]
    if len(set(scene.colours) - {None}) < len(COLOURS):
        asks.append(scene.colour_shown)
    if len(set(scene.shapes) - {None}) < len(SHAPES):
        asks.append(scene.shape_shown)
    if scene.single_shapes:
        asks.append(scene.colour_of_shape)
    if scene.single_colours:
        asks += [scene.shape_of_colour, scene.corner_of_colour]
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
