"""Several models of the same texts in one graph, which gives the mean of their outputs.

Models of different kinds are wrong about different texts, so that a convolution and two layers are together right more often than either
(Hansen and Salamon 1990, "Neural Network Ensembles"). The mean of logits is the geometric mean of probabilities (Hinton et al. 2015, §1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model.build import Model
from model.errors import ConfigError
from model.kinds import ModelConfig
from model.tokenizer import Tokenizer

MEANT = ("classification", "multilabel", "regression")  # tasks of whose outputs there is a mean for each text


class Ensemble(nn.Module):
    """The mean of what `members` give for a text, [B, labels]; its `config` is that of the first."""

    def __init__(self, members: Sequence[Model]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        typed = [member.config.typed for member in members]
        self.typed = typed if any(typed) else [True] * len(typed)  # where none knows types, each says so
        self.config: ModelConfig = members[0].config

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """As each of its members; types of tokens are for those that know them."""
        types = [token_type_ids if typed else None for typed in self.typed]
        first, *others = [member(input_ids, attention_mask, own) for member, own in zip(self.members, types, strict=True)]
        total: Tensor = first
        for other in others:
            total = total + other
        return total / len(self.members)


def ensemble(members: Sequence[Model]) -> Model:
    """The `members` as one model, which is run, compared and exported like any other; of one, itself."""
    together: Any = members[0] if len(members) == 1 else Ensemble(members)
    made: Model = together
    return made


@dataclass(frozen=True)
class Member:
    """A model that is to be one of several, with its labels and its tokenizer; `name` is what an error calls it."""

    model: Model
    labels: Sequence[str]
    tokenizer: Tokenizer
    name: str


def check_members(members: Sequence[Member]) -> None:
    """Raise ConfigError for a member, by its name, that answers another question than the first, reads other tokens or runs elsewhere."""
    first, *others = members
    task = first.model.config.head.kind
    if others and task not in MEANT:
        raise ConfigError(f"Of the outputs of models for {task} there is no mean.", f"--ensemble is for {', '.join(MEANT)}.")
    for member in others:
        if (member.model.config.head.kind, list(member.labels)) != (task, list(first.labels)):
            what = f"{member.name} has other labels ({', '.join(member.labels[:8])}) than {first.name} ({', '.join(first.labels[:8])})"
            raise ConfigError(f"{what}: their outputs have no mean.", "Give models of the same data.")
        if _reads(member.tokenizer) != _reads(first.tokenizer):
            raise ConfigError(
                f"{member.name} does not read the tokens that {first.name} reads, or not as many of them.",
                "Distill both with the same --vocabulary and --max-length, on the same texts.",
            )
        schemes = {_scheme(member.model.config), _scheme(first.model.config)}
        if len(schemes) > 1 and "tensorrt" in schemes:
            raise ConfigError(
                f"Of {member.name} and {first.name} only one is quantized for TensorRT.", "Quantize both with the same --scheme."
            )


def _reads(tokenizer: Tokenizer) -> tuple[object, ...]:
    return tokenizer.digest, tokenizer.max_length, tokenizer.typed


def _scheme(config: ModelConfig) -> str:
    return config.quantization.scheme if config.quantization else ""
