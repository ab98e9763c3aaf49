"""The exported graph against PyTorch through the real predictor, and each gate broken on purpose."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export import graph
from export.audit import audit
from export.graph import export_graph, opset_for
from export.parity import Parity, batch_of, checked, compare, grid
from export.parity import gate as parity_gate
from model.errors import GateError
from tests.export.tiny_int8 import quantized
from tests.model.tiny import batch, tiny_encoder


class Session:
    """The least that parity needs."""

    def __init__(self, file: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs = {entry.name for entry in self.session.get_inputs()}

    def logits(self, given):
        return self.session.run(["logits"], {name: array for name, array in given.items() if name in self.inputs})[0]


SHAPES = [
    {},
    {"positions": {"kind": "rotary"}, "norm": {"kind": "rmsnorm"}, "norm_first": True},
    {
        "layers": [{"attention": {"heads": 3, "head_width": 8}, "feedforward": {"kind": "glu", "neurons": 12}}],
        "head": {"labels": 3, "pooling": "cls"},
    },
    {"early_pooling": True},
    {"early_pooling": True, "norm_first": True, "head": {"labels": 3, "pooling": "cls"}},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_the_graph_gives_pytorchs_logits_at_every_shape(tmp_path, changes):
    model = tiny_encoder(**changes)
    export_graph(model, tmp_path / "model.onnx", opset=opset_for(model), pairs=False)
    found = compare(model, Session(tmp_path / "model.onnx"), pairs=False)
    assert found.difference < 1e-5 and found.shapes >= 8
    assert "SkipLayerNormalization" not in audit(tmp_path / "model.onnx").operators


def test_pairs_have_their_own_input(tmp_path):
    model = tiny_encoder(token_types=2)
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=True)
    session = Session(tmp_path / "model.onnx")
    assert session.inputs == {"input_ids", "attention_mask", "token_type_ids"}
    assert compare(model, session, pairs=True).difference < 1e-5


@pytest.mark.parametrize("changes", SHAPES[:2])
def test_quantized_linears_run_as_integers_and_answer_as_in_pytorch(tmp_path, changes):
    model = quantized(**changes)
    export_graph(model, tmp_path / "model.onnx", opset=opset_for(model), pairs=False)
    found = audit(tmp_path / "model.onnx")
    assert (found.integer, found.float) == (8, 1)  # the head stays fp32
    assert compare(model, Session(tmp_path / "model.onnx"), pairs=False).signal_db > 30


def test_linears_whose_biases_are_zero_run_as_integers_too(tmp_path):
    """As in a model from nothing; the exporter leaves such a bias out."""
    model = quantized()
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("qkv.bias", "output.bias", "up.bias", "down.bias")):
                parameter.zero_()
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=False)
    assert audit(tmp_path / "model.onnx").integer == 8
    assert compare(model, Session(tmp_path / "model.onnx"), pairs=False).signal_db > 30


def test_a_text_answers_alike_alone_and_in_a_batch(tmp_path):
    """Static scales: nothing depends on the neighbours, to the last bit but for the order of sums."""
    export_graph(quantized(), tmp_path / "model.onnx", opset=20, pairs=False)
    session = Session(tmp_path / "model.onnx")
    ids, mask = (tensor.numpy() for tensor in batch([12, 5, 1]))
    together = session.logits({"input_ids": ids, "attention_mask": mask})
    for row, length in enumerate((12, 5, 1)):
        alone = session.logits({"input_ids": ids[row : row + 1, :length], "attention_mask": mask[row : row + 1, :length]})
        assert np.allclose(alone[0], together[row], atol=1e-5)


def test_the_same_model_gives_the_same_bytes_and_no_paths(tmp_path):
    for name in ("a", "b"):
        export_graph(tiny_encoder(), tmp_path / name, opset=20, pairs=False)
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert b"site-packages" not in content and str(Path(graph.__file__).parent).encode() not in content


def test_parity_finds_one_wrong_weight_and_says_where(tmp_path):
    model = tiny_encoder()
    file = tmp_path / "model.onnx"
    export_graph(model, file, opset=20, pairs=False)
    with torch.no_grad():
        model.layers[1].feedforward.down.weight[0, 0] += 0.5
    found = compare(model, Session(file), pairs=False)
    with pytest.raises(GateError, match=r"differs from PyTorch by .* at batch and length \(\d+, \d+\) \(allowed: 0.0001\)") as error:
        parity_gate(found, tolerance=1e-4, signal=25)
    assert error.value.exit_code == 3 and "Nothing was written" in error.value.hint


def test_parity_of_int8_is_a_matter_of_signal():
    parity_gate(Parity(0.5, 31.0, (1, 7), 9, 31.0), tolerance=None, signal=25)
    with pytest.raises(GateError, match=r"is 20.0 dB from PyTorch, worst at batch and length \(1, 7\) \(asked: 25 dB\)"):
        parity_gate(Parity(0.5, 20.0, (1, 7), 9, 35.0), tolerance=None, signal=25)


def test_the_grid_has_length_one_odd_and_longest_with_uneven_padding():
    shapes = grid(128)
    assert {length for _, length in shapes} >= {1, 7, 33, 64, 127, 128}
    given = batch_of((4, 20), 50, 0, pairs=True)
    lengths = given["attention_mask"].sum(1)
    assert lengths[0] == 20 and lengths[1] == 1 and len(set(lengths)) > 2
    assert (given["input_ids"][given["attention_mask"] == 0] == 0).all()


class Constant(torch.nn.Module):
    """Logits of `value`, but of `value` / 1000 for texts of length 1."""

    def __init__(self, model, value):
        super().__init__()
        self.config, self.value = model.config, value

    def forward(self, input_ids, attention_mask):
        small = 1000 if input_ids.shape[1] == 1 else 1
        return torch.full((len(input_ids), 2), self.value / small)


class Off:
    def __init__(self, module, noise):
        self.module, self.noise = module, noise

    def logits(self, batch):
        return self.module(*(torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))).numpy() + self.noise


def test_noise_is_weighed_against_the_logits_of_all_shapes():
    module = Constant(tiny_encoder(), 1.0)
    assert 39 < compare(module, Off(module, 0.01), pairs=False).signal_db < 41
    assert compare(module, Off(module, 0.5), pairs=False).signal_db < 7
    nothing = Constant(tiny_encoder(), 0.0)
    assert compare(nothing, Off(nothing, 0.01), pairs=False).signal_db == float("-inf")


class Touchy(torch.nn.Module):
    """Logits of 1, which a weight that moves by a millionth moves by a thousandth."""

    def __init__(self, model):
        super().__init__()
        self.config, self.weight = model.config, torch.nn.Parameter(torch.ones(64, 2), requires_grad=False)

    def forward(self, input_ids, attention_mask):
        lengths = (input_ids.shape[1] + torch.arange(len(input_ids))) % 64
        return 1 + 1000 * (self.weight[lengths] - 1)


class OffAtSeven(Off):
    def logits(self, batch):
        return super().logits(batch) - (0 if batch["input_ids"].shape == (1, 7) else self.noise)


def test_a_model_that_makes_much_of_a_rounding_has_to_be_as_near_as_it_is_to_itself():
    int8 = {"pairs": False, "tolerance": None}
    touchy = Touchy(tiny_encoder())
    assert 19 < checked(touchy, Off(touchy, 0.1), signal=None, **int8).signal_db < 21
    with pytest.raises(GateError, match=r"is 20.0 dB from PyTorch, .* \(asked: 21 dB\)"):
        checked(touchy, Off(touchy, 0.1), signal=21, **int8)
    with pytest.raises(GateError, match=r"is 6.0 dB from PyTorch, .* \(asked: 25 dB\)"):
        checked(touchy, Off(touchy, 0.5), signal=None, **int8)


def test_one_shape_that_is_off_is_refused_where_the_model_is_steady():
    steady = Constant(tiny_encoder(), 1.0)
    assert compare(steady, OffAtSeven(steady, 0.1), pairs=False).together_db > 25
    with pytest.raises(GateError, match=r"worst at batch and length \(1, 7\) \(asked: 25 dB\)"):
        checked(steady, OffAtSeven(steady, 0.1), pairs=False, tolerance=None, signal=None)
