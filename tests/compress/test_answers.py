"""Teachers' answers on the disk: equal to asking, made once, gone on with after a kill, damage found, the cache bounded."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from compress import answers, cache
from compress.answers import Joined, Stacked, digest_of, joined, kept_answers
from compress.cache import cache_folder, clear, entries
from compress.cli import cli
from model.errors import ArtifactError, EnvironmentProblem

KEY = {"teacher": "t" * 64, "texts": "x"}
LENGTHS = np.random.default_rng(0).integers(1, 30, 400)


class Teacher:
    """Answers with what depends on the row alone, and remembers what it was asked."""

    def __init__(self, stops_after: int | None = None, size: float = 1.0, layers: tuple[int, ...] = (0, 1)) -> None:
        self.asked: list[list[int]] = []
        self.stops_after = stops_after
        self.size = size
        self.layers = layers

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        if len(self.asked) == self.stops_after:
            raise KeyboardInterrupt
        self.asked.append(rows)
        numbers = torch.tensor(rows, dtype=torch.float32)
        return {
            "teacher_logits": torch.stack([numbers, -numbers / 3], 1),
            **{f"teacher_state_{layer}": self.size * (numbers + layer)[:, None].expand(-1, 5) for layer in self.layers},
        }


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Files of 48 texts."""
    monkeypatch.setattr(answers, "AT_ONCE", 16)
    monkeypatch.setattr(answers, "SHARD", 3)


def ask(folder: Path, teacher: Teacher, key: dict[str, str] | None = None):
    names = ["teacher_logits", *(f"teacher_state_{layer}" for layer in teacher.layers)]
    return kept_answers(folder, key or KEY, names, LENGTHS, teacher, lambda *_: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_what_is_read_is_what_was_said_and_nobody_is_asked_twice(tmp_path):
    teacher = Teacher()
    found = ask(tmp_path, teacher)
    assert sorted(row for rows in teacher.asked for row in rows) == list(range(400))
    assert [LENGTHS[rows[0]] for rows in teacher.asked] == sorted((LENGTHS[rows[0]] for rows in teacher.asked), reverse=True)
    for columns in (found, ask(tmp_path, Teacher(stops_after=0))):
        rows = [399, 0, 7, 7]
        assert torch.equal(columns["teacher_logits"][rows], torch.tensor([[row, -row / 3] for row in rows]))
        states = Stacked([columns["teacher_state_0"], columns["teacher_state_1"]])
        expected = [[[row + layer] * 5 for layer in (0, 1)] for row in rows]
        assert torch.equal(states[rows], torch.tensor(expected, dtype=torch.float32))
        assert states[rows].dtype == torch.float32 and len(states) == 400


def test_states_take_half_the_room_where_they_fit(tmp_path):
    sizes = []
    for size in (1.0, 1e5):
        found = ask(tmp_path / str(size), Teacher(size=size))["teacher_state_0"]
        assert torch.equal(found[[3]], torch.full((1, 5), 3 * size))
        sizes.append(found.files[0].dtype.itemsize)
    assert sizes == [2, 4]


def test_a_student_of_other_layers_is_answered_from_what_is_there_and_only_what_is_missing_is_asked(tmp_path):
    ask(tmp_path, Teacher(layers=(2, 5)))
    nobody = Teacher(stops_after=0, layers=(5,))
    assert torch.equal(ask(tmp_path, nobody)["teacher_state_5"][[7]], torch.full((1, 5), 12.0))
    other = Teacher(layers=(1, 5))
    assert torch.equal(ask(tmp_path, other)["teacher_state_1"][[7]], torch.full((1, 5), 8.0)) and len(other.asked) == 25
    assert len(entries(tmp_path)) == 1
    ask(tmp_path, Teacher(stops_after=0, layers=(1, 2, 5)))
    ask(tmp_path, Teacher(stops_after=0, layers=()))


def test_a_kill_costs_one_file_and_changes_nothing(tmp_path):
    ask(tmp_path / "whole", Teacher())
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "killed", Teacher(stops_after=8))
    left = contents(tmp_path / "killed")
    assert len(left) == 2
    (next((tmp_path / "killed").iterdir()) / "00002.partial").write_bytes(b"half")
    rest = Teacher()
    ask(tmp_path / "killed", rest)
    assert len(rest.asked) == 25 - 6
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.partial"))


@pytest.mark.parametrize("place", [3, 40, -1], ids=["size of the header", "header", "values"])
def test_a_flipped_byte_is_found_and_asked_for_again(tmp_path, place, capsys):
    ask(tmp_path, Teacher())
    before = contents(tmp_path)
    file = next(tmp_path.rglob("00004.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)
    again = Teacher()
    found = ask(tmp_path, again)
    assert len(again.asked) == 3 and contents(tmp_path) == before
    assert torch.equal(found["teacher_logits"][[9]], torch.tensor([[9.0, -3.0]]))
    assert "00004.safetensors is damaged: these texts are asked again" in capsys.readouterr().err


def test_a_file_cut_short_is_asked_for_again(tmp_path):
    ask(tmp_path, Teacher())
    file = next(tmp_path.rglob("00000.safetensors"))
    for size in (0, 5, 100, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:size])
        again = Teacher()
        ask(tmp_path, again)
        assert len(again.asked) == 3


def test_another_key_is_another_entry_and_a_wrong_one_is_refused(tmp_path):
    ask(tmp_path, Teacher())
    other = Teacher()
    ask(tmp_path, other, {**KEY, "teacher": "u" * 64})
    assert len(other.asked) == 25
    first, second = sorted(entries(tmp_path), key=lambda one: one.key["teacher"])
    (first.path / "key.json").write_bytes((second.path / "key.json").read_bytes())
    with pytest.raises(
        ArtifactError, match="holds the answers of another teacher or of other texts .teacher uuuuuuuuuuuu; wanted: teacher tttttttttttt."
    ) as error:
        ask(tmp_path, Teacher())
    assert "Delete that folder, or give another --cache" in error.value.hint


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="The cache .*file/x cannot be written: Not a directory") as error:
        ask(tmp_path / "file" / "x", Teacher())
    assert "--cache DIR, or ALAMBIC_CACHE=DIR" in error.value.hint


def test_the_cache_is_where_it_is_said_to_be(monkeypatch, tmp_path):
    assert cache_folder("here") == Path("here")
    monkeypatch.setenv("ALAMBIC_CACHE", "there")
    assert cache_folder() == Path("there")
    monkeypatch.delenv("ALAMBIC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "alambic"


def test_the_oldest_make_room(monkeypatch, tmp_path):
    for number in range(3):
        ask(tmp_path, Teacher(), {"teacher": str(number)})
    size = entries(tmp_path)[0].bytes
    for one in entries(tmp_path):
        os.utime(one.path / "key.json", (time.time() - 1000 - int(one.key["teacher"]),) * 2)
    monkeypatch.setenv("ALAMBIC_CACHE_GB", str(3.5 * size / 1e9))
    ask(tmp_path, Teacher(), {"teacher": "new"})
    assert {one.key["teacher"] for one in entries(tmp_path)} == {"new", "0", "1"}
    assert clear(tmp_path) > 2 * size and not list(tmp_path.iterdir())


def _make(folder: str, begun, go) -> None:
    class Slow(Teacher):
        def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
            begun.set()
            go.wait(30)
            return super().__call__(rows)

    ask(Path(folder), Slow())


def test_two_that_ask_the_same_ask_once_and_one_in_use_is_not_cleared(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    begun, go = context.Event(), context.Event()
    maker = context.Process(target=_make, args=(str(tmp_path), begun, go))
    maker.start()
    assert begun.wait(30)
    assert clear(tmp_path) == 0 and len(entries(tmp_path)) == 1
    said = []
    monkeypatch.setattr(cache, "say", lambda text: (said.append(text), go.set()))
    second = Teacher()
    ask(tmp_path, second)
    maker.join()
    assert said == ["  waiting for another command that asks the same"] and not second.asked


def test_sets_stand_one_after_the_other():
    parts = [torch.arange(3.0)[:, None], torch.arange(10.0, 14.0)[:, None], torch.arange(20.0, 22.0)[:, None]]
    column = joined([{"x": part} for part in parts])["x"]
    rows = [8, 0, 3, 6, 2, 7]
    assert isinstance(column, Joined) and len(column) == 9
    assert torch.equal(column[rows], torch.cat(parts)[rows])
    assert joined([{"x": parts[0]}])["x"] is parts[0]


def test_digests_are_of_what_was_given():
    assert digest_of(iter([[1, 2], [3]])) == digest_of([[1, 2], [3]]) != digest_of([[1], [2, 3]])


def test_the_command_lists_and_clears(tmp_path):
    ask(tmp_path, Teacher())

    def run(*extra: str) -> str:
        return CliRunner().invoke(cli, ["cache", "--cache", str(tmp_path), *extra], catch_exceptions=False).stdout

    listed = json.loads(run("--json"))
    assert listed["folder"] == str(tmp_path) and [one["what"] for one in listed["entries"]] == ["answers"]
    assert "1 entry" in run() and "answers of tttttttttttt" in run()
    assert "freed" in run("--clear") and not entries(tmp_path)
