"""Remove the heads and neurons that matter least, then let the model recover, from a teacher where one is given."""

from collections.abc import Mapping

from compress.config import PruneOptions
from compress.data import Data
from compress.evaluation import measure
from compress.grouping import group, group_counts
from compress.importance import taylor
from compress.progress import bar, say
from compress.pruning import check_heads, counts, kept_words, prune_by
from compress.sources import Source, place_of
from compress.stage import Result, Workspace
from compress.tasks import labels_agree, quality_words
from compress.teachers import open_teachers
from compress.teaching import lessons, texts_for
from compress.training import prepare, tokenize, train
from model.checkpoint import load_encoder, save_model
from model.errors import ConfigError
from model.tokenizer import open_tokenizer


def run(options: PruneOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    source = sources["model"].model
    backbone = place_of(sources)
    labels = source.manifest.labels
    task = labels_agree(labels, data, source.manifest.task)
    prepare(options)
    model = load_encoder(source.path, "to be pruned", backbone)
    if model.config.quantization:
        raise ConfigError(f"{source.path} is quantized already.", "Prune before you quantize.")
    heads = counts(options.heads, [layer.attention.heads for layer in model.config.layers], "heads")
    check_heads(model.config, heads)
    keys = group_counts(options.key_value_heads, model.config, heads)
    neurons = counts(options.neurons, [layer.feedforward.neurons for layer in model.config.layers], "neurons", least=0)
    teachers = open_teachers(sources, data)
    tokenizer = open_tokenizer(source.path, options.max_length, typed=model.config.typed)
    texts = texts_for(options, data, task, labels, source.path, sources.get("generator"))
    corpus, objective = lessons(model, tokenizer, teachers, texts, options)
    scored = corpus.subset(options.scoring_texts, options.seed)
    with bar("scoring heads and neurons") as progress:
        importance = taylor(model, scored.passing(options.batch_size, progress), objective)
    smaller = group(prune_by(model, importance, heads, neurons, options.allocation), keys)
    validation = tokenize(tokenizer, data.splits["validation"], task, labels)
    before = measure(smaller, validation, labels, latency=False)["validation"]
    kept = [(layer.attention.heads, layer.feedforward.neurons) for layer in smaller.config.layers]
    taught = f"on {len(corpus):,} texts for {options.epochs:g} passes"
    say(f"  kept {kept_words(smaller.config)}: {quality_words(before)} before recovery {taught}")
    with bar("recovering") as progress:
        trained = train(smaller, corpus, objective, options, workspace.work, progress)
    save_model(smaller, workspace.artifact, labels)
    tokenizer.save(workspace.artifact)
    metrics = measure(smaller, validation, labels)
    return Result(task, labels, {**metrics, "training": trained, "before_recovery": before, "kept": kept})
