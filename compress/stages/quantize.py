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
from compress.teaching import as_heard, lessons, material
from compress.training import prepare, tokenize, train
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
    model = load_model(source.path, backbone)
    if model.config.quantization:
        raise ConfigError(f"{source.path} is quantized already.", "Give the model that it was made from.")
    names = linears(model, options.keep)
    tokenizer = open_tokenizer(source.path, options.max_length, typed=model.config.typed)
    teacher = load_model(sources["teacher"].path, backbone) if "teacher" in sources else None
    corpus = material(tokenizer, data.splits["train"], task, labels, taught=teacher is not None)
    say(f"  {len(names)} linears to int8, ranges from {min(options.calibration_texts, len(corpus)):,} texts")
    watched = observed(model, names)
    with bar("calibrating") as progress:
        calibrate(watched, corpus.subset(options.calibration_texts, options.seed).passing(options.batch_size, progress))
    trained = None
    if options.method == "qat":
        heard = as_heard(sources["teacher"].path, teacher, corpus, data.splits["train"], labels, options) if teacher else None
        if options.train_texts:
            corpus, heard = (texts and texts.subset(options.train_texts, options.seed) for texts in (corpus, heard))
        corpus, objective = lessons(watched, teacher, corpus, options, workspace.work, heard)
        with bar("training with rounding") as progress:
            trained = train(watched, corpus, objective, options, workspace.work, progress)
    frozen = freeze(watched, names, embeddings=options.embeddings == "int8")
    save_model(frozen, workspace.artifact, labels)
    tokenizer.save(workspace.artifact)
    validation = tokenize(tokenizer, data.splits["validation"], task, labels)
    metrics = measure(frozen, validation, labels, latency=False)  # int8 is quick in ONNX Runtime alone
    return Result(task, labels, {**metrics, **({"training": trained} if trained else {})})
