"""The model card of an artifact: `README.md` with the metadata that the Hugging Face hub reads. Torch-free."""

import json
from typing import Any

DID = {
    "train": "fine-tuned",
    "distill": "distilled from its teacher",
    "prune": "pruned (heads and FFN neurons removed) and recovered",
    "quantize": "quantized to int8",
    "export": "exported to ONNX",
    "benchmark": "measured",
}
USE = {
    "onnx": "Run it: `compress predict {name} \"a text\"`, or load `model.onnx` with ONNX Runtime and `tokenizer.json` with tokenizers.",
    "torch": "Go on with it: `compress export`, or `model.checkpoint.load_model` for the PyTorch module.",
    "report": "Open `report.html`; programs read `report.json`.",
}


def write_card(
    *, kind: str, stage: str, options: dict[str, Any], task: str, labels: list[str], data: dict[str, Any] | None, metrics: dict[str, Any]
) -> str:
    """Markdown with YAML metadata; holds nothing that differs between two runs on one machine, since it is part of the digest."""
    quality = metrics.get("validation", {})
    header: dict[str, Any] = {"library_name": "alambic", "pipeline_tag": "text-classification", "tags": ["alambic", stage]}
    if kind == "onnx":
        header["tags"].append("onnx")
    if data and quality:
        values = [{"type": name, "value": value} for name, value in quality.items() if isinstance(value, float)]
        result = {"task": {"type": "text-classification"}, "dataset": {"name": data["name"], "type": data["name"], "split": "validation"}}
        header["model-index"] = [{"name": stage, "results": [{**result, "metrics": values}]}]
    # JSON is YAML: no other library is needed to write it.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---", ""]
    lines += [f"# A text encoder, {DID[stage]} by alambic", ""]
    lines += [f"- task: {task}" + (f" ({', '.join(labels)})" if labels else "")]
    if data:
        counts = ", ".join(f"{count:,} {split}" for split, count in data["counts"].items())
        lines.append(f"- data: {data['name']}{' (synthetic)' if data.get('synthetic') else ''}: {counts}")
    if quality:
        lines.append(f"- on validation: {', '.join(f'{name} {value:.4f}' for name, value in quality.items() if isinstance(value, float))}")
    if metrics.get("parameters"):
        lines.append(f"- parameters: {metrics['parameters']:,}")
    lines += [f"- options: {', '.join(f'{name} {value}' for name, value in options.items())}", "", USE[kind].format(name="DIRECTORY"), ""]
    return "\n".join(lines)
