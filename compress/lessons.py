"""What a benchmark asks models: texts with their truth; of pre-training tasks the same texts with words hidden or exchanged. Torch-free
until such a task is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compress.judging import Lesson
from compress.sources import Source
from compress.tasks import PRETRAINING, texts_of, truth_of
from model.errors import ConfigError, DataError
from model.tokenizer import Tokenizer, open_tokenizer
from serve.predictor import read_encoder


class Questions(NamedTuple):
    """Texts, their second texts where there are pairs, and what `compress.tasks` compares outputs with; of pre-training tasks a Lesson."""

    texts: list[str]
    pairs: list[str] | None
    truth: Any


def questions(task: str, part: Any, labels: Sequence[str], sources: Mapping[str, Source], seed: int) -> Questions:
    """Those of one part of the data (columns as `compress.data` has them); of pairs, pre-training tasks take the first texts.

    What is hidden or exchanged is drawn by `seed` alone, from the tokens that all `sources` see. Raises ConfigError if they split texts
    differently, or cannot hide anything, DataError if there is nothing to hide.
    """
    if task not in PRETRAINING:
        return Questions(texts_of(task, part), part["text_b"][:] if "text_b" in part.column_names else None, truth_of(task, part, labels))
    tokenizer = _tokenizer(sources)
    lessons = _lessons(task, tokenizer, texts_of(task, part), seed)
    if not any(lesson.places for lesson in lessons):
        raise DataError(f"None of the {len(lessons)} texts has a word to hide.", "Measure on texts with words that the tokenizer knows.")
    ends = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["mask_token"]}
    return Questions([tokenizer.text([number for number in one.ids if number not in ends]) for one in lessons], None, lessons)


def _lessons(task: str, tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> list[Lesson]:
    import torch  # here: nothing else that a benchmark asks needs it

    from compress.masking import masking_for

    encodings = tokenizer.ids(texts)
    masking = masking_for(task, tokenizer, encodings, seed=seed)
    found = []
    for row, encoding in enumerate(encodings):
        inputs = {name: torch.from_numpy(array) for name, array in tokenizer.pad([encoding]).items()}
        lesson = masking(inputs, [row], 0)
        ids, places, right = (lesson[name].flatten().int().tolist() for name in ("input_ids", "places", "labels"))
        found.append(Lesson(ids, places, right, tokenizer.tokens))
    return found


def _tokenizer(sources: Mapping[str, Source]) -> Tokenizer:
    """The one that all models have, with the length of the shortest."""
    known = {name: open_tokenizer(source.path, _longest(source)) for name, source in sources.items()}
    if len({tokenizer.digest for tokenizer in known.values()}) > 1:
        raise ConfigError(
            f"The models split texts differently: {', '.join(f'{name} by {one.digest[:12]}…' for name, one in known.items())}.",
            "What is found of hidden or exchanged tokens compares models of one tokenizer: leave the others out.",
        )
    return min(known.values(), key=lambda tokenizer: tokenizer.max_length)


def _longest(source: Source) -> int:
    if source.artifact is not None:
        return read_encoder(source.path)[0].max_length
    from model.pretrained import longest

    return longest(source.path)
