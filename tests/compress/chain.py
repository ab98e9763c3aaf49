"""A whole chain in small: texts that a tiny encoder can learn in seconds, its tokenizer and configuration, and the command in a process."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

GOOD, BAD = ("good", "great", "fine", "lovely", "super"), ("bad", "awful", "poor", "dull", "grim")
OTHER = ("the", "film", "was", "a", "and", "very", "quite", "actor", "plot", "music", "in", "it", "he", "she", "scene")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SMALL = ("--batch-size", "16", "--max-length", "24", "--threads", "1", "--learning-rate", "2e-3")


def write_texts(file: Path, count: int, seed: int) -> Path:
    """`count` rows of text and label: mostly words of one feeling among neutral ones."""
    random_ = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = random_.choices(OTHER, k=random_.randint(1, 12)) + random_.choices(GOOD if label == "good" else BAD, k=2)
        random_.shuffle(words)
        rows.append(json.dumps({"text": " ".join(words), "label": label}))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def write_data(folder: Path) -> Path:
    """A folder with train, validation and test."""
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", 320), ("validation", 60), ("test", 80))):
        write_texts(folder / f"{part}.jsonl", count, seed)
    return folder


def write_tokenizer(folder: Path) -> Path:
    """A WordPiece tokenizer of BERT's form over the words above."""
    folder.mkdir(parents=True)
    words = [*SPECIAL, *GOOD, *BAD, *OTHER, *(chr(code) for code in range(97, 123)), *(f"##{chr(code)}" for code in range(97, 123))]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def write_encoder(file: Path, layers: int = 4) -> Path:
    """An encoder configuration of a tiny BERT."""
    layer = {"attention": {"heads": 4, "head_width": 8}, "feedforward": {"kind": "mlp", "neurons": 48}}
    values = {
        "width": 32,
        "token_types": 2,
        "positions": {"kind": "learned", "length": 32},
        "dropout": 0.1,
        "layers": {"count": layers, **layer},
    }
    file.write_text(json.dumps(values))
    return file


def environment() -> dict[str, str]:
    """As a user's shell, one thread, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "160"}


COMMAND = (sys.executable, "-c", "from compress.cli import main; main()")


def compress(*arguments: str | Path, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `compress` in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment(), cwd=cwd, stdin=subprocess.DEVNULL
    )
    assert not check or done.returncode == 0, done.stderr
    return done
