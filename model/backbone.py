"""What was trained on a frozen backbone and saved without it: its prefix and head. The backbone is found again, by its digest.

The model's config.json names the digest, its manifest where the backbone lay: relative to the model, and in full.
"""

from pathlib import Path

from torch import Tensor

from model.artifact import MANIFEST, Artifact, directory_digest, open_artifact, read_manifest
from model.checkpoint import CONFIG, load_model, read_json
from model.errors import ArtifactError
from model.pretrained import load_pretrained

OWN = ("head.", ".attention.prefix")  # what is saved: names that begin with the one or end in the other


def is_own(name: str) -> bool:
    """Whether a parameter is of the prefix or the head."""
    return name.startswith(OWN[0]) or name.endswith(OWN[1])


def backbone_tensors(directory: Path, digest: str, place: Path | None = None) -> dict[str, Tensor]:
    """The weights of the backbone `digest` of the model in `directory`, without its head: from `place`, else from where it lay.

    Raises ArtifactError if it is not there, or what is there has another digest.
    """
    hint = "Put it back, or name its place: `--backbone DIRECTORY` of export, distill, prune, quantize and predict."
    places = [place] if place else _recorded(directory, digest)
    found = next((known for known in places if known.is_dir()), None)
    if found is None:
        where = str(places[-1]) if places else "a place that it does not name"
        raise ArtifactError(f"{directory} is a prefix without its backbone {digest[:12]}…: there is nothing at {where}.", hint)
    artifact: Artifact | None = open_artifact(found, "torch") if (found / MANIFEST).exists() else None
    other = artifact.digest if artifact else directory_digest(found)
    if other != digest:
        raise ArtifactError(f"{directory} is a prefix of the backbone {digest[:12]}…, but at {found} is {other[:12]}….", hint)
    encoder = load_model(found) if artifact else load_pretrained(found, {"kind": "embedding"})
    return {name: tensor for name, tensor in encoder.state_dict().items() if not is_own(name)}


def backbone_of(directory: Path) -> str:
    """The digest of the backbone that the model in `directory` was saved without; "" if it is whole."""
    return str(read_json(directory / CONFIG).get("backbone", ""))


def _recorded(directory: Path, digest: str) -> list[Path]:
    """Where the backbone lay when the model was made."""
    if not (directory / MANIFEST).exists():
        return []
    places = read_manifest(directory).ancestors.get(digest, {}).get("places", [])
    return [directory / place for place in places]
