# ruff: noqa: SIM905 - word lists are easier to read and to extend as text
"""Seeded generator of plain English sentences: numbers, times, places, commands, everyday clauses.

Every sentence belongs to one of three splits, decided by a hash of its words, so a sentence met in training
can never occur in the evaluation or in the bundled clips, whoever draws it and with whatever seed.
Numbers and times are always spelled out, so a transcript has one right spelling.
"""

from __future__ import annotations

import hashlib
import random
import re

SPLITS = ("train", "eval", "samples")

ONES = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

LISTS: dict[str, list[str]] = {
    "colour": "red blue green yellow black white brown grey orange purple pink silver golden".split(),
    "size": "small large big little tiny huge long short wide narrow heavy light tall".split(),
    "quality": """old new young clean dirty warm cold quiet loud empty full broken simple useful cheap
        expensive strong weak soft hard bright dark fresh dry wet pretty
        strange famous clever lazy careful happy sad
        angry hungry tired busy friendly polite kind gentle brave honest""".split(),
    "thing": """table chair lamp book letter key clock bottle cup plate knife spoon bag box coat hat shoe
        shirt jacket blanket pillow mirror picture
        camera phone radio computer keyboard ticket map umbrella basket
        bucket ladder hammer rope candle pencil notebook newspaper magazine suitcase wallet guitar piano drum
        bicycle engine wheel window door curtain carpet towel parcel envelope battery torch""".split(),
    "food": """bread butter cheese milk coffee tea soup rice pasta salad chicken fish beef apple banana cherry
        lemon tomato potato carrot onion garlic sugar salt pepper honey chocolate cake biscuit sandwich egg
        water juice""".split(),
    "animal": """dog cat horse cow sheep goat pig rabbit mouse bird duck goose owl eagle fox wolf bear lion
        tiger monkey elephant snake spider turtle frog dolphin whale""".split(),
    "person": """teacher doctor nurse driver farmer baker painter singer writer student lawyer soldier sailor
        pilot captain waiter engineer manager gardener neighbour visitor stranger child woman man boy girl
        policeman carpenter musician professor secretary""".split(),
    "name": """Alice Martin Susan David Emma Peter Laura Thomas Julia Robert Hannah Daniel Maria George Helen
        Victor Oliver Sophie Arthur Nina Edward Clara Henry Monica Samuel Rachel""".split(),
    "room": "kitchen bedroom bathroom garage garden office hallway cellar attic library balcony".split(),
    "place": """station airport market hospital museum theatre restaurant school church bridge harbour factory
        hotel bank castle village river mountain forest beach island lake farm park stadium tower
        university bakery pharmacy cinema""".split(),
    "city": """London Paris Berlin Madrid Rome Vienna Lisbon Dublin Oslo Athens Cairo Boston Chicago Toronto
        Sydney Tokyo Mumbai Moscow Warsaw Prague Zurich Geneva Hamburg Glasgow Manchester""".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "month": """January February March April May June July August September October November
        December""".split(),
    "weather": "sunny cloudy rainy windy foggy stormy snowy cold warm hot".split(),
    "direction": "north south east west".split(),
    "past": """found lost bought sold cleaned painted repaired carried dropped moved opened closed hid broke
        borrowed returned noticed wanted needed forgot brought took kept liked washed""".split(),
    "present": """needs wants likes sells cleans repairs carries keeps paints buys brings finds loves
        remembers""".split(),
    "base": """open close clean move find bring take carry paint repair sell buy keep wash check lift push
        pull hide count""".split(),
    "going": """waiting sleeping singing running walking reading writing laughing cooking working dancing
        swimming talking crying playing standing sitting hiding""".split(),
    "went": "walked ran drove travelled hurried returned moved cycled".split(),
    "adverb": """quickly slowly quietly carefully suddenly often always never sometimes already
        finally""".split(),
    "prep": "near behind beside under above opposite inside outside".split(),
    "when": """yesterday;today;tomorrow;tonight;this morning;this afternoon;this evening;last night;last week;
        next week;next month;last summer;next winter;every day;after lunch;before dinner;
        after school""".split(";"),
    "unit": """minutes hours days weeks months years metres miles kilometres kilograms litres dollars pounds
        euros degrees percent""".split(),
    "device": """lights heating radio television alarm music fan oven printer computer camera heater
        microphone""".split(),
    "subject": "I,you,we,they,he,she,my brother,my sister,my mother,my father,our friends,the children".split(
        ","
    ),
    "reason": """it was late;it was raining;nobody was home;the train was delayed;the shop was closed;
        the weather was bad;we had no time;the road was blocked;everyone was hungry;it cost too much;
        the music was too loud;the phone was broken;I felt tired;there was nothing to eat""".split(";"),
}
for _name in ("when", "reason"):  # undo the line breaks
    LISTS[_name] = [" ".join(words.split()) for words in LISTS[_name]]

CLAUSES = """
{subject} {past} {a thing} {place phrase}
{subject} {past} {the thing} {when}
{the person} {past} {a thing} and {a thing}
{the person} {adverb} {past} {the thing}
{name} {past} {num} {things} {place phrase}
{name} {present} {a thing} and {num} {things}
{name} and {name} {went} to {the place} {when}
{subject} {went} from {city} to {city} in {num} {unit}
{the animal} is {going} {place phrase}
{num} {animals} were {going} {place phrase}
{the person} was {going} in {the room} {when}
{the thing} in {the room} is {colour} and {quality}
{the thing} {place phrase} was {quality}
{the food} is on {the thing} in {the room}
{subject} had {food}, {food} and {food} {when}
we need {num} {unit} to reach {the place}
it will be {weather} in {city} {when}
it was {weather} and {weather} near {the place}
the temperature in {city} is {num} degrees
the meeting starts at {time} on {day}
the train to {city} leaves at {time}
the bus from {the place} arrives at {time}
{name} was born on the {ordinal} of {month}
the {ordinal} of {month} is a {day}
the price of {the thing} is {num} {money}
my telephone number is {digits}
the code is {digits}
flight {digits} to {city} is delayed by {num} minutes
{the place} is {num} {distance} {direction} of {city}
there are {num} {things} and {num} {animals} in {the place}
there is {a animal} {place phrase}
{subject} could not {base} {the thing} because {reason}
{subject} would like to {base} {the thing} {when}
{subject} stayed in {city} because {reason}
I think {the person} is very {quality}
I heard that {name} {past} {a thing}
she said that {the animal} was {colour}
if it is {weather}, we will go to {the place}
when {the person} arrived, {name} was {going}
{name} lives in {a size} house {prep} {the place}
{name}, {the person}, {present} {a thing}
""".strip().splitlines()

COMMANDS = """
turn on the {device} in {the room}
turn off the {device}
switch off the {device} at {time}
set the alarm for {time}
set a timer for {num} minutes
set the temperature to {num} degrees
play some music in {the room}
stop the music
{base} {the thing}
please {base} {the thing} {when}
{base} {the thing} and {base} {the thing}
do not {base} {the thing}
call {name} at {time}
send a message to {name}
remind me to {base} {the thing} {when}
add {food} and {food} to the shopping list
tell me the weather in {city}
go {direction} for {num} {distance}
turn left at {the place}
turn right after {the place}
put {the thing} {prep} {the thing}
""".strip().splitlines()

QUESTIONS = """
where is {the thing}
who {past} {the thing}
what time is it in {city}
how many {things} are in {the room}
how far is it from {city} to {city}
did {name} {base} {the thing} {when}
is {the animal} {going} {place phrase}
can you {base} {the thing} for {name}
why is {the person} so {quality}
when does the train to {city} leave
have you been to {city}
""".strip().splitlines()

IRREGULAR = {"knife": "knives", "sheep": "sheep", "goose": "geese", "wolf": "wolves", "mouse": "mice"}


def normalize(sentence: str) -> str:
    """The words of a sentence in lower case, without punctuation, one space apart."""
    return " ".join(re.findall(r"[a-z']+", sentence.lower()))


def split_of(sentence: str) -> str:
    """The split a sentence belongs to: 4 % of all possible sentences are "eval", 4 % are "samples"."""
    bucket = int.from_bytes(hashlib.sha256(normalize(sentence).encode()).digest()[:4], "big") % 100
    return "eval" if bucket < 4 else "samples" if bucket < 8 else "train"


def number(n: int) -> str:
    """0 <= n < 10,000 in words: 342 is "three hundred and forty two"."""
    if n < 10:
        return ONES[n]
    if n < 20:
        return TEENS[n - 10]
    if n < 100:
        return TENS[n // 10 - 2] + (f" {ONES[n % 10]}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    rest = n % unit
    joint = " and " if 0 < rest < 100 else " " if rest else ""
    return f"{number(n // unit)} {name}{joint}{number(rest) if rest else ''}"


def _number(rng: random.Random) -> str:
    return number(
        rng.choice(
            (
                rng.randint(2, 12),
                rng.randint(2, 99),
                rng.randint(13, 99),
                rng.randint(100, 999),
                rng.randint(1000, 9999),
            )
        )
    )


def _time(rng: random.Random) -> str:
    hour = number(rng.randint(1, 12))
    part = rng.choice((" in the morning", " in the afternoon", " in the evening", "", "", ""))
    kind = rng.randint(0, 4)
    if kind == 0:
        return f"{hour} o'clock{part}"
    if kind == 1:
        return f"half past {hour}{part}"
    if kind == 2:
        return f"{hour} {number(rng.choice((10, 15, 20, 25, 30, 35, 40, 45, 50, 55)))}{part}"
    if kind == 3:
        return f"quarter {rng.choice(('past', 'to'))} {hour}"
    return rng.choice(("noon", "midnight")) if rng.random() < 0.2 else f"{hour} {number(rng.randint(11, 59))}"


def _ordinal(rng: random.Random) -> str:
    small = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
        fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth""".split()
    day = rng.randint(1, 31)
    if day <= 20:
        return small[day - 1]
    return "thirtieth" if day == 30 else f"{'twenty' if day < 30 else 'thirty'} {small[day % 10 - 1]}"


def _plural(noun: str) -> str:
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("x", "ch", "sh", "s")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeou" else noun + "s"


def _phrase(rng: random.Random, noun: str) -> str:
    """A noun with up to two adjectives before it."""
    words = [rng.choice(LISTS[k]) for k in ("size", "quality", "colour") if rng.random() < 0.2]
    return " ".join([*words[:2], noun])


def _slot(rng: random.Random, slot: str) -> str:  # noqa: PLR0911 - one line for each kind of slot
    if slot == "num":
        return _number(rng)
    if slot == "time":
        return _time(rng)
    if slot == "ordinal":
        return _ordinal(rng)
    if slot == "digits":
        return " ".join(rng.choice(ONES) for _ in range(rng.randint(3, 8)))
    if slot == "money":
        return rng.choice(("dollars", "pounds", "euros"))
    if slot == "distance":
        return rng.choice(("metres", "miles", "kilometres"))
    if slot == "place phrase":
        kind = rng.choice(("room", "place", "prep"))
        if kind == "prep":
            return f"{rng.choice(LISTS['prep'])} the {rng.choice(LISTS['thing'] + LISTS['place'])}"
        return f"{'in' if kind == 'room' else 'near'} the {rng.choice(LISTS[kind])}"
    if slot in ("things", "animals"):
        return _phrase(rng, _plural(rng.choice(LISTS[slot[:-1]])))
    article, _, kind = slot.rpartition(" ")
    word = rng.choice(LISTS[kind])
    if not article:
        return word
    phrase = word if kind in ("size", "food") else _phrase(rng, word)
    if article == "the":
        return f"the {phrase}"
    return f"{'an' if phrase[0] in 'aeio' or phrase.startswith('umb') else 'a'} {phrase}"


def _fill(rng: random.Random, template: str) -> str:
    return re.sub(r"\{([^}]*)\}", lambda match: _slot(rng, match[1]), template)


def _word_list(rng: random.Random) -> str:
    """Unrelated words, so that hearing cannot be replaced by guessing from the context."""
    words = []
    for _ in range(rng.randint(1, 7)):
        kind = rng.choice([k for k in LISTS if k not in ("reason", "subject")])
        words.append(rng.choice(LISTS[kind]))
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def draw(rng: random.Random) -> str:
    """One sentence with its capital letter and its punctuation, of whichever split."""
    kind = rng.random()
    if kind < 0.45:
        text, end = _fill(rng, rng.choice(CLAUSES)), "."
    elif kind < 0.60:
        joint = rng.choice((", and ", ", but ", ", so ", " because ", " while "))
        text, end = joint.join(_fill(rng, rng.choice(CLAUSES[:30])) for _ in range(2)), "."
    elif kind < 0.76:
        text, end = _fill(rng, rng.choice(COMMANDS)), "."
    elif kind < 0.86:
        text, end = _fill(rng, rng.choice(QUESTIONS)), "?"
    elif kind < 0.90:
        text, end = rng.choice((_number(rng), _time(rng), _slot(rng, "digits"))), "."
    else:
        text, end = _word_list(rng), "."
    return text[0].upper() + text[1:] + end


def sentences(seed: int, split: str, count: int) -> list[str]:
    """`count` different sentences of one split, the same for the same seed. Unknown split: ValueError."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = draw(rng)
        if split_of(sentence) == split:
            found[sentence] = None
    return list(found)
