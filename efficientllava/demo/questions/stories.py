"""Short texts to be read: who went where, what it costs, clues to an animal, a country, a job."""

from __future__ import annotations

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip
NAMES = ("Anna", "Ben", "Carl", "Dora", "Emma", "Fred", "Gina", "Hugo", "Ivan", "Jane")
PLACES = (
    "market", "park", "school", "beach", "library", "museum", "forest", "station", "farm",
    "harbour",
)  # fmt: skip
GOODS = ("bread", "milk", "apples", "fish", "wool", "salt", "honey", "cloth", "cheese", "rice")
THINGS = ("cup", "stone", "spoon", "lamp", "brick", "ball", "box", "plate", "bottle", "coin")
MATERIALS = ("iron", "glass", "wood", "paper", "gold", "rubber")

# The clues to one answer; a text gives two of them.
ANIMAL_CLUES = {
    "bird": ("feathers", "a beak", "wings", "a nest", "hollow bones", "a song"),
    "fish": ("gills", "fins", "a swim bladder", "wet scales", "soft eggs", "a tail fin"),
    "mammal": ("fur", "milk", "whiskers", "warm blood", "hooves", "live babies"),
    "insect": ("six legs", "antennae", "a sting", "a hive", "a cocoon", "compound eyes"),
    "plant": ("leaves", "roots", "petals", "seeds", "a stem", "bark"),
    "reptile": ("dry scales", "cold blood", "a shell", "a forked tongue", "fangs", "venom"),
}
COUNTRY_CLUES = {
    "France": ("louvre", "seine", "croissants", "perfume", "vineyards"),
    "Egypt": ("pyramids", "nile", "sphinx", "mummies", "pharaohs"),
    "Italy": ("colosseum", "vatican", "gondolas", "pizza", "vesuvius"),
    "Japan": ("samurai", "sushi", "geisha", "kimono", "origami"),
    "China": ("pandas", "silk", "dragons", "tea", "lanterns"),
    "India": ("ganges", "elephants", "curry", "saris", "tigers"),
    "Peru": ("llamas", "andes", "incas", "alpacas", "condors"),
    "Brazil": ("amazon", "samba", "carnival", "parrots", "favelas"),
    "Canada": ("maple", "moose", "snow", "hockey", "beavers"),
    "Greece": ("acropolis", "olives", "columns", "feta", "islands"),
    "Spain": ("flamenco", "bullfights", "tapas", "guitars", "oranges"),
    "Norway": ("fjords", "vikings", "trolls", "skis", "reindeer"),
    "Kenya": ("safari", "lions", "giraffes", "savanna", "zebras"),
    "Germany": ("castles", "sausages", "rhine", "beer", "forests"),
}
JOB_CLUES = {
    "carpenter": ("hammer", "saw", "nails", "planks"),
    "doctor": ("stethoscope", "bandage", "medicine", "syringe"),
    "painter": ("brush", "easel", "canvas", "palette"),
    "farmer": ("tractor", "plough", "barn", "harvest"),
    "baker": ("oven", "flour", "dough", "yeast"),
    "sailor": ("anchor", "mast", "compass", "deck"),
    "teacher": ("chalk", "classroom", "homework", "pupils"),
    "tailor": ("needle", "thread", "scissors", "buttons"),
    "astronomer": ("telescope", "comets", "stars", "observatory"),
    "judge": ("courtroom", "verdict", "gavel", "trial"),
    "miner": ("tunnel", "coal", "helmet", "pickaxe"),
    "musician": ("violin", "melody", "concert", "orchestra"),
}
STORY_CLUES = {
    "fantasy": ("dragon", "wizard", "elf", "spell", "unicorn"),
    "mystery": ("detective", "thief", "clue", "crime", "alibi"),
    "science": ("rocket", "robot", "alien", "laser", "spaceship"),
    "history": ("king", "war", "castle", "knight", "siege"),
    "sport": ("match", "goal", "team", "coach", "referee"),
}
TENSES = {
    "present": "Every day {name} {verb}s at the {place}.",
    "past": "Yesterday {name} {verb}ed at the {place}.",
    "future": "Tomorrow {name} will {verb} at the {place}.",
}
VERBS = ("walk", "play", "jump", "work", "look", "talk")
