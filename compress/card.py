"""The model card of an artifact: `README.md` with the metadata that the Hugging Face hub reads. Torch-free."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from compress.sources import numbered

DID = {
    "train": "fine-tuned",
    "distill": "distilled from its teacher",
    "prune": "pruned (heads and FFN neurons removed) and recovered",
    "quantize": "quantized to int8",
    "export": "exported to ONNX",
    "benchmark": "measured",
}
PIPELINES = {
    "tagging": "token-classification",
    "embedding": "sentence-similarity",
    "masked": "fill-mask",
    "replaced": "token-classification",
}  # the hub's names; all else is text-classification
# Bases by what is in them, under their names on the hub: a directory's own name says nothing.
HUB = {"41d03fdf73bfd48febd81e94dd29be4d479984c9913cad1e45b5bbda9f79af27": "sentence-transformers/all-MiniLM-L6-v2"}
CAME_FROM = ("student", "base", "model", "teacher")  # the role whose weights a stage went on from: the first of these that it has
USE = {
    "onnx": 'Run it: `compress predict {name} "a text"`, or load `model.onnx` with ONNX Runtime and `tokenizer.json` with tokenizers. '
    "Where there is a `model.onnx.single`, it is for one text at a time: it takes no mask, and its weights are in `model.onnx`.",
    "torch": "Go on with it: `compress export`, or `model.checkpoint.load_model` for the PyTorch module.",
    "report": "Open `report.html`; programs read `report.json`.",
}


def write_card(
    *,
    kind: str,
    stage: str,
    options: dict[str, Any],
    task: str,
    labels: list[str],
    data: dict[str, Any] | None,
    metrics: dict[str, Any],
    parents: Mapping[str, str] | None = None,
    ancestors: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Markdown with YAML metadata; holds nothing that differs between two runs on one machine, since it is part of the digest.

    `parents` (role → digest) and `ancestors` (digest → summary) are the manifest's. What is not known, such as a license, is left out.
    """
    parents = parents or {}
    line = list(_line(parents, ancestors or {})) if kind != "report" else []
    base = _base(line)
    quality = {name: value for name, value in metrics.get("validation", {}).items() if isinstance(value, float)}
    pipeline = PIPELINES.get(task, "text-classification")
    header: dict[str, Any] = {"library_name": "alambic", "pipeline_tag": pipeline, "tags": ["alambic", stage]}
    if kind == "onnx":
        header["tags"].append("onnx")
    if base:
        quantized = "quantize" in (stage, *(known["stage"] for _, known in line))
        header |= {"base_model": base, "base_model_relation": "quantized" if quantized else "finetune"}
    if data and "/" in data["name"]:  # a set of the hub; files and folders have no slash in their names
        header["datasets"] = [data["name"].partition(":")[0]]
    if data and quality:
        values = [{"type": name, "value": value} for name, value in quality.items()]
        where = {"name": data["name"], "type": data["name"].partition(":")[0], "split": "validation"}
        header["model-index"] = [
            {"name": f"{data['name']}-{stage}", "results": [{"task": {"type": pipeline}, "dataset": where, "metrics": values}]}
        ]
    # JSON is YAML: no other library is needed to write it.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---", ""]
    lines += [f"# A text encoder, {DID[stage]} by alambic", ""]
    lines += [f"- task: {task}" + (f" ({', '.join(labels)})" if labels else "")]
    if data:
        counts = ", ".join(f"{count:,} {split}" for split, count in data["counts"].items())
        lines.append(f"- data: {data['name']}{' (synthetic)' if data.get('synthetic') else ''}: {counts}{_beside(data)}")
    if quality:
        lines.append(f"- on validation: {', '.join(f'{name} {value:.4f}' for name, value in quality.items())}")
    if metrics.get("parameters"):
        lines.append(f"- parameters: {metrics['parameters']:,}")
    lines += [f"- options: {', '.join(f'{name} {value}' for name, value in options.items())}", ""]
    if line:
        steps = [_step(digest, known, base) for digest, known in reversed(line)]
        others = [f"`{parents[role][:12]}`" for role in numbered("ensemble", parents)]
        together = f", the mean of what it and {', '.join(others)} say" if others else ""
        lines += [
            "## Where it comes from",
            "",
            *(f"{number}. {step}" for number, step in enumerate([*steps, f"{DID[stage]}{together}: this model"], 1)),
            "",
        ]
    return "\n".join([*lines, USE[kind].format(name="DIRECTORY"), ""])


def _beside(data: Mapping[str, Any]) -> str:
    """The text without labels that was learnt from beside the data, in words."""
    more = data.get("unlabelled")
    return f"; and {more['texts']:,} texts without labels" if more else ""


def _line(parents: Mapping[str, str], ancestors: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The ancestors whose weights came down to this model, the youngest first: digest and summary."""
    while (digest := next((parents[role] for role in CAME_FROM if role in parents), None)) in ancestors:
        assert digest
        yield digest, ancestors[digest]
        parents = ancestors[digest].get("parents", {})


def _base(line: list[tuple[str, Mapping[str, Any]]]) -> str | None:
    """The name on the hub of what it all began with, where that is known."""
    digest, known = line[-1] if line else ("", {"stage": ""})
    if known["stage"] != "base":
        return None
    name = str(known.get("name", ""))
    return HUB.get(digest, name if "/" in name else None)


def _step(digest: str, known: Mapping[str, Any], base: str | None) -> str:
    """One ancestor in words. The name of a base that is a path is left out: the same files may lie anywhere."""
    if known["stage"] == "base":
        return f"began with {base or 'a base'} (`{digest[:12]}`)"
    data = f" on {known['data']['name']}" if known.get("data") and known["stage"] not in ("export", "quantize") else ""
    parents = known.get("parents", {})
    own = {"model", "base", "student"} & set(parents)
    beside = [parents[role][:12] for role in numbered("also", parents)]
    teachers = [parents["teacher"][:12], *beside] if "teacher" in parents and (own or beside) else []
    helped = f" with the teacher{'s' * (len(teachers) > 1)} {', '.join(f'`{digest}`' for digest in teachers)}" if teachers else ""
    return f"{DID.get(known['stage'], known['stage'])}{data}{helped} (`{digest[:12]}`)"
