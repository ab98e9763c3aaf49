"""Which process this is of several that `torchrun` started. Torch-free.

Process 0 makes the artifact; the others help it train: they share its scratch folder, say nothing, and end when the training has.
"""

import os


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def local_processes() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes() > 1 else 1
