"""A teacher, texts and a stage's options → the corpus with the teacher's answers and the objective: for distill, prune and quantize.

What is learnt on is a list of sets of texts: the labelled ones first, then those without labels, one set for each source. The teacher is
asked about each set by itself, so that its answers to one are found again whatever stands beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.answers import STATE, Mean, Stacked, digest_of, joined, kept_answers
from compress.cache import cache_folder
from compress.config import Distillation
from compress.data import Data
from compress.distillation import Along, objective, teacher_answers
from compress.losses import supervised
from compress.new_texts import chooses, new_texts
from compress.progress import bar, say
from compress.sources import Source
from compress.students import layer_map
from compress.tasks import PER_TOKEN
from compress.teachers import Teacher, foreign_ask
from compress.training import NO_TAG, Column, Corpus, Inputs, Objective, drawn, in_turn, model_inputs, tokenize
from model.build import Model
from model.encoder import Encoder
from model.errors import ConfigError, DataError
from model.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Texts:
    """What is learnt on: `part`, rows of the data with labels of `task`, and `others`, a list of texts without labels for each source."""

    task: str
    labels: list[str]
    part: Any
    others: tuple[list[str], ...]


def texts_for(options: Distillation, data: Data, task: str, labels: list[str], reader: Path, generator: Source | None = None) -> Texts:
    """The texts that a stage learns on. A new source of text is one more list among `others`; the rest comes by itself.

    reader: the model whose tokenizer says how a word is hidden. generator: a masked language model, for --augment infill. Raises DataError
    for text without labels beside pairs, for which a text alone cannot stand.
    """
    if data.pairs and task != "embedding" and (data.unlabelled or options.augment):
        raise DataError(f"{data.name} is a set of pairs; text without labels comes alone.", "Leave out --unlabelled and --augment.")
    part = drawn(data.splits["train"], options.train_texts, options.seed)
    others: list[list[str]] = []
    if data.unlabelled is not None:
        say(f"  {data.unlabelled.words()}")
        if not chooses(options):
            others.append(list(data.unlabelled.texts))
    others.extend(new_texts(options, data, part, reader, generator))
    return Texts(task, labels, part, tuple(texts for texts in others if texts))


def material(tokenizer: Tokenizer, texts: Texts, *, taught: bool) -> list[Corpus]:
    """The sets tokenised, the labelled one first; the labels of the others mean nothing.

    `taught` embeddings learn from every text by itself, since the teacher's vector is all that they need.
    """
    if texts.task == "embedding" and taught:
        first = [*texts.part["text"][:], *texts.part["text_b"][:]]
        return [Corpus(tokenizer, tokenizer.ids(each), torch.zeros(len(each))) for each in (first, *texts.others)]
    corpus = tokenize(tokenizer, texts.part, texts.task, texts.labels)
    return [corpus, *(_unlabelled(tokenizer, each, corpus) for each in texts.others)]


def whole(corpora: Sequence[Corpus], columns: Mapping[str, Column] | None = None) -> Corpus:
    """All sets as one corpus with these columns; with `labelled` where sets without labels are among them."""
    first = corpora[0]
    if len(corpora) == 1:
        return replace(first, columns=columns or {})
    labels = [corpus.labels for corpus in corpora]
    if first.tags:
        longest = max(tags.shape[1] for tags in labels)
        labels = [torch.nn.functional.pad(tags, (0, longest - tags.shape[1]), value=NO_TAG) for tags in labels]
    encodings = [encoding for corpus in corpora for encoding in corpus.encodings]
    labelled = torch.arange(len(encodings)) < len(first)
    return replace(first, encodings=encodings, labels=torch.cat(labels), columns={**(columns or {}), "labelled": labelled}, truth=None)


def lessons(
    student: Model, tokenizer: Tokenizer, teachers: Sequence[Teacher], texts: Texts, options: Distillation
) -> tuple[Corpus, Objective]:
    """The corpus to learn from and the objective; without a teacher, the data's labels alone.

    A teacher runs once over the texts and its answers are kept in the cache; what is compared for each token needs it to run along. Of
    several teachers the mean of their logits is learnt (of probabilities the geometric mean: Hinton et al. 2015, §1), and the hidden states
    of the first.
    Raises ConfigError if there is text without labels but no teacher, if the widths differ or the teacher has no states while hidden states
    are compared, if tokens are to be compared across tokenizers, or if no loss has a weight.
    """
    if not teachers:
        if texts.others:
            raise ConfigError(
                "Text without labels teaches through a teacher alone.", "Give --teacher, or leave out --unlabelled and --augment."
            )
        return tokenize(tokenizer, texts.part, texts.task, texts.labels), supervised(texts.task)
    _check_weights(texts.task, options)
    corpora = material(tokenizer, texts, taught=True)
    layers, bridge = _compared(student, teachers[0].model, options) if options.hidden else ([], None)
    if texts.task in PER_TOKEN or (options.hidden_states == "tokens" and options.hidden):
        if silent := [str(teacher.path) for teacher in teachers if teacher.model is None]:
            raise ConfigError(f"Tokens are to be compared, but {silent[0]} teaches by its answers alone.", "Give --hidden-states pooled.")
        if not all(_reads_alike(teacher, tokenizer, options) for teacher in teachers):
            refuse_tokens(texts.task, options)
        models = [teacher.model for teacher in teachers if teacher.model is not None]
        return whole(corpora), _objective(options, texts.task, _along(models, layers, options.device))

    def answers() -> dict[str, Column]:
        said = []
        for number, teacher in enumerate(teachers):
            if teacher.model is None:
                said.append(_foreign_answers(teacher, texts, options))
                continue
            alike = _reads_alike(teacher, tokenizer, options)
            heard = corpora if alike else material(_their_tokenizer(teacher, options), texts, taught=True)
            said.append(_own_answers(teacher, heard, [] if number else layers, options))
        return {**said[0], "teacher_logits": Mean([one["teacher_logits"] for one in said])} if len(said) > 1 else said[0]

    return whole(corpora, in_turn(answers)), _objective(options, texts.task, bridge=bridge)


def _compared(student: Model, model: Encoder | None, options: Distillation) -> tuple[list[int], nn.Linear | None]:
    """The layers of the teacher `model` whose states a student is compared with, and what maps its own to their width, if anything."""
    if model is None:
        raise ConfigError("This teacher shows no hidden states.", "Give --hidden 0.")
    depth = len(student.config.layers) if isinstance(student, Encoder) else 1
    layers = layer_map(depth, len(model.config.layers), options.teacher_layers)
    if not isinstance(student, Encoder):
        if options.hidden_states == "tokens":
            raise ConfigError(f"A {student.config.kind} student has no states of its tokens.", "Give --hidden-states pooled.")
        return layers, nn.Linear(student.config.neurons, model.config.width)
    if student.config.width != model.config.width:
        raise ConfigError(
            f"The student is {student.config.width} wide and the teacher {model.config.width}: their states cannot be compared.",
            "Give --hidden 0.",
        )
    return layers, None


def _their_tokenizer(teacher: Teacher, options: Distillation) -> Tokenizer:
    return open_tokenizer(teacher.path, options.max_length, typed=bool(teacher.model and teacher.model.config.typed))


def _reads_alike(teacher: Teacher, tokenizer: Tokenizer, options: Distillation) -> bool:
    theirs = _their_tokenizer(teacher, options)
    return (theirs.digest, theirs.typed) == (tokenizer.digest, tokenizer.typed)


def _unlabelled(tokenizer: Tokenizer, texts: list[str], beside: Corpus) -> Corpus:
    """Texts without labels, in the form of the labelled corpus `beside`; for tagging split at white space."""
    if beside.tags:
        encodings = tokenizer.words([text.split() for text in texts])
        nothing = torch.full((len(encodings), max(len(encoding.ids) for encoding in encodings)), NO_TAG)
        return Corpus(tokenizer, encodings, nothing, tags=True)
    return Corpus(tokenizer, tokenizer.ids(texts), beside.labels.new_zeros(len(texts), *beside.labels.shape[1:]))


def _along(teachers: Sequence[Encoder], layers: list[int], device: str) -> Along:
    first, *others = [teacher.eval().to(device) for teacher in teachers]

    @torch.no_grad()
    def along(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        given = model_inputs(inputs)
        logits, states = first.states(**given)
        if others:
            logits = torch.stack([logits, *(teacher(**given) for teacher in others)]).mean(0)
        return logits, [states[layer] for layer in layers]

    return along


def _own_answers(teacher: Teacher, heard: Sequence[Corpus], layers: list[int], options: Distillation) -> dict[str, Column]:
    """The answers of a teacher that is an encoder of ours, to each corpus as it reads it: `teacher_logits`, `teacher_states` if any.

    What decides the answers does not tell which `layers` are wanted, so that students of other depths share them.
    """
    model: Any = teacher.model
    model.eval().to(options.device)
    bf16 = options.precision == "bf16"
    found = []
    for corpus in heard:

        def ask(rows: list[int], corpus: Corpus = corpus) -> dict[str, Tensor]:
            inputs = {name: value.to(options.device) for name, value in corpus.batch(rows).items()}
            return teacher_answers(model, inputs, layers, bf16=bf16)

        tokens = digest_of([encoding.ids, encoding.types] for encoding in corpus.encodings)
        key = {**_key(teacher, options), "bf16": bf16, "tokens": tokens}
        states = [f"{STATE}{layer}" for layer in layers]
        with bar("the teacher answers") as progress:
            kept = kept_answers(cache_folder(options.cache), key, ["teacher_logits", *states], corpus.lengths, ask, progress)
        found.append({"teacher_logits": kept["teacher_logits"]})
        if layers:
            found[-1]["teacher_states"] = Stacked([kept[name] for name in states])
    model.cpu()
    return joined(found)


def _foreign_answers(teacher: Teacher, texts: Texts, options: Distillation) -> dict[str, Column]:
    """The answers of a teacher that transformers runs, to each set of texts."""
    first = texts.part["text"][:], texts.part["text_b"][:] if "text_b" in texts.part.column_names else None
    sets: list[tuple[list[str], list[str] | None]] = [first, *((other, None) for other in texts.others)]
    found = []
    for each, pairs in sets:
        rows = zip(each, pairs, strict=True) if pairs else each
        key = {**_key(teacher, options), "max_length": options.max_length, "texts": digest_of(rows)}
        lengths = np.array([len(text) for text in each])
        with bar("the teacher answers") as progress:
            ask = foreign_ask(teacher, each, pairs, options.max_length)
            found.append(kept_answers(cache_folder(options.cache), key, ["teacher_logits"], lengths, ask, progress))
    return joined(found)


def _key(teacher: Teacher, options: Distillation) -> dict[str, Any]:
    """What decides the answers but for the texts: with other threads or another device the last bits may be others."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    runs = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    return {"teacher": teacher.digest, "order": teacher.order, **runs}


def refuse_tokens(task: str, options: Distillation) -> None:
    """Raise ConfigError if something is to be compared token by token, for a student and a teacher that do not have the same tokens."""
    if task in PER_TOKEN or (options.hidden_states == "tokens" and options.hidden):
        raise ConfigError(
            "Tokens are to be compared, but the student and the teacher have tokenizers of their own.",
            "Give --hidden-states pooled; a tagger needs its teacher's tokenizer: leave out --base and --vocabulary.",
        )


def _check_weights(task: str, options: Distillation) -> None:
    if task == "embedding" and options.hard:
        raise ConfigError("An embedding learns from its teacher's vectors, not from labels.", "Give --hard 0.")
    if not options.soft + options.hard + options.hidden:
        raise ConfigError("--soft, --hard and --hidden are all 0: there is nothing to learn from.", "Give at least one of them a weight.")


def _objective(options: Distillation, task: str, along: Along | None = None, bridge: nn.Module | None = None) -> Objective:
    weights = {"soft": options.soft, "hard": options.hard, "hidden": options.hidden, "temperature": options.temperature}
    return objective(**weights, along=along, task=task, bridge=bridge)
