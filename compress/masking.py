"""Lessons that a text holds by itself: hidden tokens to find (Devlin et al. 2018, §3.1), exchanged ones to tell (Clark et al. 2020, §2).

What is hidden or exchanged in a text is drawn from the seed, the step of the training and the text's row alone: a run that is gone on
from its checkpoint, or shared among processes, sees the same.
Shapes: B texts, S tokens, P places (numbers of the flat tokens [B*S]), V tokens of the vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.encoder import Encoder
from model.errors import ConfigError
from model.tokenizer import Encoding, Tokenizer

Inputs = dict[str, Tensor]
HIDDEN, RANDOM = 0.8, 0.1  # of the chosen tokens: hidden by the mask, another at random; the rest stay (Devlin et al. 2018, §3.1)
SHARE = 0.15
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, eq=False)
class Masking:
    """How a batch of texts becomes a lesson for `task`, "masked" or "replaced".

    `share` of a text's tokens is chosen, one at least; only those in `words` [V] are. What comes in their place is drawn from `cumulative`
    [V], or by `generator`, a masked language model, where there is one.
    """

    task: str
    mask_id: int
    words: np.ndarray
    cumulative: np.ndarray
    share: float = SHARE
    seed: int = 0
    generator: Encoder | None = None

    def __call__(self, inputs: Inputs, rows: list[int], step: int) -> Inputs:
        """The batch with some of its `input_ids` [B, S] changed, and in `labels` [P] what was in `places` [P].

        masked: the ids of the chosen tokens; replaced: 1 for each token of the text that is not what it was, and 0 for the others.
        """
        ids = inputs["input_ids"].numpy()
        real = inputs["attention_mask"].numpy().astype(bool) & self.words[ids]
        chosen, draws = self._choose(real, rows, step)
        flat = ids.reshape(-1)
        places = torch.from_numpy(chosen)
        if self.task == "masked":
            drawn = np.where(draws[0] < HIDDEN, self.mask_id, np.where(draws[0] < HIDDEN + RANDOM, self._drawn(draws[1]), flat[chosen]))
            return self._changed(inputs, chosen, drawn) | {"labels": torch.from_numpy(flat[chosen].copy()), "places": places}
        if self.generator is None:
            drawn = self._drawn(draws[1])
        else:
            hidden = self._changed(inputs, chosen, np.full(len(chosen), self.mask_id))
            drawn = fill(self.generator, hidden, places, torch.from_numpy(draws[1]), self.words).numpy()
        changed = self._changed(inputs, chosen, drawn)
        told = np.flatnonzero(real.reshape(-1))
        labels = (changed["input_ids"].numpy().reshape(-1) != flat)[told].astype(np.float32)
        return changed | {"labels": torch.from_numpy(labels), "places": torch.from_numpy(told)}

    def _choose(self, real: np.ndarray, rows: list[int], step: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [P] in rising order, and two numbers from 0 to 1 for each, [2, P]."""
        places, draws = [np.zeros(0, np.int64)], [np.zeros((2, 0))]
        for number, row in enumerate(rows):
            random = np.random.default_rng([self.seed, step, row])
            words = np.flatnonzero(real[number])
            if len(words):
                picked = np.sort(random.choice(words, max(1, round(self.share * len(words))), replace=False))
                places.append(picked + number * real.shape[1])
                draws.append(random.random((2, len(picked))))
        return np.concatenate(places), np.concatenate(draws, axis=1)

    def _drawn(self, uniform: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.searchsorted(self.cumulative, uniform * self.cumulative[-1], side="right")
        return found

    def _changed(self, inputs: Inputs, places: np.ndarray, tokens: np.ndarray) -> Inputs:
        ids = inputs["input_ids"].clone()
        ids.view(-1)[torch.from_numpy(places)] = torch.from_numpy(tokens)
        return {**inputs, "input_ids": ids}


def masking_for(task: str, tokenizer: Tokenizer, texts: Iterable[Encoding], **settings: Any) -> Masking:
    """A Masking with this tokenizer: other tokens are drawn uniformly ("masked"), or as often as they are in `texts` ("replaced").

    Raises ConfigError if the tokenizer has no mask to hide a token with.
    """
    if "mask_token" not in tokenizer.special:
        raise ConfigError("The tokenizer has no mask token, which hides a word.", "Give a tokenizer with one ([MASK] or <mask>).")
    words = np.array([token != "" for token in tokenizer.tokens])
    words[list(tokenizer.special_ids.values())] = False
    weights = words.astype(np.float64)
    if task == "replaced":
        counts = np.zeros(len(words))
        for text in texts:
            np.add.at(counts, text.ids, 1)
        weights = np.where(words, counts, 0) if (counts[words] > 0).any() else weights
    return Masking(task, tokenizer.special_ids["mask_token"], words, np.cumsum(weights), **settings)


@torch.no_grad()
def fill(model: Encoder, inputs: Inputs, places: Tensor, uniform: Tensor | None = None, allowed: np.ndarray | None = None) -> Tensor:
    """Tokens [P] that a masked language model puts at `places` [P] of a batch: the likeliest, or drawn by numbers from 0 to 1.

    `inputs` has the ids [B, S], with the mask where something is to be put, and the attention mask; `uniform` [P] decides what is drawn, so
    that the same numbers give the same tokens; `allowed` [V] are the tokens that may come (all).
    """
    model.eval()
    device = model.embeddings.tokens.weight.device
    given = {name: inputs[name].to(device) for name in INPUTS if name in inputs}
    logits: Tensor = model(**given, places=places.to(device)).float().cpu()
    if allowed is not None:
        known = torch.zeros(logits.shape[1], dtype=torch.bool)
        known[: len(allowed)] = torch.from_numpy(allowed)
        logits = logits.masked_fill(~known, -torch.inf)
    if uniform is None:
        likeliest: Tensor = logits.argmax(dim=-1)
        return likeliest
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    wanted = (uniform.double() * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
