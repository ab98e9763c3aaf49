"""Every stage's options on one page.

A field's description is its help text, its default the command's default, its type the check: command line, recipes and Python read
this one source. Options marked `runtime` (threads, device, how often to checkpoint) do not change what is made, so they are not
part of an artifact's identity. This file is torch-free.
"""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.config import problems
from model.errors import ConfigError


def _runtime(default: Any, description: str, **rules: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"runtime": True}, **rules)


class Options(BaseModel):
    """Base of all options: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> dict[str, Any]:
        """The options that decide what is made (without the `runtime` ones), as JSON values."""
        fields = type(self).model_fields
        extras = {name: field.json_schema_extra for name, field in fields.items()}
        runtime = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("runtime")}
        return self.model_dump(mode="json", exclude=runtime)


class Training(Options):
    """What every stage that trains shares."""

    epochs: float = Field(1.0, gt=0, description="Passes over the training texts.")
    batch_size: int = Field(32, ge=1, description="Texts a step.")
    learning_rate: float | None = Field(
        None, gt=0, description="Highest learning rate of AdamW (default: 1e-4, of a static model 2e-3, of a convolution 4e-3)."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="How the learning rate falls after that.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay (not on biases and norms).")
    max_length: int = Field(128, ge=2, description="Tokens a text is cut to, in training and ever after.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of the forward pass in training; weights stay fp32. fp16 (with scaled gradients) needs a GPU."
    )
    tf32: bool = Field(False, description="Multiply fp32 matrices as TF32: a GPU of Ampere or newer.")
    checkpointing: bool = _runtime(False, "Keep only each layer's input for the way back and compute the rest again: less memory.")
    accumulation: int = Field(1, ge=1, description="Parts in which a step's texts are computed, one after the other: less memory.")
    compile: bool = Field(False, description="Compile the model for training: pays on a GPU, and on long runs.")
    frozen: Literal["nothing", "tokens"] = Field(
        "nothing",
        description="What stays as it is: without the table of tokens, most of a small student's weights, a step is much quicker.",
    )
    train_texts: int | None = Field(None, ge=1, description="Train on this many of the labelled texts only, drawn by the seed.")
    seed: int = Field(0, ge=0, description="Decides initialisation, order and dropout.")
    threads: int | None = _runtime(None, "Threads for training (default: the cores that this process may use).", ge=1)
    device: Literal["cpu", "cuda"] = _runtime("cpu", "Where to train.")
    cache: str | None = _runtime(None, "Folder for what several stages need [default: $ALAMBIC_CACHE, or alambic in the user's cache].")
    checkpoint_every: int = _runtime(200, "Steps between checkpoints, from which a killed run goes on.", ge=1)


VOCABULARIES = ("unigram", "unigram_cased", "trimmed")


def _known_vocabulary(text: str | None) -> str | None:
    kind, _, size = (text or "").partition(":")
    if text is not None and (kind not in VOCABULARIES or not size.isdecimal() or not int(size)):
        raise ValueError(f"{text!r} is no vocabulary: give {' or '.join(VOCABULARIES)} with a number of pieces, such as unigram:16000")
    return text


class Form(Options):
    """What train and distill can make of a model before it learns."""

    attention: tuple[str, ...] = Field(
        (), description="Other attention for the layers, such as window:512; of several, they take each in turn (default: as it was)."
    )
    early_pooling: bool = Field(
        False,
        description="Pool in the last layer before its output projection and feed-forward network, which then run once a text: faster.",
    )
    positions_after_norm: bool = Field(
        False, description="Add positions to normed embeddings: export then folds embeddings and the first projection into one table."
    )
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "sigmoid"] | None = Field(
        None, description="Another activation for its layers (default: as it was); relu costs nothing in int8."
    )
    vocabulary: str | None = Field(
        None,
        description="Another vocabulary: unigram:16000 trains one on the texts (unigram_cased tells capitals from small letters), "
        "trimmed:16000 keeps that many pieces of the one that there is, those that the texts use most.",
    )

    _vocabulary = field_validator("vocabulary")(_known_vocabulary)


class MoreText(Training):
    """Text without labels beside the data. What is made of it is in the data's digest, wherever the files lie."""

    unlabelled: tuple[str, ...] = _runtime(
        (), "More text: files, folders or sets without labels, to learn from through the teacher; in train, to make the --vocabulary of."
    )
    unlabelled_text: str = _runtime("", "Their column with the text (default: every known one).")
    unlabelled_texts: int | None = _runtime(None, "Take this many of them, drawn by the seed.", ge=1)
    split_sentences: bool = _runtime(False, "Split them into sentences.")


class TrainOptions(Form, MoreText):
    """Options of `compress train`."""

    task: Literal["auto", "embedding", "masked", "replaced"] = Field(
        "auto",
        description="What to learn: what the labels say; embeddings, from pairs of texts with a score; from any text, "
        "words that are masked, or which words were replaced.",
    )
    masking: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are masked or replaced, with --task masked or replaced.")
    pooling: Literal["mean", "cls"] = Field("mean", description="What the head sees: the mean over the tokens, or the first one.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout (default: the base's own).")
    prefix: int = Field(
        0, ge=0, description="Freeze the base and train this many prefix keys and values a layer, and the head; only these are saved."
    )
    depth: int | None = Field(None, ge=1, description="Layers of the base to keep, evenly spaced, its last one the last (default: all).")


class Distillation(MoreText):
    """The objective of distill, of the recovery after prune, and of quantization-aware training."""

    soft: float = Field(1.0, ge=0, description="Weight of the teacher's probabilities (KL divergence at the temperature).")
    hard: float = Field(0.0, ge=0, description="Weight of the data's labels (cross entropy).")
    hidden: float = Field(1.0, ge=0, description="Weight of the mapped hidden states (mean squared error).")
    hidden_states: Literal["pooled", "tokens"] = Field(
        "pooled", description="Compare mean-pooled states (the teacher runs once) or the states of all tokens (it runs along)."
    )
    temperature: float = Field(2.0, gt=0, description="Softens teacher and student alike (Hinton et al. 2015).")
    teacher_layers: tuple[int, ...] = Field(
        (), description="Teacher layer for each student layer, counted from 0 (default: evenly spaced, the last on the last)."
    )
    augment: tuple[str, ...] = Field(
        (),
        description="New texts made from the training texts for the teacher to label, as KIND:COPIES a text: mask, ngram, mix, cross, "
        "swap, infill; retrieve:COPIES takes of the unlabelled texts only those that are near.",
    )

    @field_validator("augment")
    @classmethod
    def _readable(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if values:
            from compress.augmentation import read_augmentation

            for value in values:
                read_augmentation(value)
        return values


class Selection(Distillation):
    """Which heads and neurons are kept, by how much each matters (Taylor scores)."""

    heads: tuple[int, ...] = Field((), description="Heads to keep a layer: one number, or one for each layer (default: all).")
    neurons: tuple[int, ...] = Field(
        (), description="FFN neurons to keep a layer: one number, or one for each layer; 0 is no network (default: all)."
    )
    key_value_heads: tuple[int, ...] = Field(
        (),
        description="Heads of keys and values to keep a layer, which all its heads then share evenly: one number, or one for each layer "
        "(default: as it was).",
    )
    allocation: Literal["uniform", "global"] = Field(
        "uniform", description="Keep the same number in each layer, or let the layers compete for the same total."
    )
    scoring_texts: int = Field(1024, ge=1, description="Training texts on which heads and neurons are scored.")

    @model_validator(mode="after")
    def _groups(self) -> "Selection":
        if self.allocation == "global" and self.key_value_heads:
            raise ValueError("key_value_heads needs to know how many heads a layer keeps: give allocation uniform")
        return self


class DistillOptions(Form, Selection):
    """Options of `compress distill`."""

    depth: int = Field(2, ge=1, description="Layers of the student, started from the teacher layers that they are mapped to.")
    dropout: float | None = Field(0.0, ge=0, lt=1, description="Dropout of the student.")
    pooling: Literal["mean", "cls"] | None = Field(
        None, description="What the student's head sees (default: as the teacher's); of cls, pooled early, the last layer computes one row."
    )


class PruneOptions(Selection):
    """Options of `compress prune`."""


class QuantizeOptions(Distillation):
    """Options of `compress quantize`."""

    method: Literal["calibrate", "qat"] = Field("calibrate", description="Calibration alone, or quantization-aware training after it.")
    calibration_texts: int = Field(512, ge=1, description="Training texts that set the ranges of activations.")
    scheme: Literal["cpu", "tensorrt"] = Field(
        "cpu", description="What is to run it as integers: ONNX Runtime's CPU (uint8 activations) or TensorRT (int8, symmetric)."
    )
    embeddings: Literal["int8", "fp16", "fp32"] = Field("int8", description="How the token table is stored; for TensorRT always fp32.")
    keep: tuple[str, ...] = Field((), description="Linears that stay fp32, by name (`compress inspect` lists them).")


class ExportOptions(Options):
    """Options of `compress export`."""

    opset: int | None = Field(None, ge=20, le=23, description="ONNX operator set (default: 20, or 23 where RMSNorm needs it).")
    precision: Literal["fp32", "fp16"] = Field("fp32", description="fp16 is for GPUs; what would overflow there stays fp32.")
    attention: Literal["standard", "ort"] = Field(
        "standard", description="Standard operators, or ONNX Runtime's own Attention, which its fused GPU kernels need."
    )
    fold: Literal["auto", "always", "never"] = Field(
        "auto", description="Token embeddings, their norm and the first projection in one table: auto where positions come after the norm."
    )
    single: bool = Field(True, description="Write a second graph for one text at a time, without mask and batch; it shares the weights.")
    tolerance: float = Field(1e-4, gt=0, description="Largest difference in logits between PyTorch and the file (fp32 graphs).")
    signal: float | None = Field(
        None,
        gt=0,
        description="Least signal-to-noise ratio in dB between PyTorch and the file (int8 and fp16 graphs; default: 25, or as near "
        "as the model is to itself when its weights move by a ten-thousandth).",
    )


class BenchmarkOptions(Options):
    """Options of `compress benchmark`."""

    way: tuple[str, ...] = Field(
        ("transformers", "ort"),
        description="How models are run: transformers, torch (our own modules), torch-compile: the first model only; ort, ort-iobinding, "
        "ort-cuda-graph, ort-tensorrt: all. With a precision after a colon: ort:fp16, torch:bf16, ort:tf32.",
    )
    texts: int = Field(150, ge=10, description="Test texts that are timed in a round.")
    rounds: int = Field(7, ge=3, description="Rounds, each way in turn in each; the least of them where there is a budget.")
    seconds: float | None = Field(None, gt=0, description="Budget: more rounds until the speed-ups are known to ± width, or it is spent.")
    width: float = Field(0.02, gt=0, lt=1, description="How well a speed-up has to be known, as a share of it.")
    sweep: tuple[int, ...] = Field((), description="Batches for which throughput is measured over threads and processes (default: none).")
    threads: int = Field(1, ge=1, description="Threads of each way.")
    provider: Literal["cpu", "cuda"] = Field("cpu", description="Where the models run.")
    split: Literal["test", "validation"] = Field("test", description="Part of the data that is measured on.")
    price: float | None = Field(None, gt=0, description="Price of an hour of this machine, for the cost of a million requests.")
    examples: bool = Field(True, description="Show texts on which the last model and the baseline disagree in the report.")
    seed: int = Field(0, ge=0, description="Decides the texts that are timed and the resampling.")


T = TypeVar("T", bound=Options)


def _split(value: Any) -> Any:
    """Lists may be written as one value, or as text separated by commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


def read_options(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Validate `values` as options of `kind`; raises ConfigError that names `where`, each problem, and the known keys."""
    lists = {name for name, field in kind.model_fields.items() if "tuple" in str(field.annotation)}
    values = {name: _split(value) if name in lists else value for name, value in values.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        unknown = [str(item["loc"][0]) for item in error.errors() if item["type"] == "extra_forbidden"]
        hint = f"Known keys: {', '.join(kind.model_fields)}." if unknown else "`--help` of the command tells what each option takes."
        raise ConfigError(f"{where}: {problems(error)}.", hint) from None
