"""Texts made by chance: facts that are used late, and worked problems."""

from collections.abc import Iterator
from random import Random

NAMES = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Farid", "Grace", "Henry", "Irina", "Jonas", "Karim"),
    *("Laura", "Marco", "Nadia", "Oscar", "Paula", "Quentin", "Rosa", "Stefan", "Tanya", "Victor"),
)
TOWNS = ("Lisbon", "Oslo", "Kyoto", "Cairo", "Lima", "Dublin", "Prague", "Quito", "Tunis", "Bergen")
TRADES = ("baker", "surgeon", "pilot", "gardener", "lawyer", "potter", "welder", "tailor", "violinist")
PETS = ("cat", "parrot", "tortoise", "rabbit", "hamster", "greyhound", "canary", "goldfish")
COLORS = ("red", "green", "blue", "yellow", "purple", "white", "black", "orange")
WEATHER = ("rain", "fog", "bright sun", "a cold wind", "snow", "thunder")
THINGS = ("pencils", "apples", "marbles", "stamps", "candles", "bricks", "tickets", "shells")
FILLERS = (
    "The morning began with {weather}, and the street in front of the station stayed empty until noon.",
    "Somebody had left a {color} umbrella on the bench, and nobody came back for it.",
    "The old clock above the door had stopped, so that people asked each other for the time.",
    "In the afternoon {weather} came over the hills, and the market closed earlier than usual.",
    "A {color} van stood before the bakery while its driver looked for the right address.",
    "They spoke about the price of bread, about the new bridge, and about nothing in particular.",
)


def recall(draw: Random, length: int) -> str:
    """Return facts on people, talk of other things, and then questions with their answers.

    Args:
        draw: decides everything.
        length: characters, at least.
    """
    people = {name: _person(draw) for name in draw.sample(NAMES, 5)}
    lines = ["Read the following notes with care. They will be needed later.", ""]
    lines += [_introduction(name, facts) for name, facts in people.items()]
    lines += ["", *(_filler(draw) for _ in range(4)), "", "Now the questions about the notes.", ""]
    text = "\n".join(lines)
    while len(text) < length:
        name = draw.choice(list(people))
        text += _question(draw, name, people[name])
        if draw.random() < 0.3:
            text += _filler(draw) + "\n"
    return text


def _person(draw: Random) -> dict[str, str]:
    return {
        "town": draw.choice(TOWNS),
        "trade": draw.choice(TRADES),
        "pet": draw.choice(PETS),
        "color": draw.choice(COLORS),
        "code": str(draw.randrange(1000, 10000)),
        "friend": draw.choice(NAMES),
    }


def _introduction(name: str, facts: dict[str, str]) -> str:
    return (
        f"{name} lives in {facts['town']} and works as a {facts['trade']}. {name} has a {facts['pet']}, "
        f"paints every door {facts['color']}, uses the locker code {facts['code']}, and is a friend of "
        f"{facts['friend']}."
    )


def _filler(draw: Random) -> str:
    filler = draw.choice(FILLERS)
    return filler.format(weather=draw.choice(WEATHER), color=draw.choice(COLORS))


QUESTIONS = {
    "town": ("Where does {name} live?", "{name} lives in {fact}."),
    "trade": ("What is the trade of {name}?", "{name} works as a {fact}."),
    "pet": ("Which animal does {name} have?", "{name} has a {fact}."),
    "color": ("Which color do the doors of {name} have?", "{name} paints every door {fact}."),
    "code": ("What is the locker code of {name}?", "The locker code of {name} is {fact}."),
    "friend": ("Who is a friend of {name}?", "{name} is a friend of {fact}."),
}


def _question(draw: Random, name: str, facts: dict[str, str]) -> str:
    what = draw.choice(list(QUESTIONS))
    question, answer = (part.format(name=name, fact=facts[what]) for part in QUESTIONS[what])
    return f"Question: {question}\nAnswer: {answer}\n"


def reasoning(draw: Random, length: int) -> str:
    """Return worked word problems and chains of variables, one after the other; as :func:`recall`."""
    text = "Here are problems, each worked step by step.\n\n"
    while len(text) < length:
        steps = _chain(draw) if draw.random() < 0.5 else _word_problem(draw)
        text += "\n".join(steps) + "\n\n"
    return text


def _word_problem(draw: Random) -> Iterator[str]:
    name, other = draw.sample(NAMES, 2)
    thing = draw.choice(THINGS)
    boxes, each, given = draw.randrange(3, 13), draw.randrange(4, 25), draw.randrange(2, 11)
    price = draw.randrange(2, 10)
    sold = f"sells the others for {price} coins each"
    total, left = boxes * each, boxes * each - given
    yield (
        f"Problem: {name} buys {boxes} boxes with {each} {thing} in each box. {name} gives {given} "
        f"{thing} to {other} and {sold}. How many coins does {name} get?"
    )
    yield f"Step 1: {name} buys {boxes} boxes of {each}, so there are {boxes} * {each} = {total} {thing}."
    yield f"Step 2: {other} gets {given} of them, so {total} - {given} = {left} {thing} are left."
    gets = f"{name} gets {left} * {price} = {left * price} coins"
    yield f"Step 3: Each is sold for {price} coins, so {gets}."
    yield f"Answer: {left * price}"


def _chain(draw: Random) -> Iterator[str]:
    letters = draw.sample("abcdefghkmnpqrstuvwxyz", 8)
    values = {letters[0]: draw.randrange(2, 30), letters[1]: draw.randrange(2, 30)}
    known = " and ".join(f"{letter} = {value}" for letter, value in values.items())
    yield f"Problem: Let {known}. Then:"
    rules = []
    for letter in letters[2:]:
        one, two = draw.sample(list(values), 2)
        sign = draw.choice("+-+*") if values[one] * values[two] < 500 else draw.choice("+-")
        one_value, two_value = values[one], values[two]
        results = {"+": one_value + two_value, "-": one_value - two_value, "*": one_value * two_value}
        values[letter] = results[sign]
        yield f"{letter} = {one} {sign} {two}"
        rules.append((letter, one, sign, two))
    yield f"What is {letters[-1]}?"
    for letter, one, sign, two in rules:
        worked = f"{values[one]} {sign} {values[two]} = {values[letter]}"
        yield f"We know {one} is {values[one]} and {two} is {values[two]}, so {letter} = {worked}."
    yield f"Answer: {values[letters[-1]]}"
