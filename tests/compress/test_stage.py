"""The contract of a stage: whole or not at all, never made twice, resumed, locked, verified."""

import errno
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from compress import stage as stages
from compress.config import ExportOptions
from compress.sources import Source
from compress.stage import Result, Stage, Workspace, run_stage
from model.artifact import open_artifact, read_manifest, seal
from model.errors import ArtifactError, EnvironmentProblem, GateError

CALLS: list[str] = []


def fake_run(options, sources, data, workspace: Workspace) -> Result:
    """Writes two files; goes on from what an earlier call left in its scratch folder."""
    CALLS.append("run")
    begun = workspace.work / "begun"
    if not begun.exists():
        begun.write_text("1")
        if options.opset == 21:
            raise KeyboardInterrupt
    (workspace.artifact / "weights.bin").write_bytes(b"weights" * 100)
    (workspace.artifact / "config.json").write_text(json.dumps({"opset": options.opset}))
    if options.opset == 22:
        raise GateError("The gate says no.", "")
    if options.opset == 23:
        raise OSError(errno.ENOSPC, "No space left on device")
    return Result("classification", ["a", "b"], {"validation": {"accuracy": 0.5}})


@pytest.fixture
def stage(monkeypatch) -> Stage:
    CALLS.clear()
    made = Stage("export", ExportOptions, "torch", {"model?": None}, False, {})
    monkeypatch.setattr(Stage, "run", property(lambda self: fake_run))
    return made


def make(stage: Stage, out: Path, overwrite: bool = False, sources: dict[str, Source] | None = None, **options):
    return run_stage(stage, ExportOptions(**options), sources or {}, None, out, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_made_is_whole_and_left_alone_the_second_time(stage, tmp_path):
    first = make(stage, tmp_path / "out")
    assert first.fresh and open_artifact(tmp_path / "out").digest == first.manifest.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    again = make(stage, tmp_path / "out")
    assert not again.fresh and again.manifest == first.manifest and CALLS == ["run"]


def test_equal_inputs_give_equal_digests_elsewhere_too(stage, tmp_path):
    digests = {make(stage, tmp_path / name).manifest.digest for name in ("a", "b")}
    assert len(digests) == 1
    assert make(stage, tmp_path / "c", tolerance=1e-3).manifest.digest not in digests


def test_made_otherwise_is_refused_and_replaced_on_demand(stage, tmp_path):
    make(stage, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"made otherwise \(options.tolerance: 0.0001, not 0.001\)") as refused:
        make(stage, tmp_path / "out", tolerance=1e-3)
    assert "--overwrite" in refused.value.hint and contents(tmp_path / "out") == before
    replaced = make(stage, tmp_path / "out", overwrite=True, tolerance=1e-3)
    assert replaced.fresh and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def forget(folder: Path, *options: str) -> None:
    """Make the manifest one of before these options existed."""
    fields = {name: value for name, value in read_manifest(folder) if name not in ("files", "digest", "checksum")}
    seal(folder, **{**fields, "options": {name: value for name, value in fields["options"].items() if name not in options}})


def test_an_option_that_an_old_artifact_does_not_know_had_its_default(stage, tmp_path):
    make(stage, tmp_path / "out")
    forget(tmp_path / "out", "tolerance", "attention")
    assert not make(stage, tmp_path / "out").fresh and CALLS == ["run"]
    with pytest.raises(ArtifactError, match=r"made otherwise \(options.tolerance: 0.0001, not 0.001\)"):
        make(stage, tmp_path / "out", tolerance=1e-3)


def test_unfinished_work_of_before_an_option_is_gone_on_from(stage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(stage, tmp_path / "out", opset=21)
    file = tmp_path / "out.partial" / "plan.json"
    plan = json.loads(file.read_bytes())
    del plan["options"]["tolerance"]
    file.write_text(json.dumps(plan))
    with pytest.raises(ArtifactError, match=r"unfinished work of another command \(options.tolerance: 0.0001, not 0.001\)"):
        make(stage, tmp_path / "out", opset=21, tolerance=1e-3)
    assert make(stage, tmp_path / "out", opset=21).fresh


@pytest.mark.parametrize("opset", [21, 22, 23])
def test_a_failure_leaves_the_old_artifact_as_it_was(stage, tmp_path, opset):
    make(stage, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises((KeyboardInterrupt, GateError, EnvironmentProblem)):
        make(stage, tmp_path / "out", overwrite=True, opset=opset)
    assert contents(tmp_path / "out") == before


def test_a_full_disk_is_one_clear_line(stage, tmp_path):
    with pytest.raises(EnvironmentProblem, match="No room to write .*out .* MB free") as error:
        make(stage, tmp_path / "out", opset=23)
    assert "Free some space" in error.value.hint and not (tmp_path / "out").exists()


def test_the_same_command_goes_on_and_another_is_refused(stage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(stage, tmp_path / "out", opset=21)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match="unfinished work of another command .options.opset: 21, not 20") as refused:
        make(stage, tmp_path / "out", opset=20)
    assert "--overwrite" in refused.value.hint
    assert make(stage, tmp_path / "out", opset=21).fresh  # its scratch folder was still there: not interrupted again
    assert make(stage, tmp_path / "other", overwrite=True, opset=20).fresh


def test_overwrite_drops_the_unfinished_work_of_another(stage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(stage, tmp_path / "out", opset=21)
    assert make(stage, tmp_path / "out", overwrite=True, opset=20).fresh
    assert not (tmp_path / "out.partial").exists()


def test_a_plan_cut_short_by_a_kill_is_begun_anew(stage, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "plan.json").write_text('{"stage": "exp')
    assert make(stage, tmp_path / "out").fresh


def test_a_kill_between_the_two_renames_loses_nothing(stage, tmp_path):
    made = make(stage, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "out.old")
    again = make(stage, tmp_path / "out")
    assert not again.fresh and again.manifest == made.manifest and not (tmp_path / "out.old").exists()


def _hold(path: str, held, done) -> None:
    with FileLock(path):
        held.set()
        done.wait(30)


def test_an_output_in_use_is_refused(stage, tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "out.lock"), held, done))
    holder.start()
    assert held.wait(30)
    with pytest.raises(ArtifactError, match="is being made by another command"):
        make(stage, tmp_path / "out")
    done.set()
    holder.join()
    assert make(stage, tmp_path / "out").fresh


def test_a_folder_that_is_no_artifact_is_never_replaced(stage, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="is not an artifact; it will not be replaced"):
            make(stage, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_damage_is_found_when_up_to_date_is_asked(stage, tmp_path):
    make(stage, tmp_path / "out")
    (tmp_path / "out" / "weights.bin").write_bytes(b"weights" * 99 + b"weighty")
    with pytest.raises(ArtifactError, match="weights.bin is damaged"):
        make(stage, tmp_path / "out")
    assert make(stage, tmp_path / "out", overwrite=True).fresh


def test_lineage_travels_along(stage, tmp_path):
    first = make(stage, tmp_path / "a")
    source = Source(tmp_path / "a", "a", first.manifest.digest, open_artifact(tmp_path / "a"))
    second = make(stage, tmp_path / "b", sources={"model": source})
    shutil.rmtree(tmp_path / "a")
    assert second.manifest.parents == {"model": first.manifest.digest}
    assert second.manifest.ancestors[first.manifest.digest]["metrics"] == {"validation": {"accuracy": 0.5}}
    assert stages.STAGES["export"].roles == {"model": False, "ensemble": True, "backbone": True}
