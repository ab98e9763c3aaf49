"""New texts from the training texts, for a teacher to label: the student of a small data set needs more to learn from than the set has.

A kind takes texts and gives about `copies` new ones for each. None sees a label: whatever a new text means, the teacher says it afterwards.
Words are what white space separates, so the punctuation and case of the corpus stay as they are.

- `mask`: words hidden behind the mask token; `ngram`: a run of words by itself (both Tang et al. 2019, §3.2).
- `mix`: the beginning of one text and the end of another, joined at a random place; `cross`: joined at a word that both have.
- `swap`: runs of words exchanged for others that stand between the same two words elsewhere in the corpus (the substitutable fragments
  of Andreas 2020, whose environments here are one word on each side).
- `infill`: hidden words filled by a masked language model, which is handed in (Jiao et al. 2020, §3.2).
- `retrieve`: the texts of an unlabelled pool, which is handed in, that are most like the training texts: whose words and pairs of words are
  likelier among these than in the pool (Moore and Lewis 2010).

Everything is drawn from a seed, and each text and kind has a generator of its own, so that more copies go on where fewer end, and other
kinds beside it change nothing. Torch-free.
"""

import itertools
import math
import random
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compress.unlabelled import plain
from model.errors import ConfigError

Fill = Callable[[list[str]], list[str]]
LONGEST_NGRAM = 5  # Tang et al. 2019
LONGEST_RUN = 4  # words that swap takes out or puts in
TRUST = 0.8  # in the shares of words and pairs among few training texts; the rest is those of the pool (Jelinek and Mercer 1980)
FEW = 5  # terms that a text of the pool is taken to have beyond its own, which tell nothing
TRIES = 30  # draws for a place to swap or join at, before a text is left as it is
MOST = 1000  # copies
VERSION = 1  # of what is drawn: another number where the same seed makes other texts
HIDDEN = {"mask": (0.1, 0.4), "infill": (0.15, 0.5)}  # share of the words that is hidden, drawn for each copy


@dataclass(frozen=True)
class Material:
    """What new texts are made of.

    `texts` are the training texts, `pool` the unlabelled ones (for `retrieve`), `mask` the mask token of whoever reads the texts, or for
    `infill` fills them: `fill` gives texts back with each mask token replaced by a word.
    """

    texts: Sequence[str]
    seed: int
    pool: Sequence[str] = ()
    mask: str = ""
    fill: Fill | None = None
    words: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", [text.split() for text in self.texts])

    def draws(self, kind: str, copies: int) -> Iterator[tuple[list[str], random.Random]]:
        """Each text's words `copies` times, with a generator for what is made of it."""
        for words, text in zip(self.words, self.texts, strict=True):
            generator = random.Random(f"{self.seed} {kind} {text}")  # seeds by SHA-512: the same in every process
            for _ in range(copies):
                yield words, generator


def read_augmentation(value: str) -> tuple[str, int]:
    """`swap:10` → kind and copies; raises ConfigError for anything else."""
    kind, _, copies = value.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"--augment {value}: there is no kind {kind!r}.", f"Kinds: {', '.join(KINDS)}.")
    if not copies.isdecimal() or not 1 <= int(copies) <= MOST:
        raise ConfigError(f"--augment {value}: {copies!r} is not a number of copies.", f"Write {kind}:10, 1 to {MOST:,} copies a text.")
    return kind, int(copies)


def augment(kind: str, copies: int, material: Material) -> list[str]:
    """About `copies` new texts of `kind` for each training text, in their order; with repeats, and now and then an old text.

    Raises ConfigError if the material lacks what the kind needs.
    """
    if kind == "infill" and material.fill is None:
        raise ConfigError(
            "--augment infill needs a masked language model.",
            "Train one (compress train DATA --task masked) and name it with --generator, or take swap.",
        )
    if kind in HIDDEN and not material.mask:
        raise ConfigError(f"--augment {kind} hides words, but the tokenizer has no mask token.", "Take another kind, such as swap.")
    if kind == "retrieve" and not material.pool:
        raise ConfigError("--augment retrieve has no texts to choose from.", "Name some with --unlabelled.")
    return [text for text in KINDS[kind](material, copies) if text.strip()]


def kept(new: Iterable[str], known: Iterable[str]) -> list[str]:
    """`new` without repeats and without `known` texts, in their order; case, spaces and punctuation do not make a text another one."""
    seen = {plain(text) for text in known}
    found = []
    for text in new:
        if (form := plain(text)) not in seen:
            seen.add(form)
            found.append(text)
    return found


def _mask(material: Material, copies: int) -> Iterator[str]:
    return _hidden(material, "mask", copies)


def _infill(material: Material, copies: int) -> Iterable[str]:
    hidden = list(_hidden(material, "infill", copies))
    return material.fill(hidden) if material.fill else ()


def _hidden(material: Material, kind: str, copies: int) -> Iterator[str]:
    for words, generator in material.draws(kind, copies):
        if len(words) < 2:  # nothing would be left
            continue
        share = generator.uniform(*HIDDEN[kind])
        hidden = {place for place in range(len(words)) if generator.random() < share} or {generator.randrange(len(words))}
        if len(hidden) == len(words):
            hidden.remove(generator.choice(sorted(hidden)))
        yield " ".join(material.mask if place in hidden else word for place, word in enumerate(words))


def _ngram(material: Material, copies: int) -> Iterator[str]:
    for words, generator in material.draws("ngram", copies):
        if len(words) < 2:
            continue
        length = generator.randint(1, min(LONGEST_NGRAM, len(words) - 1))
        start = generator.randrange(len(words) - length + 1)
        yield " ".join(words[start : start + length])


def _mix(material: Material, copies: int) -> Iterator[str]:
    for words, generator in material.draws("mix", copies):
        other = generator.choice(material.words)
        if words and other:
            yield " ".join(words[: generator.randint(1, len(words))] + other[generator.randrange(len(other)) :])


def _cross(material: Material, copies: int) -> Iterator[str]:
    corpus = _Occurrences(material.words)
    for words, generator in material.draws("cross", copies):
        for _ in range(TRIES):
            place = generator.randrange(len(words)) if words else 0
            if not 0 < place < len(words) - 1:  # joined at its first or last word, one text would be all of it
                continue
            found = generator.choice(corpus.places[words[place].casefold()])
            rest = corpus.after(found)
            if rest and rest != words[place + 1 :]:
                yield " ".join(words[: place + 1] + rest)
                break


def _swap(material: Material, copies: int) -> Iterator[str]:
    corpus = _Occurrences(material.words)
    for words, generator in material.draws("swap", copies):
        made = words
        for _ in range(generator.randint(1, 3)):
            made = _swapped(made, corpus, generator)
        if made is not words:
            yield " ".join(made)


def _swapped(words: list[str], corpus: "_Occurrences", generator: random.Random) -> list[str]:
    """`words` with one run of them exchanged; `words` itself where no other run was found."""
    for _ in range(TRIES):
        if not words:
            break
        start = generator.randrange(len(words))
        stop = min(len(words), start + generator.randint(1, LONGEST_RUN))
        left = words[start - 1].casefold() if start else _Occurrences.EDGE
        right = words[stop].casefold() if stop < len(words) else _Occurrences.EDGE
        run = corpus.run(generator.choice(corpus.places[left]), right)
        if run and run != words[start:stop] and not (left == right == _Occurrences.EDGE):
            return words[:start] + run + words[stop:]
    return words


class _Occurrences:
    """Where each word stands in the corpus; texts are parted by an edge, which is a word that no text has."""

    EDGE = ""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self.flat = [self.EDGE]
        for words in texts:
            self.flat.extend((*words, self.EDGE))
        self.places: dict[str, array[int]] = defaultdict(lambda: array("q"))
        for place, word in enumerate(self.flat[:-1]):
            self.places[word.casefold()].append(place)

    def after(self, place: int) -> list[str]:
        """The words from behind `place` to the end of its text."""
        return self.flat[place + 1 : self.flat.index(self.EDGE, place + 1)]

    def run(self, left: int, right: str) -> list[str]:
        """The at most LONGEST_RUN words between the place `left` and the next word `right` in its text; none if there is no such."""
        for stop in range(left + 1, min(left + LONGEST_RUN + 2, len(self.flat))):
            if self.flat[stop].casefold() == right:
                return self.flat[left + 1 : stop]
            if self.flat[stop] == self.EDGE:
                break
        return []


def _retrieve(material: Material, copies: int) -> list[str]:
    inside, outside = (Counter(itertools.chain.from_iterable(map(_terms, texts))) for texts in (material.texts, material.pool))
    sizes = max(1, outside.total()) / max(1, inside.total())
    gain = {term: math.log(TRUST * sizes * inside[term] / count + 1 - TRUST) for term, count in outside.items()}
    scores = np.array([_likeness(text, gain) for text in material.pool])
    best = np.argsort(-scores, kind="stable")[: copies * len(material.texts)]
    return [material.pool[number] for number in best if scores[number] > 0]


def _likeness(text: str, gain: Mapping[str, float]) -> float:
    """How much likelier the terms of a text are inside than outside, in nats a term; of few terms less is believed."""
    terms = _terms(text)
    return sum(gain[term] for term in terms) / (len(terms) + FEW)


def _terms(text: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]", text.casefold())
    return [*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))]


KINDS: dict[str, Callable[[Material, int], Iterable[str]]] = {
    "mask": _mask,
    "ngram": _ngram,
    "mix": _mix,
    "cross": _cross,
    "swap": _swap,
    "infill": _infill,
    "retrieve": _retrieve,
}
