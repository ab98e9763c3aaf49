"""A vocabulary of one's own: trained on the text at hand or trimmed to it, and a model moved to it from the vocabulary that it has.

SentencePiece trains a Unigram one (Kudo 2018; Kudo and Richardson 2018), on one thread, so that the same texts give the same bytes. A
piece starts as the mean of the old pieces that its letters are made of (as Minixhofer et al. 2022 and Gee et al. 2022 start theirs).
A trimmed one (Ushio et al. 2023) keeps the old pieces that the texts use most, as they are.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch.nn import functional as F

from compress.training import in_turn
from model.build import Model, build
from model.errors import ConfigError, DataError
from model.tokenizer import SENTENCEPIECE_FILE, Tokenizer, open_tokenizer
from model.tokenizer_json import SPACE

RULES = {"unigram": "nmt_nfkc_cf", "unigram_cased": "nmt_nfkc"}
"""Kind of vocabulary → SentencePiece's rule for normalizing text; unigram takes capitals for small letters."""
TRIMMED = "trimmed"
COVERAGE = 0.9999  # share of all characters that become pieces; the rarest are unknown, or one odd text would cost many pieces
SPECIAL: dict[str, Any] = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": 3,
    "pad_piece": "[PAD]",
    "unk_piece": "[UNK]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "control_symbols": ["[MASK]"],
}


def read_vocabulary(text: str) -> tuple[str, int]:
    """`KIND:SIZE` (such as unigram:16000) as kind and number of pieces."""
    kind, _, size = text.partition(":")
    return kind, int(size)


def texts_of(split: Any) -> Iterator[str]:
    """Every text of a part of the data: first and second ones, or the words of a sentence with spaces between them."""
    for column in ("text", "text_b", "tokens"):
        if column in split.column_names:
            for value in split[column][:]:
                yield value if isinstance(value, str) else " ".join(value)


def train_vocabulary(wanted: str, texts: Iterable[str]) -> bytes:
    """A SentencePiece model of `wanted` (KIND:SIZE) trained on `texts`.

    Raises ConfigError if the texts do not allow that many pieces or their characters need more, DataError if there is no text at all.
    """
    kind, size = read_vocabulary(wanted)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="unigram",
            vocab_size=size,
            normalization_rule_name=RULES[kind],
            character_coverage=COVERAGE,
            max_sentence_length=1 << 30,  # longer texts would be left out
            num_threads=1,
            minloglevel=2,
            **SPECIAL,
        )
    except (RuntimeError, OSError) as error:
        if found := re.search(r"Please set it to a value <= (\d+)", str(error)):
            possible = int(found[1])
            message = f"{wanted} is more than the text allows: only {possible:,} pieces are possible."
            raise ConfigError(message, f"Give --vocabulary {kind}:{possible}, or more text.") from None
        if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error)):
            least = int(found[1])
            message = f"{wanted} is too small: the characters of the text and the special tokens are {least:,} pieces already."
            raise ConfigError(message, f"Give at least --vocabulary {kind}:{least + 1}.") from None
        raise DataError(f"No vocabulary could be trained: {error}.", "Are there texts with words in them?") from None
    return written.getvalue()


def trim_vocabulary(wanted: str, texts: Iterable[str], tokenizer: Tokenizer) -> bytes:
    """The `tokenizer.json` of `tokenizer` with as many of its pieces as `wanted` (trimmed:SIZE) says.

    Kept are special tokens, single characters that are ASCII or in the texts, then the pieces that the texts use most, and of those
    that they do not use the lowest ids: vocabularies number frequent pieces first (after places held free and foreign characters). A word
    whose piece is gone is split into shorter ones.
    Raises ConfigError if there are no more pieces than that, if those that have to stay are more, or if pieces cannot be left out:
    BPE makes each of two others, and SentencePiece's model is the truth where there is one.
    """
    _, size = read_vocabulary(wanted)
    rules = tokenizer.rules
    kind = rules["model"]["type"]
    if tokenizer.kind == "sentencepiece" or kind not in ("WordPiece", "Unigram"):
        what = "A SentencePiece model" if tokenizer.kind == "sentencepiece" else f"A vocabulary of the kind {kind}"
        raise ConfigError(
            f"{what} cannot be trimmed, only WordPiece and Unigram in a tokenizer.json.", f"Train one: --vocabulary unigram:{size}."
        )
    if size >= len(tokenizer.numbers):
        raise ConfigError(f"{wanted} trims nothing: the vocabulary has {len(tokenizer.numbers):,} pieces.", "Give fewer, or leave it out.")
    used = Counter(number for text in texts for number in tokenizer.split(text))
    stay = {added["id"] for added in rules["added_tokens"]} | set(tokenizer.special_ids.values())
    if rules["model"].get("unk_id") is not None:
        stay.add(rules["model"]["unk_id"])
    for piece, number in tokenizer.numbers.items():
        bare = piece.removeprefix("##")
        if len(bare) == 1 and (bare.isascii() or bare == SPACE or used[number]):
            stay.add(number)
    if len(stay) > size:
        what = f"{wanted} is too small: special tokens and single characters are {len(stay):,} pieces already."
        raise ConfigError(what, f"Give at least --vocabulary {TRIMMED}:{len(stay)}.")
    tokens = tokenizer.tokens
    places_held = {number for number, piece in enumerate(tokens) if len(piece.removeprefix("##")) == 1 or piece.startswith("[unused")}
    ranked = sorted(set(tokenizer.numbers.values()) - stay, key=lambda number: (-used[number], number in places_held, number))
    kept = {old: new for new, old in enumerate(sorted([*stay, *ranked[: size - len(stay)]]))}
    return json.dumps(_renumbered(rules, kept), ensure_ascii=False).encode()


def _renumbered(rules: dict[str, Any], kept: dict[int, int]) -> dict[str, Any]:
    """A `tokenizer.json` with the pieces `kept` (old id → new id) alone."""
    model, ends = dict(rules["model"]), rules["post_processor"]
    if model["type"] == "WordPiece":
        model["vocab"] = {piece: kept[number] for piece, number in model["vocab"].items() if number in kept}
    else:
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in kept]
        model["unk_id"] = kept.get(model["unk_id"])
    added = [{**token, "id": kept[token["id"]]} for token in rules["added_tokens"]]
    return {**rules, "model": model, "added_tokens": added, "post_processor": ends and _renumbered_ends(ends, kept)}


def _renumbered_ends(ends: dict[str, Any], kept: dict[int, int]) -> dict[str, Any]:
    """What puts special tokens around a text, with the ids of `kept`."""
    if ends["type"] == "Sequence":
        return {**ends, "processors": [_renumbered_ends(inner, kept) for inner in ends["processors"]]}
    if ends["type"] == "TemplateProcessing":
        special = {name: {**token, "ids": [kept[number] for number in token["ids"]]} for name, token in ends["special_tokens"].items()}
        return {**ends, "special_tokens": special}
    return {**ends, **{role: [ends[role][0], kept[ends[role][1]]] for role in ("sep", "cls") if role in ends}}  # Bert's, Roberta's


def own_tokenizer(wanted: str, texts: Iterable[str], folder: Path, max_length: int, old: Tokenizer | None = None) -> Tokenizer:
    """The tokenizer of a vocabulary trained on `texts`, or of `old` trimmed to them; it is kept in `folder`, where a second call finds it.

    Raises ConfigError if a vocabulary is to be trimmed and there is no old one.
    """
    trims = read_vocabulary(wanted)[0] == TRIMMED

    def make() -> Tokenizer:
        file = folder / ("tokenizer.json" if trims else SENTENCEPIECE_FILE)
        if not file.exists():
            if not trims:
                content = train_vocabulary(wanted, texts)
            elif old is None:
                what = f"{wanted} trims the vocabulary of the base, which is a configuration without one."
                raise ConfigError(what, f"Train one: --vocabulary unigram:{read_vocabulary(wanted)[1]}.")
            else:
                content = trim_vocabulary(wanted, texts, old)
            folder.mkdir(parents=True, exist_ok=True)
            if old is not None and trims:
                old.save(folder)
                file.unlink()
            partial = file.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(file)
        return open_tokenizer(folder, max_length)

    return in_turn(make)


def origins(ours: Tokenizer, theirs: Tokenizer) -> list[list[int]]:
    """For each piece of `ours` the ids of `theirs` that it is made of: its role's special token, the same piece, or those of its letters.

    No ids for what `theirs` has nothing for, such as a space alone.
    """
    known = theirs.numbers
    if ours.numbers.keys() <= known.keys():
        return [[known[piece]] for piece in ours.tokens]
    roles = {token: known[theirs.special[role]] for role, token in ours.special.items() if role in theirs.special}
    inside = "##" if theirs.kind == "wordpiece" else ""  # how the old vocabulary writes what goes on within a word
    found: list[list[int]] = [[] for _ in range(ours.vocabulary)]
    for piece, number in ours.numbers.items():
        if piece in roles:
            found[number] = [roles[piece]]
        elif piece.startswith(SPACE):
            found[number] = theirs.split(piece.replace(SPACE, " "))
        else:
            same = known.get(inside + piece)
            found[number] = theirs.split(piece.replace(SPACE, " ")) if same is None else [same]
    return found


@torch.no_grad()
def moved(model: Model, ours: Tokenizer, theirs: Tokenizer) -> Model:
    """`model`, whose vocabulary is `theirs`, with that of `ours`: each row of its table the mean of those in `origins`.

    What has no origin starts as the mean of the whole table. Raises ConfigError if the table is quantized.
    """
    if model.config.quantization:
        raise ConfigError("The model is quantized: its vocabulary cannot be changed any more.", "Give the model that it was made from.")
    name, state = f"{model.config.table}.weight", model.state_dict()
    table, others = state[name].split([model.config.vocabulary, len(state[name]) - model.config.vocabulary])  # such as rows of n-grams
    everything = list(range(len(table)))
    rows = [row or everything for row in origins(ours, theirs)]
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0)[:-1]
    flat = torch.tensor([number for row in rows for number in row])
    changed = build(model.config.changed(vocabulary=ours.vocabulary))
    changed.load_state_dict({**state, name: torch.cat([F.embedding_bag(flat, table, starts, mode="mean"), others])})
    return changed.train(model.training)
