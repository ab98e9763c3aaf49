"""The teacher as the graph that other tools start from: transformers' BertModel by the TorchScript exporter, which Optimum uses.

python plain_graph.py TEACHER OUT
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from model.checkpoint import load_model
from model.pretrained import to_transformers

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Positional(torch.nn.Module):
    """The module with its inputs in the order of INPUTS, which tracing needs."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        return self.module(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)


def main(teacher: Path, out: Path) -> None:
    """Write model.onnx, config.json and the tokenizer's files."""
    out.mkdir(parents=True, exist_ok=True)
    encoder = load_model(teacher)
    module = to_transformers(encoder)
    module.bert.config._attn_implementation = "eager"  # the form in which ONNX Runtime's optimizer looks for attention
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in INPUTS)
    torch.onnx.export(
        Positional(module).eval(),
        example,
        str(out / "model.onnx"),
        dynamo=False,
        opset_version=18,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes={**{name: {0: "batch", 1: "length"} for name in INPUTS}, "logits": {0: "batch"}},
    )
    labels = json.loads((teacher / "config.json").read_bytes())["id2label"]
    config = {**module.bert.config.to_dict(), "id2label": labels, "label2id": {name: int(number) for number, name in labels.items()}}
    config |= {"architectures": ["BertForSequenceClassification"], "text_length": encoder.config.max_length}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for file in teacher.glob("tokenizer*"):
        shutil.copy(file, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
