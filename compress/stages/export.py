"""Write a model as ONNX, and let it pass two gates first: the same answers as PyTorch, and integers where integers were promised."""

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compress.bases import open_whole
from compress.config import ExportOptions
from compress.progress import bar
from compress.sources import Source, numbered, place_of
from compress.stage import Result, Workspace
from export import parity, plan
from export.audit import as_written, audit
from export.ensemble import Member, check_members, ensemble
from export.first_token import one_query
from export.folding import clamp, fold
from export.graph import export_graph, opset_for
from export.half import to_half
from export.one_text import one_text
from export.ort_attention import with_ort_attention
from export.sharing import share_weights
from model.artifact import Manifest
from model.build import Model, as_encoder, as_run
from model.checkpoint import write_config
from model.config import EncoderConfig
from model.encoder import Encoder
from model.errors import ConfigError
from model.kinds import ModelConfig
from model.tokenizer import open_tokenizer
from serve.predictor import GRAPH, SINGLE, OrtPredictor, unsealed_predictor

SAMPLE = "a text of about ten words, to see how long one takes"
TIMED = 200
PROBLEMS = {"classification": "single_label_classification", "multilabel": "multi_label_classification", "regression": "regression"}


def run(options: ExportOptions, sources: Mapping[str, Source], data: None, workspace: Workspace) -> Result:
    """See compress.stage."""
    used = [sources["model"], *(sources[role] for role in numbered("ensemble", sources))]
    manifests = [source.artifact.manifest if source.artifact else None for source in used]
    with bar("exporting") as progress:
        members = [_member(source, place_of(sources)) for source in used]
        check_members(members)
        models, labels = [member.model for member in members], list(members[0].labels)
        configs = [model.config for model in models]
        pairs = any(_takes_pairs(manifest, model) for manifest, model in zip(manifests, models, strict=True))  # a table asks for no types
        file, single = workspace.artifact / GRAPH, workspace.artifact / SINGLE
        parts = [_part(options, model, pairs) for model in models]
        opset = options.opset or max(opset_for(model) for model in models)
        export_graph(ensemble([part.written for part in parts]), file, opset=opset, pairs=pairs)
        promised = plan.together([part.promised for part in parts])
        maskless = all(config.maskless for config in configs)
        alone = options.single and maskless and options.attention == "standard" and not promised.elsewhere
        if alone:
            export_graph(ensemble([one_text(part.written) for part in parts]), single, opset=opset, pairs=pairs, single=True)
            share_weights(single, file)
        kept = to_half(file, parity.batches(configs[0], pairs=pairs)) if options.precision == "fp16" else []
        progress(1, 3, "comparing with PyTorch")
        _describe(configs, workspace, labels, options.precision)
        members[0].tokenizer.save(workspace.artifact)
        predictor = unsealed_predictor(workspace.artifact, labels)
        exact = options.precision == "fp32" and all(part.exact for part in parts)
        reference = ensemble([part.reference for part in parts])
        asked: dict[str, Any] = {"pairs": pairs, "tolerance": options.tolerance if exact else None, "signal": options.signal}
        found = parity.checked(reference, replace(predictor, single=None), **asked)
        if alone:
            found_alone = parity.checked(reference, predictor, single=True, **asked)
        progress(2, 3, "looking at what ONNX Runtime runs")
        # ONNX Runtime's CPU takes fp16 apart and runs TensorRT's int8 in float, a GPU does not.
        audited = as_written(file) if promised.elsewhere else audit(file)
        plan.gate(promised, audited, file)
        if alone:
            audited_alone = audit(single)
            plan.gate(promised, audited_alone, single)
    metrics: dict[str, Any] = {
        "integer_linears": {"integer": audited.integer, "total": sum(part.linears for part in parts)},
        "operators": audited.operators,
        "nodes": audited.nodes,
        **({"tensorrt_linears": audited.symmetric} if promised.symmetric else {}),
        **({"fp32_nodes": kept} if options.precision == "fp16" else {}),
        "plan": asdict(promised),
        **parts[0].rewrites,
        **({"ensemble": [part.rewrites for part in parts[1:]]} if parts[1:] else {}),
        "parity": _parity(found),
        **({"single": {"nodes": audited_alone.nodes, "parity": _parity(found_alone)}} if alone else {}),
        "ort_ms": _latency_ms(predictor, pairs),
        **_known(manifests),
    }
    return Result(configs[0].head.kind, labels, metrics)


def _member(source: Source, backbone: Path | None) -> Member:
    model, labels = open_whole(source, backbone)
    model = as_run(model)
    return Member(model, labels, open_tokenizer(source.path, model.config.max_length), str(source.path))


@dataclass(frozen=True)
class Part:
    """A model in the form in which its graph is `written`, what that promises, and which of the `rewrites` were made.

    The file is compared with `reference`, to the last bits of fp32 if it is `exact`.
    """

    written: Model
    reference: Model
    promised: plan.Plan
    rewrites: dict[str, bool]
    exact: bool

    @property
    def linears(self) -> int:
        """Linears of its layers."""
        weights = self.written.state_dict().items()
        return sum(name.startswith("layers.") and name.endswith(".weight") and value.dim() == 2 for name, value in weights)


def _part(options: ExportOptions, model: Model, pairs: bool) -> Part:
    folded = _folds(options, model, pairs)
    written = with_ort_attention(model) if options.attention == "ort" else clamp(model)
    first = False
    if isinstance(written, Encoder) and _one_query(options, written, folded):
        before, written = written, one_query(written)
        first = written is not before
    quantized = model.config.quantization
    if folded:
        written = fold(as_encoder(written, "This", "to fold"), quantized.embeddings if quantized else "fp32")
    rewrites = {"folded": folded, "one_query": first}
    promised = plan.plan_of(model.config, attention=options.attention, precision=options.precision, **rewrites)
    exact = not (quantized and (quantized.linears or (folded and quantized.embeddings != "fp32")))
    # Rows of a folded table in fewer bits are a way of storing it, as int8 weights are: the file has to be the module that was written.
    return Part(written, written if folded and quantized else model, promised, rewrites, exact)


def _known(manifests: list[Manifest | None]) -> dict[str, Any]:
    """What is known of the file from what it is made of: the sum of the parameters, and the quality of one model alone."""
    metrics = [manifest.metrics if manifest else {} for manifest in manifests]
    quality = {"validation": metrics[0]["validation"]} if len(metrics) == 1 and "validation" in metrics[0] else {}
    counted = all("parameters" in known for known in metrics)
    return {**quality, **({"parameters": sum(known["parameters"] for known in metrics)} if counted else {})}


def _folds(options: ExportOptions, model: Model, pairs: bool) -> bool:
    """Whether the embeddings and the first projection become one table; raises ConfigError if they should and cannot."""
    if not isinstance(model, Encoder):
        if options.fold == "always":
            raise ConfigError(f"--fold always is for encoders; a {model.config.kind} model is a table already.", "Leave --fold at auto.")
        return False
    if options.fold == "never" or (options.fold == "auto" and not (model.config.positions_after_norm and model.config.folds)):
        return False
    kept = "pairs, whose tokens have two types" if pairs else "" if options.attention == "standard" else "ONNX Runtime's own Attention"
    on_gpus = plan.plan_of(model.config, precision=options.precision).elsewhere
    kept = kept or ("files for GPUs" if on_gpus else "")
    if kept and options.fold == "always":
        raise ConfigError(f"--fold always cannot be had with {kept}.", "Leave --fold at auto.")
    return not kept


def _one_query(options: ExportOptions, model: Encoder, folded: bool) -> bool:
    """Whether the last attention may be rewritten: not in a file for GPUs, nor where a table has its projections already."""
    here = not plan.plan_of(model.config, precision=options.precision).elsewhere
    return here and options.attention == "standard" and not (folded and len(model.config.layers) == 1)


def _parity(found: parity.Parity) -> dict[str, Any]:
    return {
        "largest_difference": found.difference,
        "least_signal_db": _decibels(found.signal_db),
        "together_db": _decibels(found.together_db),
        "shapes": found.shapes,
        "worst_shape": list(found.worst_shape),
    }


def _decibels(ratio: float) -> float | None:
    """None where nothing differs, for JSON."""
    return None if ratio == float("inf") else round(ratio, 1)


def _takes_pairs(manifest: Manifest | None, model: Model) -> bool:
    """Whether the graph needs to be told which text a token is of: where the model was trained on pairs, or nobody knows on what."""
    together = model.config.head.kind != "embedding"  # which takes the texts of a pair one by one
    known = (manifest.data or {}).get("pairs") if manifest else True
    return together and bool(known) and model.config.typed


def _describe(configs: list[ModelConfig], workspace: Workspace, labels: list[str], precision: str) -> None:
    """config.json as transformers and Optimum read it: an encoder's sizes, labels and type under the names of BERT, ours beside them.

    Of several models it describes the first, and the `ensemble` of the others is beside its own.
    """
    config = configs[0]
    write_config(workspace.artifact, config, labels, "bert" if isinstance(config, EncoderConfig) else "alambic")
    path = workspace.artifact / "config.json"
    sizes: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "max_position_embeddings": config.max_length,
        "dtype": {"fp32": "float32", "fp16": "float16"}[precision],
    }
    if isinstance(config, EncoderConfig):
        layers = {"num_hidden_layers": len(config.layers), "num_attention_heads": config.layers[0].attention.heads}
        sizes |= {**layers, "type_vocab_size": config.token_types}
    problem = PROBLEMS.get(config.head.kind)
    others = {"ensemble": [other.model_dump(mode="json") for other in configs[1:]]} if configs[1:] else {}
    values = json.loads(path.read_bytes()) | sizes | ({"problem_type": problem} if problem else {}) | others
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
