"""The words of the worlds: every name, value and label that a generated fact can hold.

Each list is a category, and a word stands in one category only, so that a labelled example means one thing.
Values that follow "a" begin with a consonant, and every word is a single token of the zoo's tokenizer.
The order of the words is part of what a seed means: append to a list, never sort it.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """Anna Bruno Clara David Elsa Felix Greta Hugo Irene Jonas Karin Lucas Marta Nils Olga Peter Rosa Simon Tilda
    Viktor Wanda Yusuf Zelda Amir Bianca Carlos Dora Emil Fatima Goran Heidi Ivan Julia Kofi Lena Marco Nadia Oscar
    Petra Rafael"""
)
LAST_NAMES = _words(
    """Abbott Barlow Carver Dalton Everett Fletcher Granger Holloway Ingram Jarvis Keller Langley Mercer Norwood Osborne
    Prescott Quimby Radcliffe Sawyer Thorne Underhill Vickers Walden Yardley Ashby Bexley Cobb Drummond Ellwood Finch
    Garrick Hobbs Irving Jessup Kirby Lockwood Marlowe Nash Orwell Pryor"""
)
TOWNS = _words(
    """Larkby Dunmore Westrow Ferngate Holmwick Ravensby Stonely Brackford Millhaven Oakmere Pinewold Redcliff Saltney
    Thornbury Underwold Vellmoor Wyndale Ashcombe Birchley Coldbrook Deepwell Eastmarsh Foxholt Greyport Harrowby
    Inverley Kestrel Longmead Marlstow Nethercot"""
)
RIVERS = _words(
    """Aldra Brenn Corva Delph Esk Fenna Garve Hask Ilmen Jura Kelda Lorne Morva Nidd Orla Pell Quill Rother Severn
    Tarn Ulver Vire Wharfe Yarrow Zann"""
)
JOBS = _words(
    """baker carpenter doctor teacher sailor farmer tailor miner painter plumber nurse librarian mechanic fisher
    gardener locksmith barber butcher pilot surgeon clockmaker weaver potter lawyer judge porter shepherd brewer
    roofer dentist"""
)
PETS = _words(
    """cat dog parrot rabbit hamster turtle ferret pony goat hedgehog canary lizard snake spider tortoise pigeon
    mouse duck goose falcon raven donkey lamb pig squirrel beetle frog newt badger fox"""
)
INSTRUMENTS = _words(
    """violin cello flute trumpet piano guitar harp drum clarinet banjo tuba bassoon fiddle lute mandolin trombone
    saxophone bugle zither harmonica lyre piccolo bagpipe tambourine cornet viola whistle gong sitar
    xylophone"""
)
FOODS = _words(
    """rice soup bread cheese pasta stew porridge salad curry pancakes dumplings beans lentils noodles sausages
    trout salmon herring mushrooms potatoes cabbage carrots pumpkin spinach plums cherries pears figs raisins
    chestnuts"""
)
PRODUCTS = _words(
    """candles carpets barrels ropes boots hats gloves kites bells bricks tiles baskets blankets clocks combs
    buttons ribbons mirrors saddles sails brooms buckets ladders nails needles quilts lamps bottles
    scarves wheels"""
)
COLOURS = _words(
    """red blue green yellow white black purple teal pink brown grey crimson turquoise violet scarlet
    maroon"""
)
MATERIALS = _words(
    """copper silver golden iron wooden glass leather stone marble bronze velvet cotton clay bone wax pewter"""
)
THINGS = _words(
    """lantern kettle mask hammer vase ring crown goblet statue compass chest dagger pipe plate spoon whip
    thimble locket medal candlestick flask jug ladle bracelet"""
)
PLACES = _words(
    """attic cellar kitchen pantry library stable garage chapel workshop greenhouse hallway nursery tower barn
    parlour bakery boathouse courtyard lighthouse dungeon vault shed loft balcony"""
)
LABELS = _words("dax wug fep blick toma zorn kiki plim gazzer modi lorp snee vonk harl tesh quib")

CATEGORIES: dict[str, tuple[str, ...]] = {
    "town": TOWNS,
    "river": RIVERS,
    "job": JOBS,
    "pet": PETS,
    "instrument": INSTRUMENTS,
    "food": FOODS,
    "product": PRODUCTS,
    "colour": COLOURS,
    "material": MATERIALS,
    "thing": THINGS,
    "place": PLACES,
    "name": FIRST_NAMES,
}
"""What a word is. Labelled examples ask for it under a meaningless label word."""

NAMES = FIRST_NAMES + LAST_NAMES + TOWNS
"""What key-value records give as values."""

KEYS = JOBS + PETS + INSTRUMENTS + FOODS + PRODUCTS + COLOURS + MATERIALS + THINGS + PLACES
"""What key-value records are found by."""

WORDS = tuple(word for words in CATEGORIES.values() for word in words) + LAST_NAMES
"""All words but the labels."""
