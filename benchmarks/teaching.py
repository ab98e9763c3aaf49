"""What a teacher costs a student: the time of distilling against that of training the same student on the labels, and what is kept.

    python benchmarks/teaching.py --quick --json benchmarks/teaching.json

A teacher is fine-tuned for a few steps (how good it is says nothing about time). Its student of two layers is trained on the labels alone
and distilled, in turn, from the same start on the same texts for one pass. Distilling is timed with the reading and checking of the answers
that an earlier run left, and once with an empty cache, which asks the teacher. In the end the student is distilled from answers that are
kept whole (float32) in place of halved (float16). All in one process; loading data and measuring quality are outside of the times.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {"quick": {"texts": 1500, "rounds": 3}, "full": {"texts": 20_000, "rounds": 5}}


def measure(data_name: str, base: str, size: dict[str, int], threads: int, folder: Path) -> dict[str, Any]:
    """All runs, one after the other."""
    from compress import answers
    from compress.bases import start
    from compress.config import DistillOptions
    from compress.data import load_data
    from compress.evaluation import outputs
    from compress.losses import supervised
    from compress.sources import open_source
    from compress.students import inherit
    from compress.tasks import TASKS
    from compress.teachers import Teacher
    from compress.teaching import lessons, texts_for
    from compress.training import prepare, tokenize, train
    from model.tokenizer import open_tokenizer

    options = DistillOptions(
        batch_size=64, learning_rate=4e-4, max_length=64, threads=threads, train_texts=size["texts"], cache=str(folder / "cache")
    )
    prepare(options)
    data, source = load_data(data_name), open_source(base)
    labels, task = list(data.labels), data.task
    tokenizer = open_tokenizer(source.path, options.max_length)
    texts = texts_for(options, data, task, labels)
    corpus = tokenize(tokenizer, texts.part, task, labels)
    model = start(source, tokenizer, {"kind": task, "labels": len(labels)}, 0.0)
    tokenizer = replace(tokenizer, typed=model.config.typed)
    train(model, corpus.subset(1024, 1), supervised(task), options, folder / "teacher", lambda *_: None)
    teacher = Teacher(source.path, task, labels, model, list(range(len(labels))), source.digest)
    student = inherit(model, [len(model.config.layers) // 2 - 1, len(model.config.layers) - 1], 0.0)
    validation = tokenize(tokenizer, data.splits["validation"].select(range(min(1000, len(data.splits["validation"])))), task, labels)
    runs = 0

    def run(taught: bool, cache: str = "cache") -> dict[str, Any]:
        nonlocal runs
        runs += 1
        pupil, begun = copy.deepcopy(student), time.perf_counter()
        given = options.model_copy(update={"cache": str(folder / cache)})
        learnt, objective = lessons(pupil, tokenizer, [teacher], texts, given) if taught else (corpus, supervised(task))
        asked = time.perf_counter() - begun
        told = train(pupil, learnt, objective, options, folder / str(runs), lambda *_: None)
        seconds = time.perf_counter() - begun
        quality = TASKS[task].metrics(outputs(pupil, validation), validation.truth, labels)["accuracy"]
        print(f"{'taught' if taught else 'labels':>8}: {seconds:6.1f} s, of these {asked:.1f} s before training", file=sys.stderr)
        return {"seconds": seconds, "before": asked, "loss": told["loss"], "accuracy": quality}

    cold = run(True)
    pairs = [(run(False), run(True)) for _ in range(size["rounds"])]
    if any(warm["loss"] != cold["loss"] or warm["accuracy"] != cold["accuracy"] for _, warm in pairs):
        sys.exit("answers that an earlier run left taught something else")
    answers.HALF = ()
    whole = run(True, "whole")
    kept = {name: sum(file.stat().st_size for file in (folder / name).rglob("*.safetensors")) for name in ("cache", "whole")}
    return {
        "texts": len(corpus),
        "seconds": {"labels": [alone["seconds"] for alone, _ in pairs], "taught": [warm["seconds"] for _, warm in pairs]},
        "ratio": statistics.median(warm["seconds"] / alone["seconds"] for alone, warm in pairs),
        "empty_cache": {"seconds": cold["seconds"], "asking": cold["before"]},
        "kept_bytes": {"float16": kept["cache"], "float32": kept["whole"]},
        "accuracy": {"labels": pairs[0][0]["accuracy"], "float16": cold["accuracy"], "float32": whole["accuracy"]},
        "loss": {"float16": cold["loss"], "float32": whole["loss"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few texts")
    parser.add_argument("--data", default="tweets", help="set with one label a text")
    parser.add_argument("--base", default="minilm", help="what the teacher starts from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.data, given.base, SIZES["quick" if given.quick else "full"], given.threads, Path(folder))
    report = {"data": given.data, "threads": given.threads, **found}
    print(f"distilling takes {report['ratio']:.2f} times what training on labels takes", file=sys.stderr)
    print(json.dumps(report))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
