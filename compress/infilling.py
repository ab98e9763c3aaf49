"""Hidden words of a text, filled in by a masked language model (Jiao et al. 2020, §3.2; Kobayashi 2018).

Each hidden word becomes one token that is a whole word, drawn from the likeliest. All hidden words of a text are drawn at once, each by
itself. Shapes: P hidden words of a batch, V tokens of the vocabulary.
"""

import random
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from compress.masking import INPUTS
from compress.training import Progress
from model.encoder import Encoder
from model.tokenizer import Tokenizer

AT_ONCE = 64
LIKELIEST = 30  # tokens among which a word is drawn
SPACE = ("Ġ", "▁")  # what begins a word's first piece in byte-level BPE and in SentencePiece


@torch.no_grad()
def infilled(model: Encoder, tokenizer: Tokenizer, texts: Sequence[str], seed: int, progress: Progress) -> list[str]:
    """The texts, each mask token in them replaced by a word; what lies beyond the tokenizer's length is cut off.

    The same seed fills the same text alike, whatever stands beside it.
    """
    model.eval()
    mask, mask_id = tokenizer.special["mask_token"], tokenizer.special_ids["mask_token"]
    parts = [text.split(mask) for text in texts]
    encodings = [tokenizer.around(each, mask_id) for each in parts]
    words = whole_words(tokenizer.tokens, set(tokenizer.special.values()))
    allowed = torch.tensor([bool(word) for word in words])
    order = np.argsort([-len(encoding.ids) for encoding in encodings], kind="stable").tolist()
    found = [""] * len(texts)
    for start in range(0, len(order), AT_ONCE):
        rows = order[start : start + AT_ONCE]
        batch = tokenizer.pad([encodings[row] for row in rows])
        inputs = {name: torch.from_numpy(batch[name]) for name in INPUTS if name in batch}
        places = (inputs["input_ids"].flatten() == mask_id).nonzero().flatten()
        counts = [encodings[row].ids.count(mask_id) for row in rows]
        uniform = [number for row, count in zip(rows, counts, strict=True) for number in _numbers(seed, texts[row], count)]
        drawn = iter(_drawn(model(**inputs, places=places).float(), allowed, torch.tensor(uniform)).tolist() if uniform else ())
        for row, count in zip(rows, counts, strict=True):
            new = [words[next(drawn)] for _ in range(count)]
            found[row] = " ".join(piece for pair in zip(parts[row], [*new, ""], strict=False) for piece in pair if piece.strip())
        progress(min(start + AT_ONCE, len(order)), len(order), "")
    return [" ".join(text.split()) for text in found]


def whole_words(tokens: Sequence[str], special: set[str]) -> list[str]:
    """For each token the word that it is by itself; "" where it is a part of one, a mark or a special token."""
    begins = next((mark for mark in SPACE if sum(token.startswith(mark) for token in tokens) > len(tokens) / 4), "")
    found = []
    for token in tokens:
        word = token.removeprefix(begins) if token.startswith(begins) and token not in special else ""
        spelt = word.isascii() or begins != "Ġ"  # byte-level BPE writes other letters as their bytes
        found.append(word if re.fullmatch(r"\w[\w'’-]*", word) and spelt else "")
    return found


def _numbers(seed: int, text: str, count: int) -> list[float]:
    generator = random.Random(f"{seed} {text}")
    return [generator.random() for _ in range(count)]


def _drawn(logits: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [P] of logits [P, V]: of the LIKELIEST that are `allowed` [V], by probability, as the numbers `uniform` [P] say."""
    known = torch.zeros(logits.shape[1], dtype=torch.bool)
    known[: len(allowed)] = allowed
    best = logits.masked_fill(~known, -torch.inf).topk(min(LIKELIEST, int(known.sum())))
    shares = best.values.double().softmax(-1).cumsum(-1)
    picked = torch.searchsorted(shares, (uniform.double() * shares[:, -1])[:, None], right=True).clamp(max=shares.shape[1] - 1)
    return best.indices.gather(1, picked)[:, 0]
