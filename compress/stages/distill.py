"""Teach a shallower student what the teacher knows; it starts from the teacher's own layers."""

from collections.abc import Mapping

from compress.config import DistillOptions
from compress.data import Data
from compress.evaluation import measure
from compress.progress import bar, say
from compress.sources import Source
from compress.stage import Result, Workspace
from compress.students import inherit, layer_map
from compress.tasks import labels_agree, trainable
from compress.teaching import lessons
from compress.training import prepare, tokenize, train
from model.checkpoint import load_model, save_model
from model.tokenizer import open_tokenizer


def run(options: DistillOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    trainable(data)
    source = sources["teacher"].model
    labels_agree(source.manifest.labels, data)
    prepare(options)
    teacher = load_model(source.path)
    tokenizer = open_tokenizer(source.path, options.max_length)
    layers = layer_map(options.depth, len(teacher.config.layers), options.teacher_layers)
    student = inherit(teacher, layers, options.dropout)
    corpus = tokenize(tokenizer, data.splits["train"])
    if options.train_texts:
        corpus = corpus.subset(options.train_texts, options.seed)
    say(f"  a student of the teacher's layers {', '.join(map(str, layers))} learns on {len(corpus):,} texts for {options.epochs:g} passes")
    corpus, objective = lessons(student, teacher, corpus, options, workspace.work)
    with bar("distilling") as progress:
        trained = train(student, corpus, objective, options, workspace.work, progress)
    save_model(student, workspace.artifact, source.manifest.labels)
    tokenizer.save(workspace.artifact)
    metrics = measure(student, tokenize(tokenizer, data.splits["validation"]))
    return Result(data.task, source.manifest.labels, {**metrics, "training": trained, "teacher_layers": layers})
