"""An exported artifact is an ordinary file: Optimum loads it, in an environment of its own (transformers < 5), and agrees with us."""

import json
from pathlib import Path

import numpy as np

from serve.predictor import open_predictor, scores
from serve.tasks import probabilities

SCRIPT = Path(__file__).with_name("optimum_answers.py")
TEXTS = ["a good film", "a bad film, and a very long one", "good"]


def test_optimum_gives_our_labels_and_probabilities(run, artifact):
    done = run(".venv-optimum", "python", SCRIPT, artifact, *TEXTS, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    predictor = open_predictor(artifact)
    ours = probabilities(scores(predictor, TEXTS))
    theirs = np.array([[answer[label] for label in predictor.labels] for answer in answers])
    np.testing.assert_allclose(theirs, np.concatenate([ours, ours]), atol=1e-5)
