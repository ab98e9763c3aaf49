"""`label_texts` end to end over a tiny exported model: every way in, every way out, and what is refused."""

import csv
import gzip
import io
import json
import sys
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from compress import prediction, rows
from compress.prediction import Device, label_texts, open_model, takes_pairs
from compress.tables import read_file
from model.artifact import read_manifest, seal
from model.errors import AlambicError, ArtifactError, ConfigError, DataError, EnvironmentProblem
from serve.predictor import open_predictor, predict
from tests.serve.tiny_graph import LABELS, write_artifact

TEXTS = ["good film.", "bad", "", 'a "film", of\tgood\nz', "Ünïcode"]
SINGLE, PAIRS = {"name": "s"}, {"name": "p", "pairs": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("model") / "onnx", data=SINGLE)


@pytest.fixture(scope="module")
def pair_model(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("model") / "onnx", data=PAIRS, types=True)


@pytest.fixture(scope="module")
def expected(model):
    return predict(open_predictor(model), TEXTS)


def run(model, stdin=b"", **options):
    """What is echoed."""
    echoed: list[str] = []
    count = label_texts(model, stdin=io.BytesIO(stdin), echo=echoed.append, **options)
    assert count == len(echoed) or options.get("out")
    return echoed


def refused(kind, model, stdin=b"", **options) -> AlambicError:
    with pytest.raises(kind) as caught:
        run(model, stdin, **options)
    assert caught.value.hint
    return caught.value


def write_table(path, columns):
    """By the plainest means there are."""
    names, lines = list(columns), list(zip(*columns.values(), strict=True))
    written = io.StringIO(newline="")
    if ".csv" in path.name:
        csv.writer(written).writerows([names, *lines])
    elif ".tsv" in path.name:
        written.write("\n".join("\t".join(map(str, line)) for line in [names, *lines]) + "\n")
    elif ".jsonl" in path.name:
        written.write("".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines))
    elif ".json" in path.name:
        json.dump([dict(zip(names, line, strict=True)) for line in lines], written)
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    content = written.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# Ways in and out


def test_arguments_as_lines(model, expected):
    shown = [f"{found.label}\t{found.probability:.4f}\t{' '.join(text.split())}" for found, text in zip(expected, TEXTS, strict=True)]
    assert run(model, texts=TEXTS) == shown


def test_arguments_as_json(model, expected):
    for line, found, text in zip(run(model, texts=TEXTS, as_json=True), expected, TEXTS, strict=True):
        values = json.loads(line)
        assert list(values) == ["label", "probability", "probabilities", "text"]
        assert (values["label"], values["text"], list(values["probabilities"])) == (found.label, text, list(LABELS))
        assert values["probability"] == pytest.approx(found.probability, abs=1e-6)


def test_standard_input_gives_a_line_for_each_line(model):
    alone = run(model, texts=["good", "", "bad film"])
    assert run(model, b"\xef\xbb\xbfgood\r\n\nbad film") == alone


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.JSONL.gz", "a.json", "a.parquet"])
def test_files_of_every_format(model, tmp_path, name):
    file = write_table(tmp_path / name.lower(), {"id": list(range(5)), "body": TEXTS})
    assert run(model, file=file, columns=["body"]) == run(model, texts=TEXTS)


def test_tsv_has_one_row_a_line(model, tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('text\tn\n"good"\t1\n"a" and b\t2\r\n\n"say ""so"""\t3\n')
    assert run(model, file=file) == run(model, texts=["good", '"a" and b', 'say "so"'])
    assert read_file(file).columns["text"] == ["good", '"a" and b', 'say "so"']


def test_semicolons_as_in_the_loader(model, tmp_path):
    (tmp_path / "a.csv").write_text("text;n\ngood, film;1\n")
    assert run(model, file=tmp_path / "a.csv") == run(model, texts=["good, film"])


def test_long_fields(model, tmp_path):
    file = write_table(tmp_path / "a.csv", {"text": ["good " * 40_000]})
    assert len(run(model, file=file)) == 1


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.jsonl", "o.jsonl.gz", "o.parquet"])
@pytest.mark.parametrize("source", ["a.csv", "a.jsonl", "a.parquet"])
def test_files_keep_their_columns(model, expected, tmp_path, source, name):
    numbers = [str(number) for number in range(5)] if source == "a.csv" else list(range(5))
    columns = {"id": numbers, "text": TEXTS, "label": ["?"] * 5}
    out = tmp_path / name
    assert label_texts(model, file=write_table(tmp_path / source, columns), out=out, stdin=io.BytesIO(), echo=print) == 5
    found = read_file(out).columns
    assert list(found) == ["id", "text", "label", "predicted_label", "predicted_probability"]
    assert found["text"] == TEXTS
    assert [str(value) for value in found["id"]] == [str(number) for number in range(5)]
    assert found["predicted_label"] == [prediction.label for prediction in expected]
    assert [float(value) for value in found["predicted_probability"]] == pytest.approx([one.probability for one in expected], abs=1e-6)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_tsv_out(model, tmp_path):
    out = tmp_path / "o.tsv"
    run(model, texts=["good", 'a "b"', '"c"'], out=out)
    assert read_file(out).columns["text"] == ["good", 'a "b"', '"c"']
    error = refused(DataError, model, texts=["good", "a\tb"], out=out, overwrite=True)
    assert error.message == "text 2: a field has a tab or a new line in it, which a .tsv cannot hold."
    assert len(read_file(out).columns["text"]) == 3


def test_values_that_are_no_text_go_through(model, tmp_path):
    row = {"text": "good", "n": None, "tags": ["a", "é"], "ok": True}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    run(model, file=tmp_path / "a.jsonl", out=tmp_path / "o.jsonl")
    assert json.loads((tmp_path / "o.jsonl").read_text()).items() >= row.items()
    run(model, file=tmp_path / "a.jsonl", out=tmp_path / "o.csv")
    found = {name: values[0] for name, values in read_file(tmp_path / "o.csv").columns.items()}
    assert (found["n"], found["tags"], found["ok"]) == ("", '["a", "é"]', "true")


def test_many_blocks_in_the_order_of_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "BLOCK", 4)
    monkeypatch.setattr(rows, "BLOCK", 3)
    texts = [f"{'good ' * (number % 5)}{chr(97 + number)}" for number in range(22)]
    file = write_table(tmp_path / "a.parquet", {"text": texts})
    assert run(model, file=file) == run(model, texts=texts)
    run(model, file=file, out=tmp_path / "o.parquet")
    assert read_file(tmp_path / "o.parquet").columns["text"] == texts


def test_rows_are_read_as_they_are_needed(model, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "BLOCK", 2)
    (tmp_path / "a.csv").write_bytes(b"text\ngood\nbad\nfilm\n\xff\n")
    seen: list[str] = []
    with pytest.raises(DataError, match=r"a\.csv, line 5: byte 0xff is not UTF-8"):
        label_texts(model, file=tmp_path / "a.csv", stdin=io.BytesIO(), echo=seen.append)
    assert seen == run(model, texts=["good", "bad"])


# Pairs


def test_pairs_from_a_file(pair_model, tmp_path):
    file = write_table(tmp_path / "a.csv", {"text": ["good", "a"], "text_b": ["bad", "film"]})
    lines = run(pair_model, file=file)
    expected = predict(open_predictor(pair_model), ["good", "a"], ["bad", "film"])
    assert [line.split("\t")[0] for line in lines] == [found.label for found in expected]
    assert lines[0].endswith("\tgood\tbad")
    assert run(pair_model, file=file, columns=["text", "text_b"]) == lines
    assert json.loads(run(pair_model, file=file, as_json=True)[1])["text_b"] == "film"


def test_a_pair_model_wants_pairs(pair_model, tmp_path):
    for options in ({"texts": ["good"]}, {"stdin": b"good\n"}, {"file": tmp_path / "a.csv", "columns": ["text"]}):
        error = refused(ConfigError, pair_model, **options)
        assert error.message == f"{pair_model} labels pairs of texts, but single texts are given."
    assert error.hint == "Give a --file, and its two columns with --text and --text."


def test_a_model_of_single_texts_wants_no_pairs(model, tmp_path):
    error = refused(ConfigError, model, file=tmp_path / "a.csv", columns=["a", "b"])
    assert error.message == f"{model} labels single texts, but pairs are given (a, b)."
    assert "3 text columns are given (a, b, c)" in refused(ConfigError, model, file=tmp_path / "a.csv", columns=["a", "b", "c"]).message


def test_the_ancestors_tell_of_pairs_too(model, pair_model):
    manifest = read_manifest(model)
    assert (takes_pairs(manifest), takes_pairs(read_manifest(pair_model))) == (False, True)
    unknown = manifest.model_copy(update={"data": None})
    assert takes_pairs(unknown) is None
    assert takes_pairs(unknown.model_copy(update={"ancestors": {"0": {"data": None}, "1": {"data": PAIRS}}})) is True


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv has no rows."),
        ("a.csv", b"text\n", "a.csv has no rows."),
        ("a.jsonl", b"\n \n", "a.jsonl has no rows."),
        ("a.csv", b"id,body\n1,x\n", "a.csv, line 2: there is no column 'text'; there are: id, body."),
        ("a.csv", b'text,n\n"a\nb",1\nc\n', "a.csv, line 4: 1 fields, but the header has 2."),
        ("a.csv", b"text,text\na,b\n", "a.csv has several columns of one name (text, text)."),
        ("a.csv", b'text\n"a" b\n', "a.csv, line 2: ',' expected after '\"'."),
        ("a.tsv", b"text\tn\na\n", "a.tsv, line 2: 1 fields, but the header has 2."),
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "a.jsonl, line 2: not JSON:"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl, line 2: [1] is not an object."),
        ("a.jsonl", b'{"text": "a"}\n{"text": 7}\n', "a.jsonl, line 2: column 'text' has 7, which is no text."),
        ("a.jsonl", b'{"text": "a\\ud83d"}\n', "a.jsonl, line 1: character 2 of 'a\\ud83d' is not whole Unicode."),
        ("a.csv", b"text\ngood\n\xe9\n", "a.csv, line 3: byte 0xe9 is not UTF-8."),
        ("a.csv.gz", b"text\ngood\n", "a.csv.gz is not a whole gzip file:"),
        ("a.csv.gz", gzip.compress(b"text\ngood\n", mtime=0)[:-6], "a.csv.gz is not a whole gzip file:"),
        ("a.parquet", b"junk", "a.parquet is not a Parquet file:"),
        ("a.xml", b"<a/>", "a.xml ends in .xml, which is unknown."),
    ],
)
def test_files_that_cannot_be_used(model, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    error = refused(DataError, model, file=tmp_path / name)
    assert message in error.message
    assert error.message.startswith(str(tmp_path))


def test_a_missing_file(model, tmp_path):
    assert (
        refused(DataError, model, file=tmp_path / "no.csv").message == f"{tmp_path / 'no.csv'} cannot be read: No such file or directory."
    )


def test_no_text_at_all(model):
    error = refused(DataError, model)
    assert error.message == "There is no text on standard input."
    assert "with --file" in error.hint


def test_undecodable_standard_input(model):
    assert refused(DataError, model, b"good\n\xff\n").message == "standard input, line 2: byte 0xff is not UTF-8."


def test_arguments_that_exclude_each_other(model, tmp_path):
    assert "both as arguments and with --file" in refused(ConfigError, model, texts=["a"], file=tmp_path / "a.csv").message
    assert "--text names columns (body), but there is no file" in refused(ConfigError, model, texts=["a"], columns=["body"]).message


def test_an_output_that_exists(model, tmp_path):
    out = tmp_path / "o.csv"
    out.write_text("mine")
    error = refused(DataError, model, texts=["good"], out=out)
    assert (error.message, error.hint) == (f"{out} exists already.", "Choose another --out, or give --overwrite.")
    assert out.read_text() == "mine"
    run(model, texts=["good"], out=out, overwrite=True)
    assert read_file(out).columns["text"] == ["good"]


def test_an_input_may_be_replaced(model, tmp_path):
    file = write_table(tmp_path / "a.csv", {"text": ["good", "bad"]})
    run(model, file=file, out=file, overwrite=True)
    assert list(read_file(file).columns) == ["text", "predicted_label", "predicted_probability"]
    error = refused(DataError, model, file=file, out=file, overwrite=True)
    assert "there is a column predicted_label, predicted_probability already" in error.message


def test_a_failure_leaves_no_output(model, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\ngood\n\xff\n")
    refused(DataError, model, file=tmp_path / "a.csv", out=tmp_path / "o.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("place", ["no/o.csv", "file/o.csv"])
def test_an_output_that_cannot_be_written(model, tmp_path, place):
    (tmp_path / "file").write_text("")
    error = refused(EnvironmentProblem, model, texts=["good"], out=tmp_path / place)
    assert f"{place} cannot be written: N" in error.message


def test_an_output_of_no_known_format(model, tmp_path):
    error = refused(DataError, model, texts=["good"], out=tmp_path / "o.xlsx")
    assert (error.message, error.hint) == (
        f"{tmp_path / 'o.xlsx'} ends in .xlsx, which is unknown.",
        "Known: .csv .tsv .jsonl .parquet (also .gz).",
    )


def test_rows_that_differ(model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "n": 1}\n{"text": "bad", "m": 2}\n')
    error = refused(DataError, model, file=tmp_path / "a.jsonl", out=tmp_path / "o.csv")
    assert "line 2: the columns are text, m, predicted_label, predicted_probability, but those of the first row text, n," in error.message
    run(model, file=tmp_path / "a.jsonl", out=tmp_path / "o.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "good", "n": 1}\n{"text": "bad", "n": "x"}\n')
    error = refused(DataError, model, file=tmp_path / "b.jsonl", out=tmp_path / "o.parquet")
    assert error.message.startswith("The rows do not fit in one Parquet table: ")


def test_parquet_without_pyarrow(model, tmp_path, monkeypatch):
    file = write_table(tmp_path / "a.parquet", {"text": ["good"]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refused(EnvironmentProblem, model, file=file)
    assert error.message == "This needs pyarrow, which is not installed."
    assert error.hint == "Install it with: pip install 'alambic[train]'"


# Which predictor


def sealed(directory, kind):
    directory.mkdir()
    seal(directory, kind=kind, stage="train", options={}, task="classification", labels=["a", "b"], parents={}, data=None)
    return directory


def test_torch_models_go_by_torch(tmp_path, monkeypatch):
    class Opened:
        labels, engine, provider, precision = ("a", "b"), "torch", "cpu", "fp32"

        def encode(self, texts, pairs=None):
            return {"input_ids": np.array([[len(text)] for text in texts])}

        def logits(self, batch):
            return np.array([[0.0, row[0]] for row in batch["input_ids"]], np.float32)

    asked = []
    opener = types.ModuleType("export.torch_predictor")
    opener.open_torch_predictor = lambda *arguments, backbone: asked.append(arguments) or Opened()
    monkeypatch.setitem(sys.modules, "export.torch_predictor", opener)
    model = sealed(tmp_path / "torch", "torch")
    assert run(model, texts=["", "long text"], device=Device(threads=2)) == ["a\t0.5000\t", "b\t0.9999\tlong text"]
    assert asked == [(model, "torch", 2)]
    error = refused(ConfigError, model, texts=["a"], device=Device(provider="cuda"))
    assert error.message == f"{model} is a PyTorch model, which runs on the CPU here."
    assert run(model, texts=["a"], device=Device(provider="cuda", allow_fallback=True))


def test_reports_label_nothing(tmp_path):
    model = sealed(tmp_path / "report", "report")
    error = refused(ArtifactError, model, texts=["a"])
    assert error.message == f"{model} is a report: it labels nothing."
    with pytest.raises(ArtifactError):
        open_model(model, read_manifest(model), Device())
