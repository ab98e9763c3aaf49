"""What `compress inspect`, `diff` and `options` show: read from manifests alone. Torch-free."""

import json
from typing import Any, get_args

from compress.stage import differences
from compress.tasks import first_score, quality_words
from model import config
from model import slots as model_slots
from model.artifact import Artifact
from model.kinds import KINDS


def describe(artifact: Artifact) -> dict[str, Any]:
    """The manifest as JSON values, with the directory."""
    return {"path": str(artifact.path), **artifact.manifest.model_dump(mode="json")}


def tree(artifact: Artifact) -> str:
    """The artifact and everything that it came from, one branch a parent."""
    manifest = artifact.manifest
    lines = [f"{artifact.path}: {_title({**manifest.summary(), 'digest': manifest.digest})}, whole"]
    if manifest.labels:
        lines.append(f"├─ task: {manifest.task}, labels {', '.join(manifest.labels[:8])}{' …' if len(manifest.labels) > 8 else ''}")
    if manifest.data:
        counts = ", ".join(f"{count:,} {split}" for split, count in manifest.data["counts"].items())
        synthetic = " (synthetic)" if manifest.data.get("synthetic") else ""
        lines.append(f"├─ data: {manifest.data['name']}{synthetic}, {counts}; {manifest.data['digest'][:12]}")
        if more := manifest.data.get("unlabelled"):
            lines.append(f"├─ without labels: {', '.join(more['names'])}, {more['texts']:,} texts; {more['digest'][:12]}")
    lines += [f"├─ {name}: {file.bytes:,} bytes" for name, file in manifest.files.items()]
    if manifest.options:
        lines.append(f"├─ options: {', '.join(f'{name}={value}' for name, value in manifest.options.items())}")
    versions = manifest.made_by.get("versions", {})
    lines.append(f"{'├' if manifest.parents else '└'}─ made by: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return "\n".join(lines + _branches(manifest.parents, manifest.ancestors, ""))


def _branches(parents: dict[str, str], ancestors: dict[str, dict[str, Any]], indent: str) -> list[str]:
    lines = []
    for number, (role, digest) in enumerate(parents.items(), start=1):
        last = number == len(parents)
        known = ancestors.get(digest, {"stage": "unknown", "parents": {}})
        lines.append(f"{indent}{'└' if last else '├'}─ {role}: {_title({**known, 'digest': digest})}")
        lines += _branches(known.get("parents", {}), ancestors, indent + ("   " if last else "│  "))
    return lines


def _title(known: dict[str, Any]) -> str:
    metrics = known.get("metrics", {})
    parts = [f"{known['stage']} {known['digest'][:12]}"]
    if "name" in known:
        parts.append(known["name"])
    if first_score(quality := metrics.get("validation", {})):
        parts.append(f"{quality_words(quality)} on validation")
    if parameters := metrics.get("parameters"):
        parts.append(f"{parameters / 1e6:.1f} M parameters")
    if size := known.get("bytes"):
        parts.append(f"{size / 1e6:.1f} MB")
    return ", ".join(parts)


def compare(a: Artifact, b: Artifact) -> list[str]:
    """Why two artifacts differ, one line each: options, data, parents (followed to where they part), then versions and machine."""
    if a.digest == b.digest:
        return []
    lines = _compare(
        {**a.manifest.summary(), "made_by": a.manifest.made_by}, {**b.manifest.summary(), "made_by": b.manifest.made_by}, "", a, b
    )
    names = sorted(name for name in a.manifest.files.keys() & b.manifest.files.keys() if a.manifest.files[name] != b.manifest.files[name])
    if not lines and names:
        lines.append(f"the same options, parents and data, but {', '.join(names)} differ: another machine, number of threads or version")
    first, second = ({name: facts.get(name) for name in ("versions", "cpu", "cores")} for facts in (a.manifest.made_by, b.manifest.made_by))
    return lines + differences(first, second, "made_by")


def _compare(a: dict[str, Any], b: dict[str, Any], where: str, first: Artifact, second: Artifact) -> list[str]:
    prefix = f"{where}: " if where else ""
    if a["stage"] != b["stage"]:
        return [f"{prefix}stage: {a['stage']}, not {b['stage']}"]
    lines = [prefix + line for line in differences(a.get("options", {}), b.get("options", {}), "options")]
    lines += [prefix + line for line in differences(a.get("data"), b.get("data"), "data")]
    for role in sorted(a["parents"].keys() | b["parents"].keys()):
        one, other = a["parents"].get(role), b["parents"].get(role)
        if one is None or other is None:
            lines.append(f"{prefix}parent {role}: only in {'the second' if one is None else 'the first'}")
        elif one != other:
            known = [artifact.manifest.ancestors.get(digest, {}) for artifact, digest in ((first, one), (second, other))]
            deeper = _compare(known[0], known[1], f"{where} → {role}".removeprefix(" → "), first, second) if all(known) else []
            lines += deeper or [f"{prefix}parent {role}: {one[:12]}…, not {other[:12]}…"]
    return lines


def slots() -> dict[str, dict[str, dict[str, str]]]:
    """Slot → kind → parameter → what it takes, read from the configuration classes."""
    unions = {
        "positions": model_slots.Positions,
        "rotary extension": model_slots.Extension,
        "attention": model_slots.Attention,
        "feedforward": model_slots.FeedForward,
        "norm": model_slots.Norm,
        "head": config.Head,
    }
    found: dict[str, dict[str, dict[str, str]]] = {}
    for slot, union in unions.items():
        found[slot] = {kind.model_fields["kind"].default: _parameters(kind) for kind in get_args(get_args(union)[0])}
    found["layer"] = {"": _parameters(config.LayerConfig)}
    for name, kind in KINDS.items():
        found[name] = {"": {part: text for part, text in _parameters(kind).items() if part not in ("head", "quantization", "folded")}}
    return found


def _parameters(kind: Any) -> dict[str, str]:
    """What each parameter takes, in words; a parameter that may be left out says what that means."""
    parameters = {}
    for name, rule in kind.model_json_schema()["properties"].items():
        if name == "kind":
            continue
        known = [part for part in rule.get("anyOf", [rule]) if part.get("type") != "null"]
        text = " | ".join(map(str, known[0]["enum"])) if "enum" in known[0] else known[0].get("type", "a slot")
        text = {"array": "a list", "boolean": "true | false"}.get(text, text)
        if "anyOf" in rule and len(known) < len(rule["anyOf"]):
            text += ", may be left out"
        if "description" in rule:
            text += f", {rule['description']}"
        parameters[name] = f"{text}, default {json.dumps(rule['default'])}" if isinstance(rule.get("default"), int | float | str) else text
    return parameters
