"""`transformers.Trainer`, set up once for train, distill, the recovery after prune, and quantization-aware training.

What differs between them is the objective, a function of the model and a batch. The order of all batches of a training is drawn
before it begins, from the seed alone, so that a run that was killed and goes on from a checkpoint sees what it would have seen.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from compress.config import Training
from model.errors import EnvironmentProblem
from model.tokenizer import Encoding, Tokenizer
from serve.machine import usable_cores

Inputs = dict[str, Tensor]
Objective = Callable[[Any, Inputs], Tensor]
Progress = Callable[[int, int, str], None]
COMPLETE = "complete"
POOL = 50  # batches among which texts of like length are brought together


@dataclass(frozen=True)
class Corpus:
    """Tokenised texts with their labels; `columns` are tensors with one row a text, handed to the objective by name."""

    tokenizer: Tokenizer
    encodings: list[Encoding]
    labels: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text [n]."""
        return np.fromiter((len(encoding.ids) for encoding in self.encodings), dtype=np.int64, count=len(self))

    def batch(self, rows: list[int]) -> Inputs:
        """The padded texts at `rows`, their labels and columns."""
        padded = self.tokenizer.pad([self.encodings[row] for row in rows])
        inputs = {name: torch.from_numpy(array) for name, array in padded.items()}
        return {**inputs, "labels": self.labels[rows], **{name: column[rows] for name, column in self.columns.items()}}

    def batches(self, size: int) -> list[list[int]]:
        """All rows, longest texts first, in batches of `size`: the cheapest order for a pass without training."""
        order = np.argsort(-self.lengths, kind="stable")
        return [order[start : start + size].tolist() for start in range(0, len(order), size)]

    def passing(self, size: int, progress: Progress) -> Iterator[Inputs]:
        """The batches of one such pass, telling `progress`."""
        batches = self.batches(size)
        for number, rows in enumerate(batches, start=1):
            yield self.batch(rows)
            progress(number, len(batches), "")

    def subset(self, size: int, seed: int) -> "Corpus":
        """`size` rows drawn by `seed` (all of them if there are fewer)."""
        rows = np.random.default_rng(seed).permutation(len(self))[:size].tolist()
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Corpus(self.tokenizer, [self.encodings[row] for row in rows], self.labels[rows], columns)


def tokenize(tokenizer: Tokenizer, split: Any) -> Corpus:
    """A part of the data (columns text[, text_b], label) as a Corpus."""
    pairs = split["text_b"][:] if "text_b" in split.column_names else None
    return Corpus(tokenizer, tokenizer.ids(split["text"][:], pairs), torch.tensor(split["label"][:]))


def model_inputs(inputs: Inputs) -> Inputs:
    """The part of a batch that a model takes."""
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs}


def prepare(options: Training) -> None:
    """Threads, seeds and device, before a stage computes anything; raises EnvironmentProblem if there is no such device."""
    torch.set_num_threads(options.threads or usable_cores())
    set_seed(options.seed)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem("PyTorch finds no CUDA device here.", "Leave --device at cpu, or install a CUDA build of torch.")


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


def train(model: nn.Module, corpus: Corpus, objective: Objective, options: Training, work: Path, progress: Progress) -> dict[str, Any]:
    """Train `model` in place on `corpus`; checkpoints lie in `work`, and the last whole one is gone on from.

    Returns steps and the loss averaged over the last tenth of them.
    """
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        weight_decay=options.weight_decay,
        optim="adamw_torch_fused",
        bf16=options.precision == "bf16",
        use_cpu=options.device == "cpu",
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
    lesson = _Lesson(model, objective)
    trainer = _Trainer(model=lesson, args=arguments, train_dataset=range(len(corpus)), callbacks=[_Told(progress)])
    trainer.remove_callback(PrinterCallback)
    trainer.corpus, trainer.batches = corpus, batches
    trainer.train(resume_from_checkpoint=_last_checkpoint(work))
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
        return self.objective(self.student, inputs)


class _Trainer(Trainer):
    corpus: Corpus
    batches: list[list[int]]

    def get_train_dataloader(self) -> Any:
        rows: Any = range(len(self.corpus))
        loader = DataLoader(rows, batch_sampler=self.batches, collate_fn=self.corpus.batch, generator=torch.Generator())
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: Any, inputs: Inputs, *_: Any, **__: Any) -> Tensor:
        loss: Tensor = model(inputs)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        (
            Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}" / COMPLETE
        ).touch()  # a kill before this: not gone on from


class _Told(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.loss = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps, self.loss)


def _last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint; what a kill left half-written is removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return str(whole[-1]) if whole else None
