"""What every test shares: no network, one thread, no deadlines. Set before anything else is imported."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["ALAMBIC_CACHE"] = tempfile.mkdtemp(prefix="alambic-cache-")  # never that of whoever runs the tests
atexit.register(shutil.rmtree, os.environ["ALAMBIC_CACHE"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A first call may compile or load something: time says nothing about correctness. CI draws the same examples in every run.
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")
