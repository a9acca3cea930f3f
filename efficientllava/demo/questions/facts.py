"""The facts of the demo questions: relations between single words.

Every name is one lower-case word, so that one token is one answer; names of several words are left
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Subject = Literal["natural science", "social science", "language science"]
Stage = Literal["lower", "upper"]  # grades 1-6, grades 7-12
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Relation:
    """Pairs of words and the questions that ask for one of them.

    Attributes:
        statement: the fact as a sentence with {key} and {value}; it becomes the solution.
        forward: question with {key}; its answer is the value. None where it has no clear answer.
        backward: question with {value}; its answer is a key of that value. None likewise.
        pairs: (key, value); several keys may share a value.
        ordered: the pairs stand in an order, and wrong choices are drawn from near the right one.
    """

    topic: str
    skill: str
    subject: Subject
    stage: Stage
    statement: str
    forward: str | None
    backward: str | None
    pairs: Pairs
    ordered: bool = False

    @property
    def keys(self) -> list[str]:
        """Distinct left sides of the pairs, in order."""
        return list(dict.fromkeys(key for key, _ in self.pairs))

    @property
    def values(self) -> list[str]:
        """Distinct right sides of the pairs, in order."""
        return list(dict.fromkeys(value for _, value in self.pairs))


def _pairs(text: str) -> Pairs:
    """'a b, c d' -> (("a", "b"), ("c", "d"))."""
    split = [pair.split() for pair in text.split(",")]
    return tuple((key, value) for key, value in split)


def _groups(text: str) -> Pairs:
    """'value: key key; value: key' -> ((key, value), ...)."""
    split = [group.split(":") for group in text.split(";")]
    return tuple((key, value.strip()) for value, keys in split for key in keys.split())


CAPITALS = _pairs(
    "France Paris, Spain Madrid, Italy Rome, Germany Berlin, Greece Athens, Poland Warsaw, "
    "Norway Oslo, Portugal Lisbon, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, "
    "Austria Vienna, Hungary Budapest, Ireland Dublin, Belgium Brussels, Croatia Zagreb, "
    "Serbia Belgrade, Romania Bucharest, Bulgaria Sofia, Latvia Riga, Estonia Tallinn, "
    "Egypt Cairo, Kenya Nairobi, Ghana Accra, Morocco Rabat, Nigeria Abuja, Senegal Dakar, "
    "Tunisia Tunis, Libya Tripoli, Sudan Khartoum, Uganda Kampala, Angola Luanda, "
    "Zambia Lusaka, Zimbabwe Harare, Rwanda Kigali, Mali Bamako, Namibia Windhoek, "
    "Japan Tokyo, China Beijing, India Delhi, Nepal Kathmandu, Thailand Bangkok, "
    "Vietnam Hanoi, Iran Tehran, Iraq Baghdad, Syria Damascus, Jordan Amman, Lebanon Beirut, "
    "Turkey Ankara, Pakistan Islamabad, Indonesia Jakarta, Qatar Doha, "
    "Peru Lima, Chile Santiago, Brazil Brasilia, Ecuador Quito, Colombia Bogota, "
    "Venezuela Caracas, Uruguay Montevideo, Canada Ottawa, Cuba Havana, Jamaica Kingston"
)
CONTINENTS = _groups(
    "Europe: France Spain Italy Germany Greece Poland Norway Portugal Sweden Finland Denmark "
    "Austria Hungary Ireland Belgium Croatia Serbia Romania Bulgaria Latvia Estonia; "
    "Africa: Egypt Kenya Ghana Morocco Nigeria Senegal Tunisia Libya Sudan Uganda Angola "
    "Zambia Zimbabwe Rwanda Mali Namibia; "
    "Asia: Japan China India Nepal Thailand Vietnam Iran Iraq Syria Jordan Lebanon Pakistan "
    "Indonesia Qatar; "
    "America: Peru Chile Brazil Ecuador Colombia Venezuela Uruguay Canada Cuba Jamaica"
)
CURRENCIES = _groups(
    "euro: France Spain Italy Germany Greece Portugal Finland Austria Ireland Belgium; "
    "krone: Norway Denmark; dinar: Serbia Tunisia Libya Iraq Jordan; peso: Chile Colombia "
    "Uruguay Cuba; rupee: India Nepal Pakistan; dollar: Canada Jamaica Ecuador; "
    "shilling: Kenya Uganda; lira: Turkey; yen: Japan; yuan: China; dong: Vietnam; baht: Thailand; "
    "zloty: Poland; forint: Hungary; dirham: Morocco; cedi: Ghana; kwacha: Zambia"
)
ANIMALS = _groups(
    "bird: eagle owl duck robin penguin parrot crow swan stork heron pigeon; "
    "fish: salmon tuna shark trout cod eel carp perch herring; "
    "mammal: horse whale dog bat tiger mouse rabbit bear otter camel seal; "
    "insect: ant bee beetle moth wasp cricket termite locust; "
    "reptile: snake lizard turtle crocodile gecko iguana cobra; "
    "amphibian: frog toad newt salamander; "
    "plant: oak rose fern grass moss wheat tulip pine daisy ivy; "
    "metal: iron gold copper silver zinc tin lead nickel; "
    "gas: oxygen hydrogen helium nitrogen neon argon; "
    "planet: Mars Venus Saturn Jupiter Uranus Neptune"
)
YOUNG = _pairs(
    "cow calf, dog puppy, cat kitten, sheep lamb, horse foal, goat kid, bear cub, deer fawn, "
    "pig piglet, duck duckling, swan cygnet, goose gosling, hen chick, frog tadpole, "
    "kangaroo joey, owl owlet, hare leveret, eel elver"
)
SYMBOLS = _pairs(
    "hydrogen H, carbon C, nitrogen N, oxygen O, sulfur S, iron Fe, gold Au, silver Ag, "
    "copper Cu, zinc Zn, tin Sn, lead Pb, sodium Na, potassium K, calcium Ca, helium He, "
    "neon Ne, argon Ar, chlorine Cl, mercury Hg, nickel Ni, silicon Si, aluminum Al, magnesium Mg"
)
HABITATS = _groups(
    "desert: camel cactus scorpion rattlesnake; ocean: whale shark squid coral dolphin; "
    "forest: squirrel owl badger woodpecker deer; pond: frog newt dragonfly carp; "
    "savanna: lion zebra giraffe rhinoceros; tundra: caribou lemming walrus"
)
MEASURES = _groups(
    "length: metre mile inch; mass: gram kilogram ounce; time: second hour minute; "
    "volume: litre gallon pint; temperature: celsius kelvin fahrenheit; "
    "electricity: volt ampere ohm; force: newton; energy: joule calorie; power: watt"
)
ORGANS = _pairs(
    "blood heart, breath lungs, thought brain, sight eyes, digestion stomach, hearing ears, "
    "smell nose, taste tongue, touch skin, urine kidneys, bile liver"
)
OPPOSITES = _pairs(
    "hot cold, big small, fast slow, high low, open closed, rich poor, strong weak, early late, "
    "wet dry, light dark, hard soft, happy sad, young old, near far, full empty, true false, "
    "loud quiet, clean dirty, thick thin, long short, brave cowardly, safe dangerous, "
    "sharp blunt, sweet bitter, tight loose, wide narrow, deep shallow, smooth rough, "
    "guilty innocent, ancient modern, cheap expensive, polite rude, generous selfish, "
    "public private, victory defeat, arrive depart, accept refuse, remember forget, "
    "borrow lend, push pull, laugh cry, always never, friend enemy, question answer"
)
SYNONYMS = _pairs(
    "begin start, large huge, glad pleased, angry furious, silent mute, quick rapid, "
    "ill sick, correct right, wealthy affluent, bold daring, weird strange, tiny minute, "
    "shout yell, jump leap, choose select, buy purchase, help assist, fix repair, hide conceal, "
    "show display, end finish, gather collect, answer reply, error mistake, journey trip, "
    "gift present, house home, street road, infant baby, physician doctor, sofa couch, "
    "autumn fall, automobile car, forest woods, stone rock, ocean sea"
)
PAST_TENSES = _pairs(
    "go went, see saw, eat ate, run ran, take took, write wrote, give gave, make made, "
    "find found, know knew, speak spoke, drive drove, sing sang, buy bought, teach taught, "
    "fall fell, grow grew, hold held, build built, sleep slept, bring brought, think thought, "
    "catch caught, fight fought, freeze froze, steal stole, choose chose, break broke, "
    "wear wore, swim swam, drink drank, begin began, ring rang, fly flew, draw drew, blow blew, "
    "throw threw, ride rode, rise rose, hide hid, keep kept, leave left, lose lost, meet met, "
    "send sent, spend spent, stand stood, tell told, win won, sell sold"
)
PLURALS = _pairs(
    "child children, mouse mice, foot feet, tooth teeth, man men, goose geese, leaf leaves, "
    "city cities, box boxes, wolf wolves, story stories, person people, woman women, ox oxen, "
    "knife knives, life lives, shelf shelves, loaf loaves, thief thieves, baby babies, "
    "lady ladies, fox foxes, potato potatoes, hero heroes, bus buses"
)
WORD_CLASSES = _groups(
    "noun: table river courage teacher kitchen freedom window garden; "
    "verb: explain destroy believe travel whisper argue decide admire; "
    "adjective: beautiful ugly enormous famous curious lazy honest fragile; "
    "adverb: quickly slowly carefully gently suddenly proudly; "
    "pronoun: she they we him; preposition: under between through against; "
    "conjunction: because although unless whereas"
)
AUTHORS = _pairs(
    "Hamlet Shakespeare, Emma Austen, Ulysses Joyce, Faust Goethe, Dracula Stoker, "
    "Frankenstein Shelley, Candide Voltaire, Walden Thoreau, Inferno Dante, Iliad Homer, "
    "Aeneid Virgil, Kim Kipling, Persuasion Austen, Odyssey Homer, "
    "Macbeth Shakespeare, Othello Shakespeare, Middlemarch Eliot, Ivanhoe Scott, Waverley Scott"
)

STATES = _pairs(
    "Alabama Montgomery, Alaska Juneau, Arizona Phoenix, California Sacramento, Colorado Denver, "
    "Connecticut Hartford, Delaware Dover, Florida Tallahassee, Georgia Atlanta, Hawaii Honolulu, "
    "Idaho Boise, Illinois Springfield, Indiana Indianapolis, Kansas Topeka, Kentucky Frankfort, "
    "Maine Augusta, Maryland Annapolis, Massachusetts Boston, Michigan Lansing, "
    "Mississippi Jackson, Montana Helena, Nebraska Lincoln, Ohio Columbus, Oregon Salem, "
    "Pennsylvania Harrisburg, Tennessee Nashville, Texas Austin, Vermont Montpelier, "
    "Virginia Richmond, Washington Olympia, Wisconsin Madison, Wyoming Cheyenne"
)
BATTLES = _pairs(
    "Salamis 480, Cannae 216, Hastings 1066, Bannockburn 1314, Crecy 1346, Poitiers 1356, "
    "Agincourt 1415, Towton 1461, Bosworth 1485, Pavia 1525, Mohacs 1526, Lepanto 1571, "
    "Rocroi 1643, Naseby 1645, Blenheim 1704, Poltava 1709, Culloden 1746, Saratoga 1777, "
    "Yorktown 1781, Valmy 1792, Marengo 1800, Austerlitz 1805, Jena 1806, Borodino 1812, "
    "Leipzig 1813, Waterloo 1815, Gettysburg 1863, Sedan 1870, Tannenberg 1914, Verdun 1916, "
    "Stalingrad 1942"
)
_ELEMENTS = (
    "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium "
    "magnesium aluminum silicon phosphorus sulfur chlorine argon potassium calcium scandium "
    "titanium vanadium chromium manganese iron cobalt nickel copper zinc gallium germanium "
    "arsenic selenium bromine krypton rubidium strontium yttrium zirconium niobium molybdenum "
    "technetium ruthenium rhodium palladium silver cadmium indium tin antimony tellurium iodine "
    "xenon"
).split()
ATOMIC_NUMBERS = tuple((name, str(number)) for number, name in enumerate(_ELEMENTS, start=1))
LETTERS = tuple(zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True))
ROMAN_NUMERALS = tuple(
    (tens + ones, str(10 * ten + one))
    for ten, tens in enumerate(("", "X", "XX", "XXX", "XL", "L"))
    for one, ones in enumerate(("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"))
    if 1 < 10 * ten + one
)

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "geography", "capitals", "social science", "upper", "The capital of {key} is {value}.",
        "What is the capital of {key}?", "{value} is the capital of which country?", CAPITALS,
    ),
    Relation(
        "geography", "continents", "social science", "lower", "{key} is in {value}.",
        "On which continent is {key}?", "Which of these countries is in {value}?", CONTINENTS,
    ),
    Relation(
        "economics", "currencies", "social science", "upper",
        "In {key} people pay with the {value}.", "Which money is used in {key}?",
        "Which country uses the {value}?", CURRENCIES,
    ),
    Relation(
        "biology", "classification", "natural science", "lower", "{key} is a kind of {value}.",
        "What kind of thing is {key}?", "Which of these is a kind of {value}?", ANIMALS,
    ),
    Relation(
        "biology", "young animals", "natural science", "lower",
        "A young {key} is called {value}.", "What is a young {key} called?",
        "Which animal was once a {value}?", YOUNG,
    ),
    Relation(
        "biology", "habitats", "natural science", "lower", "The habitat of {key} is the {value}.",
        "What is the habitat of {key}?", "What has its habitat in the {value}?", HABITATS,
    ),
    Relation(
        "biology", "organs", "natural science", "upper", "The organ of {key} is the {value}.",
        "Which organ serves {key}?", "What is the purpose of the {value}?", ORGANS,
    ),
    Relation(
        "chemistry", "symbols", "natural science", "upper", "The symbol of {key} is {value}.",
        "What is the chemical symbol of {key}?", "Which element has the symbol {value}?", SYMBOLS,
    ),
    Relation(
        "physics", "units", "natural science", "upper", "The {key} is a unit of {value}.",
        "What is measured in the unit {key}?", "Which of these is a unit of {value}?", MEASURES,
    ),
    Relation(
        "vocabulary", "opposites", "language science", "lower",
        "The opposite of {key} is {value}.", "What is the opposite of {key}?",
        "Which word has the opposite {value}?", OPPOSITES,
    ),
    Relation(
        "vocabulary", "synonyms", "language science", "upper",
        "The word {key} means the same as {value}.", "Which word means the same as {key}?",
        "Which word could replace {value}?", SYNONYMS,
    ),
    Relation(
        "grammar", "past tense", "language science", "upper",
        "The past tense of {key} is {value}.", "What is the past tense of {key}?",
        "The past tense of which verb is {value}?", PAST_TENSES,
    ),
    Relation(
        "grammar", "plurals", "language science", "lower", "The plural of {key} is {value}.",
        "What is the plural of {key}?", "What is the singular of {value}?", PLURALS,
    ),
    Relation(
        "grammar", "word classes", "language science", "upper", "The word {key} is a {value}.",
        "Which class of words has {key} in it?", "Which of these words is a {value}?",
        WORD_CLASSES,
    ),
    Relation(
        "literature", "authors", "language science", "upper", "{value} wrote {key}.",
        "Who wrote {key}?", None, AUTHORS,
    ),
    Relation(
        "geography", "state capitals", "social science", "lower",
        "The capital of the state {key} is {value}.", "Which city governs the state {key}?",
        "Which state is governed from {value}?", STATES,
    ),
    Relation(
        "history", "battles", "social science", "upper",
        "The battle of {key} was in the year {value}.", "In which year was the battle of {key}?",
        None, BATTLES, ordered=True,
    ),
    Relation(
        "history", "Roman numerals", "social science", "lower",
        "The Roman numeral {key} stands for {value}.", "Which number is the Roman numeral {key}?",
        None, ROMAN_NUMERALS, ordered=True,
    ),
    Relation(
        "chemistry", "atomic numbers", "natural science", "upper",
        "The atomic number of {key} is {value}.", "What is the atomic number of {key}?",
        "Which element has the atomic number {value}?", ATOMIC_NUMBERS, ordered=True,
    ),
    Relation(
        "spelling", "alphabet", "language science", "lower",
        "The letter {value} comes after {key}.", "Which letter comes after {key}?",
        "Which letter comes before {value}?", LETTERS, ordered=True,
    ),
)  # fmt: skip
