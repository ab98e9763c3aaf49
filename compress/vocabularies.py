"""A vocabulary of one's own: Unigram trained on the text at hand, and a model moved to it from the vocabulary that it has.

SentencePiece trains it (Kudo 2018; Kudo and Richardson 2018), on one thread, so that the same texts give the same bytes. A piece
starts as the mean of the old pieces that its letters are made of (as Minixhofer et al. 2022 and Gee et al. 2022 start theirs).
"""

import io
import re
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


def own_tokenizer(wanted: str, texts: Iterable[str], folder: Path, max_length: int) -> Tokenizer:
    """The tokenizer of a vocabulary trained on `texts`; the model is kept in `folder`, where a second call finds it."""

    def make() -> Tokenizer:
        file = folder / SENTENCEPIECE_FILE
        if not file.exists():
            content = train_vocabulary(wanted, texts)
            folder.mkdir(parents=True, exist_ok=True)
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
