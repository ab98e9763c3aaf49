"""Several models of the same texts in one graph, which gives the mean of their outputs.

Models of different kinds are wrong about different texts, so that a convolution and two layers are together right more often than either
(Hansen and Salamon 1990, "Neural Network Ensembles"). The mean of logits is the geometric mean of probabilities (Hinton et al. 2015, §1).
"""

from collections.abc import Sequence
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
        self.config: ModelConfig = members[0].config

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """As each of its members."""
        first, *others = [member(input_ids, attention_mask, token_type_ids) for member in self.members]
        total: Tensor = first
        for other in others:
            total = total + other
        return total / len(self.members)


def ensemble(members: Sequence[Model]) -> Model:
    """The `members` as one model, which is run, compared and exported like any other; of one, itself."""
    together: Any = members[0] if len(members) == 1 else Ensemble(members)
    made: Model = together
    return made


def check_members(models: Sequence[Model], labels: Sequence[Sequence[str]], tokenizers: Sequence[Tokenizer], names: Sequence[str]) -> None:
    """Raise ConfigError for a model, by its name, that answers another question than the first, reads other tokens or runs elsewhere."""
    first = models[0].config
    if len(models) > 1 and first.head.kind not in MEANT:
        raise ConfigError(f"Of the outputs of models for {first.head.kind} there is no mean.", f"--also is for {', '.join(MEANT)}.")
    for model, named, tokenizer, name in zip(models[1:], labels[1:], tokenizers[1:], names[1:], strict=True):
        if (model.config.head.kind, list(named)) != (first.head.kind, list(labels[0])):
            what = f"{name} has other labels ({', '.join(named[:8])}) than {names[0]} ({', '.join(labels[0][:8])})"
            raise ConfigError(f"{what}: their outputs have no mean.", "Give models of the same data.")
        if (tokenizer.digest, tokenizer.max_length, tokenizer.typed) != (
            tokenizers[0].digest,
            tokenizers[0].max_length,
            tokenizers[0].typed,
        ):
            raise ConfigError(
                f"{name} does not read the tokens that {names[0]} reads, or not as many of them.",
                "Distill both with the same --vocabulary and --max-length, on the same texts.",
            )
        if _scheme(model.config) != _scheme(first) and "tensorrt" in (_scheme(model.config), _scheme(first)):
            raise ConfigError(f"Of {name} and {names[0]} only one is quantized for TensorRT.", "Quantize both with the same --scheme.")


def _scheme(config: ModelConfig) -> str:
    return config.quantization.scheme if config.quantization else ""
