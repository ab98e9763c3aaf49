"""Write a model as ONNX, and let it pass two gates first: the same answers as PyTorch, and integers where integers were promised."""

import json
import statistics
import time
from collections.abc import Mapping

from compress.config import ExportOptions
from compress.progress import bar
from compress.sources import Source
from compress.stage import Result, Workspace
from export import audit, parity
from export.graph import export_graph, opset_for
from model.artifact import Artifact
from model.checkpoint import load_model, write_config
from model.encoder import Encoder
from model.tokenizer import open_tokenizer
from serve.predictor import GRAPH, OrtPredictor, unsealed_predictor

SAMPLE = "a text of about ten words, to see how long one takes"
TIMED = 200


def run(options: ExportOptions, sources: Mapping[str, Source], data: None, workspace: Workspace) -> Result:
    """See compress.stage."""
    source = sources["model"].model
    with bar("exporting") as progress:
        model = load_model(source.path)
        labels, pairs = source.manifest.labels, _takes_pairs(source, model)
        file = workspace.artifact / GRAPH
        export_graph(model, file, opset=options.opset or opset_for(model), pairs=pairs)
        progress(1, 3, "comparing with PyTorch")
        _describe(model, workspace, labels)
        open_tokenizer(source.path, model.config.max_length).save(workspace.artifact)
        predictor = unsealed_predictor(workspace.artifact, labels)
        found = parity.compare(model, predictor, pairs=pairs)
        quantized = model.config.quantization
        parity.gate(found, tolerance=None if quantized and quantized.linears else options.tolerance, signal=options.signal)
        progress(2, 3, "looking at what ONNX Runtime runs")
        audited = audit.audit(file)
        promised = len(quantized.linears) if quantized else 0
        audit.gate(audited, integer=promised, file=file)
    linears = sum(
        name.startswith("layers.") and name.endswith(".weight") and value.dim() == 2 for name, value in model.state_dict().items()
    )
    metrics = {
        "integer_linears": {"integer": audited.integer, "total": linears},
        "operators": audited.operators,
        "nodes": audited.nodes,
        "parity": {
            "largest_difference": found.difference,
            "least_signal_db": None if found.signal_db == float("inf") else round(found.signal_db, 1),
            "shapes": found.shapes,
            "worst_shape": list(found.worst_shape),
        },
        "ort_ms": _latency_ms(predictor, pairs),
        **{name: source.manifest.metrics[name] for name in ("validation", "parameters") if name in source.manifest.metrics},
    }
    return Result(source.manifest.task, labels, metrics)


def _takes_pairs(source: Artifact, model: Encoder) -> bool:
    """Whether the graph needs to be told which text a token is of."""
    return bool((source.manifest.data or {}).get("pairs")) and model.config.token_types > 1


def _describe(model: Encoder, workspace: Workspace, labels: list[str]) -> None:
    """config.json as transformers and Optimum read it: sizes and labels under the names of BERT, ours beside them."""
    write_config(workspace.artifact, model.config, labels, "bert")
    path = workspace.artifact / "config.json"
    attention = model.config.layers[0].attention
    sizes = {
        "vocab_size": model.config.vocabulary,
        "hidden_size": model.config.width,
        "num_hidden_layers": len(model.config.layers),
        "num_attention_heads": attention.heads,
        "max_position_embeddings": model.config.max_length,
        "type_vocab_size": model.config.token_types,
        "problem_type": "single_label_classification",
    }
    values = json.loads(path.read_bytes()) | sizes
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _latency_ms(predictor: OrtPredictor, pairs: bool) -> float:
    """Median of text → logits of one short sample on one thread, for the stage's own line; `compress benchmark` measures on real texts."""
    second = [SAMPLE] if pairs else None
    samples = []
    for _ in range(TIMED):
        started = time.perf_counter()
        predictor.logits(predictor.encode([SAMPLE], second))
        samples.append(time.perf_counter() - started)
    return round(1000 * statistics.median(samples), 4)
