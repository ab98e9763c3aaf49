"""`transformers.Trainer`, set up once for train, distill, the recovery after prune, and quantization-aware training.

What differs between them is the objective, a function of the model and a batch. The order of all batches of a training is drawn
before it begins, from the seed alone, so that a run that was killed and goes on from a checkpoint sees what it would have seen.
"""

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from compress.config import Training
from compress.masking import Masking, masking_for
from compress.ranks import local_processes, processes, rank
from compress.sharding import backend, give_back, in_shares, load_shares, read_sharding, save_shares, shard, take_launch, taken
from compress.tasks import PRETRAINING, texts_of, truth_of
from model.build import Model
from model.errors import EnvironmentProblem
from model.tokenizer import Encoding, Tokenizer
from serve.machine import usable_cores

Inputs = dict[str, Tensor]
Objective = Callable[[Any, Inputs], Tensor]
Progress = Callable[[int, int, str], None]
T = TypeVar("T")
COMPLETE = "complete"
NO_TAG = -100  # of tokens that do not begin a word
LEARNING_RATES = {"encoder": 1e-4, "static": 2e-3, "convolution": 4e-3}  # where none is given
POOL = 50  # batches among which texts of like length are brought together
LONG = 512  # tokens: batches of longer texts are made of fewer, outside of training

# Pages of 2 MB where Linux has them, since a step takes its memory anew. PyTorch reads it when it first allocates, and a teacher is opened
# before `prepare` is called.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class Column(Protocol):
    """A value of each text: a tensor, or what gives one for some rows (`compress.answers`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: list[int], /) -> Tensor: ...


class Part(NamedTuple):
    """Rows that one process computes at a time, how much their mean counts, and the step that they are of, from 1."""

    rows: list[int]
    weight: float
    step: int = 0


@dataclass(frozen=True)
class Corpus:
    """Tokenised texts with their labels, a row a text; for embeddings a row may be two texts, each encoded by itself.

    `labels` [n], [n, labels] for several labels, [n, longest] with a tag for each token (`tags`); `columns` are handed to the objective
    by name; `truth` is what metrics compare with (see `compress.tasks`), `seconds` the second texts. With a
    `lesson` the texts teach by themselves.
    """

    tokenizer: Tokenizer
    encodings: list[Encoding]
    labels: Tensor
    columns: Mapping[str, Column] = field(default_factory=dict)
    truth: Any = None
    seconds: list[Encoding] | None = None
    tags: bool = False
    lesson: Masking | None = None

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text (the longer of two) [n]."""
        count = [len(encoding.ids) for encoding in self.encodings]
        return np.array(count) if self.seconds is None else np.maximum(count, [len(encoding.ids) for encoding in self.seconds])

    def batch(self, rows: list[int], step: int = 0) -> Inputs:
        """The padded texts at `rows` (all first texts, then all second ones where there are two), their labels and columns.

        `step` is that of the training, 0 for none: a lesson differs from one to the next.
        """
        chosen = [texts[row] for texts in (self.encodings, self.seconds) if texts is not None for row in rows]
        inputs = {name: torch.from_numpy(array) for name, array in self.tokenizer.pad(chosen).items()}
        if self.lesson is not None:
            return self.lesson(inputs, rows, step)
        labels = self.labels[rows, : inputs["input_ids"].shape[1]] if self.tags else self.labels[rows]
        return {**inputs, "labels": labels, **{name: column[rows] for name, column in self.columns.items()}}

    def batches(self, size: int) -> list[list[int]]:
        """All rows, longest texts first, in batches of `size`: the cheapest order for a pass without training.

        A batch is smaller where texts are long: at most `size` × LONG tokens, padding counted.
        """
        lengths, start, found = self.lengths, 0, []
        order = np.argsort(-lengths, kind="stable")
        while start < len(order):
            count = min(size, max(1, size * LONG // int(lengths[order[start]])))
            found.append(order[start : start + count].tolist())
            start += count
        return found

    def passing(self, size: int, progress: Progress) -> Iterator[Inputs]:
        """The batches of one such pass, telling `progress`."""
        batches = self.batches(size)
        for number, rows in enumerate(batches, start=1):
            yield self.batch(rows)
            progress(number, len(batches), "")

    def subset(self, size: int, seed: int) -> "Corpus":
        """`size` rows drawn by `seed` (all of them if there are fewer), without their truth."""
        rows = np.random.default_rng(seed).permutation(len(self))[:size].tolist()
        columns: dict[str, Column] = {name: column[rows] for name, column in self.columns.items()}
        seconds = None if self.seconds is None else [self.seconds[row] for row in rows]
        return replace(
            self, encodings=[self.encodings[row] for row in rows], labels=self.labels[rows], columns=columns, truth=None, seconds=seconds
        )


def drawn(split: Any, size: int | None, seed: int) -> Any:
    """`size` rows of a part of the data, drawn by `seed`; all of them if `size` is None or there are fewer."""
    return split if size is None else split.select(np.random.default_rng(seed).permutation(len(split))[:size])


def tokenize(tokenizer: Tokenizer, split: Any, task: str = "classification", labels: Sequence[str] = ()) -> Corpus:
    """A part of the data (columns as `compress.data` has them) as a Corpus for a model of `task` with these labels."""
    if task in PRETRAINING:
        encodings = tokenizer.ids(texts_of(task, split), split["text_b"][:] if "text_b" in split.column_names else None)
        return Corpus(tokenizer, encodings, torch.zeros(len(encodings)), lesson=masking_for(task, tokenizer, encodings))
    truth = truth_of(task, split, labels)
    if task == "tagging":
        return _tagged(tokenizer, split["tokens"][:], truth)
    texts, pairs = split["text"][:], split["text_b"][:] if "text_b" in split.column_names else None
    if task == "embedding":
        span = max(float(np.ptp(truth)), 1e-9)
        wanted = torch.tensor((truth - truth.min()) / span, dtype=torch.float32)  # cosines from 0 to 1
        return Corpus(tokenizer, tokenizer.ids(texts), wanted, truth=truth, seconds=tokenizer.ids(pairs or []))
    kind = torch.int64 if task == "classification" else torch.float32
    return Corpus(tokenizer, tokenizer.ids(texts, pairs), torch.tensor(truth, dtype=kind), truth=truth)


def _tagged(tokenizer: Tokenizer, sentences: list[list[str]], tags: list[list[int]]) -> Corpus:
    """The tag of a word is that of its first token; the others have none (Devlin et al. 2018, §5.3)."""
    encodings = tokenizer.words(sentences)
    labels = torch.full((len(encodings), max(len(encoding.ids) for encoding in encodings)), NO_TAG)
    for row, (encoding, numbers) in enumerate(zip(encodings, tags, strict=True)):
        for place, number in zip(encoding.words or [], numbers, strict=True):
            if place >= 0:
                labels[row, place] = number
    return Corpus(tokenizer, encodings, labels, truth=tags, tags=True)


def model_inputs(inputs: Inputs) -> Inputs:
    """The part of a batch that a model takes."""
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids", "places") if name in inputs}


def prepare(options: Training) -> None:
    """Threads, seeds, device and the other processes, before a stage computes anything.

    Raises EnvironmentProblem if there is no such device, or it has not the precision (Trainer would train in fp32 without a word), if
    nothing can compile, and for what `accelerate launch` asks for and is not done (see `compress.sharding`).
    """
    torch.set_num_threads(options.threads or max(1, usable_cores() // local_processes()))
    set_seed(options.seed)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem("PyTorch finds no CUDA device here.", "Leave --device at cpu, or install a CUDA build of torch.")
    if options.device == "cpu" and (options.precision == "fp16" or options.tf32):
        what = "fp16 with scaled gradients" if options.precision == "fp16" else "TF32"
        raise EnvironmentProblem(f"{what} is for GPUs; training is on the CPU.", "Give --device cuda, or take --precision bf16 or fp32.")
    if options.tf32 and torch.cuda.get_device_capability() < (8, 0):
        raise EnvironmentProblem(f"{torch.cuda.get_device_name()} has no TF32.", "Leave --tf32 out, or use a GPU of Ampere or newer.")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if options.compile and shutil.which(compiler) is None:
        what = f"--compile builds kernels with a C++ compiler, and there is no {compiler} here."
        raise EnvironmentProblem(what, "Install one (package g++), name yours in the variable CXX, or leave --compile out.")
    sharding = take_launch(options)
    if (processes() > 1 or sharding) and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend(options.device, sharding))


def in_turn(make: Callable[[], T]) -> T:
    """What `make` gives; of several processes the first makes it before the others do, so that they find its files."""
    if processes() == 1:
        return make()
    if rank():
        torch.distributed.barrier()
        return make()
    made = make()
    torch.distributed.barrier()
    return made


def schedule_of_batches(lengths: np.ndarray, size: int, epochs: float, seed: int) -> list[list[int]]:
    """Every batch of the training, in order: texts shuffled, those of like length brought together, batches shuffled.

    lengths: tokens of each text [n]. The last pass is cut where `epochs` ends.
    """
    random = np.random.default_rng(seed)
    steps = max(1, round(epochs * math.ceil(len(lengths) / size)))
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = random.permutation(len(lengths))
        pools = [order[start : start + POOL * size] for start in range(0, len(order), POOL * size)]
        sorted_rows = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        one_pass = [sorted_rows[start : start + size].tolist() for start in range(0, len(order), size)]
        batches.extend(one_pass[index] for index in random.permutation(len(one_pass)))
    return batches[:steps]


def parts_of(batches: list[list[int]], accumulation: int, rank: int, processes: int) -> list[Part]:
    """What process `rank` computes: of each batch `accumulation` parts in turn.

    A weight makes the mean over all parts of a step that over its batch; a part without rows has a row of weight 0.
    """
    count = accumulation * processes
    parts = []
    for step, rows in enumerate(batches, start=1):
        for turn in range(accumulation):
            mine = rows[turn * processes + rank :: count]
            parts.append(Part(mine or rows[:1], len(mine) * count / len(rows), step))
    return parts


def train(model: Model, corpus: Corpus, objective: Objective, options: Training, work: Path, progress: Progress) -> dict[str, Any]:
    """Train `model` in place on `corpus`; checkpoints lie in `work`, and the last whole one is gone on from.

    Returns steps and the loss averaged over the last tenth of them. Ends the process if it is one that helps another (`compress.ranks`).
    """
    sharding = read_sharding()
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate or LEARNING_RATES[model.config.kind],
        warmup_steps=options.warmup,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        weight_decay=options.weight_decay,
        optim="adamw_torch_fused",
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        tf32=options.tf32 or None,
        use_cpu=options.device == "cpu",
        ddp_find_unused_parameters=False,
        ddp_backend=backend(options.device, sharding) if processes() > 1 else None,
        seed=options.seed,
        save_strategy="steps",
        save_steps=options.checkpoint_every,
        save_total_limit=2,
        logging_steps=10,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
    )
    batches = schedule_of_batches(corpus.lengths, options.batch_size, options.epochs, options.seed)
    model.checkpointing = options.checkpointing or (sharding is not None and sharding.checkpointing)
    if options.frozen == "tokens":
        model.get_submodule(model.config.table).requires_grad_(False)
    lesson = _Lesson(taken(model) if sharding else model, objective)
    if options.compile:
        lesson.compile(dynamic=True)
    kind = _ShardedTrainer if sharding else _Trainer
    trainer = kind(model=lesson, args=arguments, train_dataset=range(len(corpus)), callbacks=[_Told(progress)])
    trainer.remove_callback(PrinterCallback)
    trainer.corpus, trainer.parts = corpus, parts_of(batches, options.accumulation, rank(), processes())
    if sharding:
        trainer.whole = sharding.whole
        shard(lesson, sharding, options.device)
    trainer.train(resume_from_checkpoint=in_turn(lambda: _last_checkpoint(work, shares=sharding is not None)))
    if sharding:
        give_back(lesson.student, model)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if rank():
        sys.exit(0)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    model.to("cpu").eval()
    return {"steps": len(batches), "loss": round(float(np.mean(tail)), 4) if tail else None}


class _Lesson(nn.Module):
    """What the Trainer sees: a module that gives a loss, so that autocast and the like cover the objective too."""

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, inputs: Inputs) -> Tensor:
        return self.objective(self.student, inputs) * inputs["weight"]


class _Trainer(Trainer):
    corpus: Corpus
    parts: list[Part]
    whole = False  # process 0 writes what is sharded

    def get_train_dataloader(self) -> Any:
        """The parts in order; they are this process's own already, so accelerate has nothing to share out."""
        parts: Any = self.parts
        return DataLoader(parts, batch_size=1, collate_fn=self._batch, generator=torch.Generator())

    def _batch(self, parts: list[Part]) -> Inputs:
        return {**self.corpus.batch(parts[0].rows, parts[0].step), "weight": torch.tensor(parts[0].weight)}

    def compute_loss(self, model: Any, inputs: Inputs, *_: Any, **__: Any) -> Tensor:
        with self.accelerator.autocast():  # which accelerate gives to what it wraps by itself
            loss: Tensor = model(inputs)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if processes() > 1:
            torch.distributed.barrier()
        if not rank():  # a kill before this: not gone on from
            (Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()


class _ShardedTrainer(_Trainer):
    """Checkpoints of what no process has whole: weights, optimizer and schedule in one."""

    def save_model(self, *_: Any, **__: Any) -> None:
        pass

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        pass

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_shares(*self._trained, Path(output_dir), whole=self.whole)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_shares(*self._trained, Path(checkpoint))

    @property
    def _trained(self) -> tuple[Any, Any, Any]:
        optimizer: Any = self.optimizer
        return self.model, optimizer.optimizer, self.lr_scheduler  # the optimizer that accelerate wrapped


class _Told(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.loss = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps, self.loss)


def _last_checkpoint(work: Path, *, shares: bool) -> str | None:
    """The newest whole checkpoint; what a kill left half-written is removed.

    Raises EnvironmentProblem if it was written in shares, and should not be, or the other way round.
    """
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    if whole and in_shares(whole[-1]) != shares:
        ways = ("sharded training", "training of whole copies")
        what = f"{whole[-1]} was written by {ways[shares]}, which {ways[not shares]} cannot go on from."
        raise EnvironmentProblem(what, "Launch it as it was launched before, or give --overwrite to begin again.")
    return str(whole[-1]) if whole else None
