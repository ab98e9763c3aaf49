"""`tokenizer.json` for the directories that lack one: from BERT's `vocab.txt` and from a SentencePiece model. Torch-free."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model.errors import ArtifactError, ConfigError, EnvironmentProblem

# Names under which vocabularies keep their special tokens, by the key that tokenizer_config.json has for each.
ROLES = {
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>", "<cls>"),
    "sep_token": ("[SEP]", "</s>", "<sep>"),
    "mask_token": ("[MASK]", "<mask>"),
}
SPACE = "▁"  # U+2581, which stands for a space in the pieces of SentencePiece


def special_tokens(config: dict[str, Any], known: Callable[[str], bool]) -> dict[str, str]:
    """The special token of each role: as `tokenizer_config.json` says (a string, or an object with `content`), else by its usual names."""
    found = {}
    for role, names in ROLES.items():
        said = config.get(role)
        said = said.get("content") if isinstance(said, dict) else said
        token = next((name for name in (said, *names) if name and known(name)), None)
        if token is not None:
            found[role] = token
    return found


def from_vocab_txt(file: Path, config: dict[str, Any]) -> Tokenizer:
    """BERT's WordPiece from its `vocab.txt` and, for lower-casing, accents and Chinese characters, its `tokenizer_config.json`.

    Raises ArtifactError if the vocabulary has no unknown, first or last token.
    """
    vocabulary = {token: number for number, token in enumerate(_lines(file))}
    special = special_tokens(config, vocabulary.__contains__)
    if missing := {"unk_token", "cls_token", "sep_token"} - special.keys():
        raise ArtifactError(f"{file} has no {', '.join(sorted(missing))}: it is not BERT's.", "Give the model's tokenizer.json instead.")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(special.values()))
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.BertProcessing((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    return tokenizer


def from_sentencepiece(model: bytes) -> Tokenizer:
    """The `tokenizers` form of a SentencePiece Unigram model, from its protocol buffer.

    Raises ConfigError if the model is of another kind, EnvironmentProblem if protobuf is not installed.
    """
    try:
        messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError:
        raise EnvironmentProblem(
            "Writing tokenizer.json from a SentencePiece model needs protobuf, which is not installed.",
            "Install it with: pip install protobuf",
        ) from None
    proto = messages.ModelProto.FromString(model)
    trained, rules = proto.trainer_spec, proto.normalizer_spec
    if trained.model_type != trained.UNIGRAM or trained.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise ConfigError(
            "Only Unigram models with spaces marked before the words can be written as tokenizer.json.",
            "Put the tokenizer.json of this model beside its SentencePiece file.",
        )
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, trained.unk_id, trained.byte_fallback))
    # SentencePiece's own order (Kudo and Richardson 2018, §3.2); a pre-tokenizer would not mark a text that starts with spaces.
    steps: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Metaspace(SPACE, "always" if rules.add_dummy_prefix else "never", split=False)
    kinds = [(piece.piece, piece.type) for piece in proto.pieces]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece, kind in kinds if kind == proto.SentencePiece.CONTROL])
    numbers = {piece: number for number, (piece, _) in enumerate(kinds)}
    special = special_tokens({}, numbers.__contains__)
    ends = [(special[role], numbers[special[role]]) for role in ("cls_token", "sep_token") if role in special]
    cls, sep = special.get("cls_token", ""), special.get("sep_token", "")
    single, pair = f"{cls} $A {sep}".strip(), f"{cls} $A {sep} $B:1 {sep + ':1' if sep else ''}".strip()
    tokenizer.post_processor = processors.TemplateProcessing(single=single.split(), pair=pair.split(), special_tokens=ends)
    return tokenizer


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{file} is not UTF-8: {error.reason} at byte {error.start}.", "Copy it again from where the model comes from."
        ) from None
