"""Text to numpy arrays: the one place where texts are split, truncated and padded. Torch-free.

Three kinds, chosen by what the directory holds:

- `sentencepiece`: a SentencePiece model, run by `sentencepiece` itself (several times faster than the same vocabulary in `tokenizers`).
- `wordpiece`: a BERT `tokenizer.json` with a memory of words (`Words`) in front: plain ASCII is split into words here, anything else
  between two spaces goes through `tokenizers` once, and a text with "[" in it, which may hold a special token, goes there whole. The ids
  are the same either way. A directory with only BERT's old `vocab.txt` is read as its `tokenizer.json` would be.
- `tokenizers`: any other `tokenizer.json`.

WordPiece is from Schuster and Nakajima 2012 (greedy form: Devlin et al. 2018, §4.1), Unigram from Kudo 2018, SentencePiece from Kudo
and Richardson 2018.
"""

import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from model.artifact import canonical, sha256
from model.errors import ArtifactError, ConfigError, DataError
from model.tokenizer_json import from_sentencepiece, from_vocab_txt, special_tokens
from model.wordpiece import Row, bert_ends, is_bert_wordpiece, rows, whole, wordpiece

Batch = dict[str, npt.NDArray[np.int64]]
Kind = Literal["wordpiece", "sentencepiece", "tokenizers"]

SENTENCEPIECE_FILE = "sentencepiece.model"
FAIRSEQ_FILE = "sentencepiece.bpe.model"
SENTENCEPIECE_FILES = (SENTENCEPIECE_FILE, "spiece.model", "spm.model", FAIRSEQ_FILE, "tokenizer.model")
# What tells normalizers apart: case, accents, composed forms, ligatures, full width, spaces, quotes, other scripts.
PROBES = ("", "a", "Hello  World", "  Café naïve\u0301 ", "ﬁne Ｗｉｄｅ ½ ``so'' “so”", "x\u00a0y\tz\nw", "Ωραίο Привет 東京", "1,234.5 €")


class Encoding(NamedTuple):
    """One text or pair as token ids, truncated, special tokens included.

    `types` (0 first text, 1 second) for pairs only; `words`, for what was given as words, where each begins (-1: it was cut off).
    """

    ids: list[int]
    types: list[int] | None = None
    words: list[int] | None = None


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Splits, truncates and pads; made by `open_tokenizer`.

    `vocabulary` is one more than the largest id, `special` maps roles ("pad_token") to tokens. `row` gives the ids of one text as
    [1, tokens] by the shortest way, perhaps read-only. `typed`: whether pairs get `token_type_ids`, which some models do not take.
    """

    kind: Kind
    max_length: int
    vocabulary: int
    pad_id: int
    special: dict[str, str]
    _encode: Callable[[str, str | None], Encoding]
    row: Row
    _pieces: Callable[[Sequence[str]], list[list[int]]]
    _ends: tuple[list[int], list[int]]
    _files: dict[str, bytes]
    typed: bool = True

    @cached_property
    def digest(self) -> str:
        """sha256 of the vocabulary and the rules: equal digests give equal ids at equal `max_length`."""
        return sha256(self._files.get(SENTENCEPIECE_FILE) or self._rules())

    @property
    def rules(self) -> dict[str, Any]:
        """The content of its `tokenizer.json`, without truncation and padding."""
        found: dict[str, Any] = json.loads(self._rules())
        return found

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Token → id, special tokens included."""
        return self._written.get_vocab(with_added_tokens=True)

    def split(self, text: str) -> list[int]:
        """Ids of `text` alone: no special tokens, nothing cut off."""
        return self._pieces([text])[0]

    @cached_property
    def tokens(self) -> list[str]:
        """Every token by its id; "" where an id has none."""
        found = [""] * self.vocabulary
        for token, number in self.numbers.items():
            found[number] = token
        return found

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The ids of `special`, by role."""
        return {role: self.numbers[token] for role, token in self.special.items()}

    def text(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, special tokens written out, as far as the tokenizer's own decoder knows it."""
        written: str = self._written.decode(list(ids), skip_special_tokens=False)
        return written

    @cached_property
    def _written(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._rules().decode())

    def ids(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoding]:
        """Token ids of each text, or of each text with its pair, at most `max_length` long.

        The longer text of a pair is cut first, to the length of the other, then both alike. An encoding is never empty: where a
        vocabulary has no special tokens, an empty text becomes one pad token. Raises DataError for texts that are not whole Unicode
        and if there are not as many pairs as texts.
        """
        if pairs is None:
            return [self._encode(text, None) for text in texts]
        if len(pairs) != len(texts):
            raise DataError(f"There are {len(texts)} texts but {len(pairs)} second texts.", "Give every text its pair.")
        return [self._encode(text, pair) for text, pair in zip(texts, pairs, strict=True)]

    def words(self, sentences: Sequence[Sequence[str]]) -> list[Encoding]:
        """Token ids of each sentence, and where each of its words begins: the token that is tagged for the word."""
        cls, sep = self._ends
        end = self.max_length - len(sep)
        found = []
        for sentence in sentences:
            ids, places = list(cls), []
            for pieces in self._pieces(sentence):
                places.append(len(ids) if pieces and len(ids) < end else -1)
                ids += pieces
            found.append(Encoding([*ids[:end], *sep] or [self.pad_id], None, places))
        return found

    def around(self, parts: Sequence[str], token: int) -> Encoding:
        """The ids of the parts of one text with the special `token` between them."""
        cls, sep = self._ends
        ids = list(cls)
        for number, pieces in enumerate(self._pieces(parts)):
            ids += [token, *pieces] if number else pieces
        return Encoding([*ids[: self.max_length - len(sep)], *sep])

    def pad(self, encodings: Sequence[Encoding], types: bool = False) -> Batch:
        """`input_ids` and `attention_mask`, int64 [texts, longest], padded on the right.

        `token_type_ids` of the same shape is there for pairs, and for single texts if `types` is true; `words` [texts, most words] where
        each word begins, -1 for none, is there if the encodings are of words.
        """
        shape = (len(encodings), max((len(encoding.ids) for encoding in encodings), default=0))
        batch = {"input_ids": np.full(shape, self.pad_id, np.int64), "attention_mask": np.zeros(shape, np.int64)}
        if types or (self.typed and any(encoding.types is not None for encoding in encodings)):
            batch["token_type_ids"] = np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            batch["input_ids"][row, :length] = encoding.ids
            batch["attention_mask"][row, :length] = 1
            if encoding.types is not None and "token_type_ids" in batch:
                batch["token_type_ids"][row, :length] = encoding.types
        if any(encoding.words is not None for encoding in encodings):
            places = [encoding.words or [] for encoding in encodings]
            batch["words"] = np.full((len(encodings), max(map(len, places))), -1, np.int64)
            for row, found in enumerate(places):
                batch["words"][row, : len(found)] = found
        return batch

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, types: bool = False) -> Batch:
        """`pad(ids(texts, pairs), types)`."""
        return self.pad(self.ids(texts, pairs), types)

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which AutoTokenizer loads, and the SentencePiece model of that kind.

        A `tokenizer.json` beside a SentencePiece model finds special tokens written out in a text, such as "</s>", which
        `sentencepiece` takes for letters; the ids of other texts are equal but for exact ties between two ways to split a word.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            "clean_up_tokenization_spaces": False,
            **self.special,
        }
        (directory / "tokenizer.json").write_bytes(self._rules())
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if SENTENCEPIECE_FILE in self._files:
            (directory / SENTENCEPIECE_FILE).write_bytes(self._files[SENTENCEPIECE_FILE])

    def _rules(self) -> bytes:
        """`tokenizer.json` in canonical form, without truncation and padding, which are not its business here."""
        content = self._files.get("tokenizer.json") or from_sentencepiece(self._files[SENTENCEPIECE_FILE]).to_str().encode()
        return canonical({**json.loads(content), "truncation": None, "padding": None})


def open_tokenizer(directory: Path, max_length: int, *, typed: bool = True) -> Tokenizer:
    """The tokenizer of a model directory: the first of a SentencePiece model, `tokenizer.json` and BERT's `vocab.txt`.

    Beside a `tokenizer.json`, the model of XLM-R and CamemBERT is left alone: their ids are shifted from those of its pieces.
    Raises ArtifactError if there is none or it cannot be read, ConfigError if `max_length` leaves no room for the special tokens or if
    the SentencePiece model and the `tokenizer.json` beside it do not give the same ids.
    """
    config = _json(directory / "tokenizer_config.json") if (directory / "tokenizer_config.json").is_file() else {}
    content, source = _read_rules(directory, config)
    names = [name for name in SENTENCEPIECE_FILES if source is None or name != FAIRSEQ_FILE]
    model = next((directory / name for name in names if (directory / name).is_file()), None)
    if model is not None:
        return replace(_open_sentencepiece(model, source, content, max_length), typed=typed)
    if source is None or content is None:
        raise ArtifactError(
            f"{directory} has no tokenizer: there is no tokenizer.json, vocab.txt or {SENTENCEPIECE_FILE}.",
            "Copy the tokenizer's files from where the model comes from.",
        )
    _check_room(max_length, source.num_special_tokens_to_add(True))
    vocabulary = source.get_vocab(with_added_tokens=True)
    special = special_tokens(config, vocabulary.__contains__)
    padding: dict[str, Any] = source.padding or {}
    pad_id = vocabulary.get(special.get("pad_token", ""), padding.get("pad_id", 0))
    source.no_padding()
    source.no_truncation()
    ends = bert_ends(source) if is_bert_wordpiece(source) else None
    kind: Kind = "wordpiece" if ends else "tokenizers"
    if ends:
        read = wordpiece(source)
        cls, sep = [ends[0]], [ends[1]]

        def split(text: str) -> list[int]:
            return array("q", read(text)).tolist()

        encode, pieces, row = _assembled(split, cls, sep, max_length, cls[0]), _each(split), rows(read, cls, sep, max_length)
    else:
        (cls, sep), (encode, pieces) = _ends(source), _general(source, max_length, pad_id)
        row = _listed(encode)
    known = max(vocabulary.values()) + 1
    return Tokenizer(kind, max_length, known, pad_id, special, encode, row, pieces, (cls, sep), {"tokenizer.json": content}, typed)


def _each(split: Callable[[str], list[int]]) -> Callable[[Sequence[str]], list[list[int]]]:
    """The pieces of each word by itself: these vocabularies never look across a space."""
    return lambda words: [split(word) for word in words]


def _ends(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and after a single text."""
    whole, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    places = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return (whole[: places[0]], whole[places[0] + len(bare) :]) if bare and places else ([], [])


def _general(
    tokenizer: tokenizers.Tokenizer, max_length: int, pad_id: int
) -> tuple[Callable[[str, str | None], Encoding], Callable[[Sequence[str]], list[list[int]]]]:
    tokenizer.enable_truncation(max_length, strategy="longest_first")

    def encode(text: str, pair: str | None) -> Encoding:
        found = tokenizer.encode(whole(text), None if pair is None else whole(pair))
        ids, types = (found.ids, found.type_ids) if found.ids else ([pad_id], [0])
        return Encoding(ids, None if pair is None else types)

    def pieces(words: Sequence[str]) -> list[list[int]]:
        # A space belongs to what comes after it: a token is of the word in which it ends.
        last = list(accumulate((len(whole(word)) + 1 for word in words), initial=-1))[1:]
        found = tokenizer.encode(" ".join(words), add_special_tokens=False)
        split: list[list[int]] = [[] for _ in words]
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            if start < end:
                split[bisect_left(last, end)].append(number)
        return split

    return encode, pieces


def _open_sentencepiece(path: Path, beside: tokenizers.Tokenizer | None, content: bytes | None, max_length: int) -> Tokenizer:
    """`cls text sep` and `cls text sep pair sep`, where cls and sep are those of ROLES that the model has (either may be none).

    The ids are the model's own piece numbers. Checkpoints that shift them (fairseq's, such as XLM-R and CamemBERT) or that change the
    text before the model sees it (ALBERT lower-cases) are refused: their `tokenizer.json` alone says the truth.
    """
    import sentencepiece  # only this kind needs it, and opening the others should not wait for it

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError:
        raise ArtifactError(f"{path} is damaged, or no SentencePiece model.", "Copy it again from where the model comes from.") from None
    known = {pieces.id_to_piece(number) for number in range(pieces.get_piece_size())}
    special = special_tokens({}, known.__contains__)
    cls, sep = ([pieces.piece_to_id(special[role])] if role in special else [] for role in ("cls_token", "sep_token"))
    pad_id = pieces.piece_to_id(special["pad_token"]) if "pad_token" in special else pieces.unk_id()
    _check_room(max_length, len(cls) + 2 * len(sep))

    def split(text: str) -> list[int]:
        return list(pieces.encode(whole(text)))

    if beside is not None:
        beside.no_padding()
        beside.no_truncation()
    untruncated = _assembled(split, cls, sep, 1 << 40, pad_id)
    wrong = _shifted_pad(path, pad_id) if beside is None else _disagreement(pieces, beside, untruncated)
    if wrong:
        raise ConfigError(
            f"{path.name} does not give this model's ids by itself: {wrong}.",
            f"Remove {path.name}, so that tokenizer.json alone is used (get it with the model if it is not there).",
        )
    files = {SENTENCEPIECE_FILE: path.read_bytes()} | ({} if content is None else {"tokenizer.json": content})
    encode = _assembled(split, cls, sep, max_length, pad_id)
    return Tokenizer("sentencepiece", max_length, len(known), pad_id, special, encode, _listed(encode), _each(split), (cls, sep), files)


def _disagreement(pieces: Any, beside: tokenizers.Tokenizer, encode: Callable[[str, str | None], Encoding]) -> str:
    """How `tokenizer.json` differs from the SentencePiece model, "" if it does not.

    Compares piece numbers, the template and what normalizing leaves of a text, but not where words are split: ties may fall differently.
    """
    vocabulary = beside.get_vocab(with_added_tokens=True)
    for number in range(pieces.get_piece_size()):
        piece = pieces.id_to_piece(number)
        if vocabulary.get(piece) != number:
            return f"it numbers the piece {piece!r} {number}, tokenizer.json {vocabulary.get(piece, 'not at all')}"
    for text in PROBES:
        mine, other = encode(text, None).ids, beside.encode(text).ids or encode("", None).ids
        if "".join(map(pieces.id_to_piece, mine)) != "".join(str(beside.id_to_token(number)) for number in other):
            return f"it reads {text!r} as {mine}, tokenizer.json as {other}"
    mine, other = encode("a", "a").ids, beside.encode("a", "a").ids
    return "" if mine == other else f"it joins a pair as {mine}, tokenizer.json as {other}"


def _shifted_pad(path: Path, pad_id: int) -> str:
    """Without a `tokenizer.json`, the pad id in `config.json` still gives away that the ids are shifted."""
    config = _json(path.with_name("config.json")) if path.with_name("config.json").is_file() else {}
    expected = config.get("pad_token_id")
    return "" if expected in (None, pad_id) else f"its pad id is {pad_id}, that of config.json {expected}"


def _assembled(
    split: Callable[[str], list[int]], cls: list[int], sep: list[int], max_length: int, blank: int
) -> Callable[[str, str | None], Encoding]:
    """Puts the special tokens around what `split` finds, truncated; `blank` stands for nothing at all."""
    room, pair_room = max_length - len(cls) - len(sep), max_length - len(cls) - 2 * len(sep)

    def encode(text: str, pair: str | None) -> Encoding:
        first = split(text)
        if pair is None:
            return Encoding([*cls, *first[:room], *sep] or [blank])
        second = split(pair)
        keep_first, keep_second = _longest_first(len(first), len(second), pair_room)
        one, two = [*cls, *first[:keep_first], *sep], [*second[:keep_second], *sep]
        return Encoding([*one, *two] or [blank], [0] * len(one) + [1] * len(two) or [0])

    return encode


def _listed(encode: Callable[[str, str | None], Encoding]) -> Row:
    return lambda text: np.array([encode(text, None).ids], np.int64)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay: the longer one gives first; of two that are both too long, the odd token goes to the longer."""
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    if 2 * shorter > room:
        shorter = room // 2
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def _read_rules(directory: Path, config: dict[str, Any]) -> tuple[bytes, tokenizers.Tokenizer] | tuple[None, None]:
    """`tokenizer.json` (made from `vocab.txt` if there is only that) as bytes and opened; two None if there is neither."""
    path = directory / "tokenizer.json"
    if path.is_file():
        content = path.read_bytes()
        try:
            return content, tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # `tokenizers` raises no narrower class
            raise ArtifactError(f"{path} cannot be read: {error}.", "Copy it again from where the model comes from.") from None
    if (directory / "vocab.txt").is_file():
        made = from_vocab_txt(directory / "vocab.txt", config)
        return made.to_str().encode(), made
    return None, None


def _check_room(max_length: int, special: int) -> None:
    if max_length < max(special, 1):
        raise ConfigError(f"max_length is {max_length}, but the special tokens of a pair take {special}.", f"Give at least {special + 1}.")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}.", "Copy it again from where the model comes from.") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds a {type(values).__name__}, not an object.", "Copy it again from where the model comes from.")
    return values
