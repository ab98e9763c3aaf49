"""What a model's configuration promises of its graph, compared with what ONNX Runtime made of it.

A lost fusion or a linear that fell back to float gives the same answers, only later; nothing else would notice.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.audit import ATTENTION, SKIPS, Audit
from export.profile_run import Profile
from model.config import EncoderConfig
from model.errors import GateError
from model.kinds import ConvolutionConfig, ModelConfig, StaticConfig

# The operators, any of which may stand for one activation or one norm.
ACTIVATIONS = {"gelu": ("Gelu", "BiasGelu"), "gelu_tanh": ("Gelu", "BiasGelu", "FastGelu"), "silu": ("QuickGelu", "Silu", "Swish")}
NORMS = {
    "layernorm": ("LayerNormalization", "EmbedLayerNormalization", "SkipLayerNormalization"),
    "rmsnorm": ("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
}

# Nodes of a layer by its feed-forward network, and what positions add to it; of all that is no layer; and some to spare a layer.
# A quantized linear adds one, the QuantizeLinear of its input.
# Nodes of a model of tables: alone, what each length of n-grams or each tap adds, the way in which the table is stored, a vector's norm.
STATIC, NGRAM, CONVOLUTION, TAP, STORED, VECTOR = 12, 11, 19, 2, {"fp32": 0, "fp16": 1, "int8": 3}, 6
FEEDFORWARD, ROTATION, OUTSIDE, SPARE, PREFIX = {"none": 14, "mlp": 20, "glu": 22}, {"none": 0, "learned": 0, "rotary": 8}, 48, 2, 8
SHARED = 10  # more in a layer whose heads share keys and values: each is repeated for them

FIRST = "layers.0.attention.qkv"  # the projection that may be folded into the embeddings
PINNED = "Another version of onnxruntime may have lost it: install the pinned one (constraints.txt) and export again."


@dataclass(frozen=True)
class Plan:
    """What is promised of a graph.

    `integer` linears run as integers; each of the `activations` and each of the `norms` (kind → number) is one node; the
    product q kᵀ of `scores` layers is one node with its transposition and scale, or the whole attention of `attention` layers is; there
    are at most `nodes` nodes, None where no limit is known for the kinds of this configuration. `symmetric` linears are in the form that
    TensorRT runs as integers. A file for `elsewhere`, a GPU, is judged as it was written: nobody can say here what becomes of it there.
    """

    integer: int
    activations: dict[str, int]
    norms: dict[str, int]
    scores: int
    attention: int
    nodes: int | None
    symmetric: int = 0
    elsewhere: bool = False


@dataclass(frozen=True)
class Problem:
    """Something that costs time: the `message`, what to do about it (`hint`), and whether a promise is `broken`."""

    message: str
    hint: str
    broken: bool = True


def plan_of(
    config: ModelConfig, *, attention: str = "standard", precision: str = "fp32", folded: bool = False, one_query: bool = False
) -> Plan:
    """What `config` promises, exported with these options.

    `folded`: without the norm of the embeddings and the first projection; `one_query`: the last layer asks for the first token alone, in
    queries that have the scale already; keys and values of every head are then projected in float, after its tokens are mixed.

    A file in fp16 or in int8 for TensorRT is for GPUs: SiLU and the products of attention become one node only there.
    """
    symmetric = config.quantization is not None and config.quantization.scheme == "tensorrt"
    here = precision == "fp32" and not symmetric
    if not isinstance(config, EncoderConfig):
        nodes = _table_nodes(config)
        return Plan(0, {}, {}, scores=0, attention=0, nodes=nodes if here else None)
    dense = sum(layer.attention.kind == "dense" for layer in config.layers)
    kinds: Counter[str] = Counter(layer.feedforward.activation for layer in config.layers if layer.feedforward.kind != "none")
    linears = set(config.quantization.linears) if config.quantization else set()
    quantized = len(linears - {FIRST} if folded else linears)
    plain = all(not layer.attention.query_key_norm for layer in config.layers)
    known = plain and dense == len(config.layers) and config.positions.kind in ROTATION and here
    rotation = ROTATION.get(config.positions.kind, 0)
    prefixes = sum(PREFIX for layer in config.layers if layer.attention.kind == "dense" and layer.attention.prefix)
    shared = sum(SHARED for layer in config.layers if layer.attention.keys < layer.attention.heads)
    nodes = OUTSIDE + quantized + prefixes + shared + sum(FEEDFORWARD[layer.feedforward.kind] + rotation + SPARE for layer in config.layers)
    return Plan(
        integer=0 if symmetric else quantized,
        activations={kind: kinds[kind] for kind in ACTIVATIONS if kinds[kind] and (here or kind != "silu")},
        norms={config.norm.kind: _norms(config) - folded} if config.norm.kind in NORMS else {},
        scores=dense - one_query if attention == "standard" and here else 0,
        attention=dense if attention == "ort" else 0,
        nodes=nodes if known else None,
        symmetric=quantized if symmetric else 0,
        elsewhere=not here,
    )


def together(plans: Sequence[Plan]) -> Plan:
    """What is promised of one graph of several models, which gives their mean."""
    if len(plans) == 1:
        return plans[0]
    activations: Counter[str] = Counter()
    norms: Counter[str] = Counter()
    for plan in plans:
        activations.update(plan.activations)
        norms.update(plan.norms)
    limits = [plan.nodes for plan in plans if plan.nodes is not None]
    return Plan(
        integer=sum(plan.integer for plan in plans),
        activations=dict(activations),
        norms=dict(norms),
        scores=sum(plan.scores for plan in plans),
        attention=sum(plan.attention for plan in plans),
        nodes=sum(limits) + len(plans) if len(limits) == len(plans) else None,  # and the sums, and what divides them
        symmetric=sum(plan.symmetric for plan in plans),
        elsewhere=any(plan.elsewhere for plan in plans),
    )


def _norms(config: EncoderConfig) -> int:
    return 1 + sum(layer.attention_norm + (layer.feedforward.kind != "none") for layer in config.layers) + config.norm_first


def _table_nodes(config: StaticConfig | ConvolutionConfig) -> int:
    """Nodes at most of a model that looks its tokens up in tables."""
    stored = STORED[config.quantization.embeddings if config.quantization else "fp32"]
    outside = stored + (VECTOR if config.head.kind == "embedding" else 0)
    if isinstance(config, ConvolutionConfig):
        return outside + CONVOLUTION + TAP * config.taps
    return outside + STATIC + NGRAM * (max(config.ngrams, default=1) - 1)


def problems(plan: Plan, audit: Audit, profile: Profile | None = None, provider: str = "cpu") -> list[Problem]:
    """Everything found that keeps the graph from running as planned, the worst first; with a `profile` also where it runs."""
    found = [*_placement(profile), *_linears(plan, audit), *_fusions(plan, audit, provider), *_costs(audit, profile)]
    return sorted(found, key=lambda problem: not problem.broken)


def gate(plan: Plan, audit: Audit, file: Path) -> None:
    """Raise GateError with every broken promise."""
    if broken := [problem for problem in problems(plan, audit) if problem.broken]:
        what = " ".join(problem.message for problem in broken)
        hints = dict.fromkeys(problem.hint for problem in broken)
        raise GateError(f"ONNX Runtime does not run {file.name} as planned: {what}", " ".join(("Nothing was written.", *hints)))


def _placement(profile: Profile | None) -> Iterator[Problem]:
    if profile is None:
        return
    if fallen := profile.fallen:
        integer = sum(node.precision == "int8" or "QuantizeLinear" in node.operator for node in fallen)
        hint = "Run it with --provider cpu, or export a file without int8 for this provider." if integer else "Report which operators."
        yield Problem(f"{_nodes(len(fallen))} fell back to the CPU: {_counted(node.operator for node in fallen)}.", hint)


def elsewhere(plan: Plan, ran: Audit, provider: str) -> Iterator[Problem]:
    """What a file for TensorRT loses where it `ran` instead; nothing of it was promised."""
    lost = [linear.name for linear in ran.linears if linear.stored and not linear.integer]
    if plan.symmetric and lost:
        runs = f"{len(lost)} of its {plan.symmetric} quantized linears run in float: {_some(lost)}."
        hint = "Run it by the way ort-tensorrt; for the CPU make another with `compress quantize --scheme cpu`."
        yield Problem(f"This is int8 for TensorRT: on {provider} {runs}", hint, broken=False)


def _linears(plan: Plan, audit: Audit) -> Iterator[Problem]:
    if plan.symmetric:
        if audit.symmetric < plan.symmetric:
            what = f"Only {audit.symmetric} of {plan.symmetric} quantized linears are in the form that TensorRT runs as integers"
            yield Problem(f"{what}: int8 with zero points of 0, and a float bias.", PINNED)
        return
    reasons: dict[str, list[str]] = {}
    for linear in audit.linears:
        if linear.stored and not linear.integer:
            reasons.setdefault(linear.why, []).append(linear.name)
    for why, names in reasons.items():
        runs = "1 quantized linear runs" if len(names) == 1 else f"{len(names)} quantized linears run"
        yield Problem(f"{runs} in float because of {why}: {_some(names)}.", PINNED)
    if audit.integer < plan.integer:
        yield Problem(f"Only {audit.integer} of {plan.integer} quantized linears run as integers.", PINNED)


def _fusions(plan: Plan, audit: Audit, provider: str) -> Iterator[Problem]:
    for kind, promised in plan.activations.items():
        if (whole := audit.count(*ACTIVATIONS[kind])) < promised:
            hint = "Below opset 20 GELU comes apart: leave --opset out. " if "gelu" in kind else ""
            yield Problem(f"Only {whole} of {promised} {kind} activations are one node.", hint + PINNED)
    for kind, promised in plan.norms.items():
        if (whole := audit.count(*NORMS[kind])) < promised:
            hint = "Below opset 23 RMSNorm comes apart: leave --opset out." if kind == "rmsnorm" else PINNED
            yield Problem(f"Only {whole} of {promised} norms ({kind}) are one node; the others came apart.", hint)
    if provider == "cpu" and (slow := audit.count(*SKIPS)):
        made = f"{slow} {'residual was' if slow == 1 else 'residuals were'} fused into SkipLayerNormalization"
        yield Problem(f"{made}, which is slower on the CPU than its parts.", PINNED)
    if (whole := audit.count("FusedMatMul")) < plan.scores:
        yield Problem(f"Only {whole} of {plan.scores} products of queries and keys are one node with their scale.", PINNED)
    if (whole := audit.count(*ATTENTION)) < plan.attention:
        yield Problem(f"Only {whole} of {plan.attention} layers have their attention in one node.", PINNED)
    if plan.nodes is not None and audit.nodes > plan.nodes:
        yield Problem(f"There are {audit.nodes} nodes where {plan.nodes} at most were expected.", PINNED)


def _costs(audit: Audit, profile: Profile | None) -> Iterator[Problem]:
    """What was not promised, and yet costs."""
    if audit.tables:
        hint = "Quantize the table as `compress quantize` does: rows are gathered first and scaled after."
        yield Problem(f"Every run dequantizes {_some(audit.tables)} as a whole before it gathers a few rows.", hint, broken=False)
    if audit.copies:
        copies = f"{audit.copies} {'copy' if audit.copies == 1 else 'copies'}"
        hint = "They wait for the GPU each time. Export a file whose nodes all run there (--precision fp16 or fp32)."
        yield Problem(f"{copies} between host and device in every run.", hint, broken=False)
    if profile and profile.provider == "cpu" and (widening := sum(node.widens for node in profile.nodes)):
        casts = f"{widening} {'cast turns' if widening == 1 else 'casts turn'}"
        hint = "The CPU has no kernels for 16-bit floats: export with fp32 for it."
        yield Problem(f"{casts} one width of floats into another in every run.", hint, broken=False)


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"


def _counted(names: Iterator[str]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in Counter(names).most_common())


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
