"""Make linears and embeddings int8: by calibration alone, or trained with the rounding in place."""

from collections.abc import Mapping

from compress.config import QuantizeOptions
from compress.data import Data
from compress.evaluation import measure
from compress.progress import bar, say
from compress.quantization import calibrate, freeze, linears, observed
from compress.sources import Source, place_of
from compress.stage import Result, Workspace
from compress.tasks import labels_agree
from compress.teachers import open_teachers
from compress.teaching import lessons, material, texts_for, whole
from compress.training import prepare, tokenize, train
from model.build import as_run
from model.checkpoint import load_model, save_model
from model.errors import ConfigError
from model.tokenizer import open_tokenizer


def run(options: QuantizeOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    source = sources["model"].model
    backbone = place_of(sources)
    labels = source.manifest.labels
    task = labels_agree(labels, data, source.manifest.task)
    prepare(options)
    model = as_run(load_model(source.path, backbone))
    if model.config.quantization:
        raise ConfigError(f"{source.path} is quantized already.", "Give the model that it was made from.")
    names = linears(model, options.keep)
    if not names and (options.method == "qat" or options.scheme == "tensorrt"):
        what = f"A {model.config.kind} model has no linears of layers to make int8; its table is rounded as it is, for the CPU."
        raise ConfigError(what, "Leave --method and --scheme out.")
    tokenizer = open_tokenizer(source.path, options.max_length, typed=model.config.typed)
    teachers = open_teachers(sources, data)
    texts = texts_for(options, data, task, labels, source.path, sources.get("generator"))
    watched = observed(model, names, options.scheme)
    if names:
        corpus = whole(material(tokenizer, texts, taught=bool(teachers or texts.others)))
        say(f"  {len(names)} linears to int8, ranges from {min(options.calibration_texts, len(corpus)):,} texts")
        with bar("calibrating") as progress:
            calibrate(watched, corpus.subset(options.calibration_texts, options.seed).passing(options.batch_size, progress))
    trained = None
    if options.method == "qat":
        corpus, objective = lessons(watched, tokenizer, teachers, texts, options)
        with bar("training with rounding") as progress:
            trained = train(watched, corpus, objective, options, workspace.work, progress)
    # Rows that are scaled after they are gathered are no DequantizeLinear that TensorRT would know.
    table = options.embeddings if options.scheme == "cpu" else "fp32"
    frozen = freeze(watched, names, embeddings=table, scheme=options.scheme)
    save_model(frozen, workspace.artifact, labels)
    tokenizer.save(workspace.artifact)
    validation = tokenize(tokenizer, data.splits["validation"], task, labels)
    metrics = measure(frozen, validation, labels, latency=False)  # int8 is quick in ONNX Runtime alone
    return Result(task, labels, {**metrics, **({"training": trained} if trained else {})})
