"""Students from their teacher; importance against finite differences; pruning against masking."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.distillation import hidden_loss, objective, pooled
from compress.importance import Importance, taylor
from compress.losses import divergence, supervised
from compress.pruning import choose, counts, prune, prune_by
from compress.students import inherit, layer_map
from model.conversion import rebuilt
from model.errors import ConfigError
from tests.model.tiny import batch, tiny_encoder


def inputs(lengths=(5, 3, 7), seed=0):
    ids, mask = batch(list(lengths), seed=seed)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])[: len(lengths)]}


def logits(model, given):
    with torch.no_grad():
        return model(given["input_ids"], given["attention_mask"])


@given(st.integers(1, 12).flatmap(lambda teacher: st.tuples(st.integers(1, teacher), st.just(teacher))))
def test_layers_are_spread_evenly_and_the_last_is_the_last(sizes):
    depth, teacher = sizes
    layers = layer_map(depth, teacher)
    assert layers == sorted(set(layers)) and len(layers) == depth and layers[-1] == teacher - 1
    gaps = [b - a for a, b in zip([-1, *layers], layers, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_the_trial_of_two_of_six():
    assert layer_map(2, 6) == [2, 5]
    assert layer_map(3, 6, (0, 2, 4)) == [0, 2, 4]


@pytest.mark.parametrize("chosen", [(1,), (1, 1), (2, 1), (0, 6), (-1, 2)])
def test_a_map_that_cannot_be_is_refused(chosen):
    with pytest.raises(ConfigError, match="does not map 2 layers to a teacher of 6") as error:
        layer_map(2, 6, chosen)
    assert "2 rising numbers between 0 and 5" in error.value.hint


def test_a_student_deeper_than_its_teacher_is_refused():
    with pytest.raises(ConfigError, match="A model of 3 layers cannot be made of one of 2"):
        layer_map(3, 2)


def test_inheriting_every_layer_is_the_teacher_and_inheriting_one_skips_the_other():
    teacher = tiny_encoder()
    assert torch.equal(logits(inherit(teacher, [0, 1]).eval(), inputs()), logits(teacher, inputs()))
    student = inherit(teacher, [1], dropout=0.0).eval()
    given_inputs = inputs()
    teacher.layers[0].forward = lambda x, *_: x  # type: ignore[method-assign]
    assert torch.allclose(logits(student, given_inputs), logits(teacher, given_inputs), atol=1e-6)


def test_taylor_scores_are_the_derivatives_of_gates():
    """Against central differences of the loss, the gate put into the weights of the projection that it feeds."""
    model = tiny_encoder()
    one = inputs((6,))
    found = taylor(model, [one], supervised("classification"))
    for layer, importance in enumerate(found):
        for part, scores, width in (("attention.output", importance.heads, 6), ("feedforward.down", importance.neurons, 1)):
            weight = model.get_submodule(f"layers.{layer}.{part}").weight
            for unit in range(min(4, len(scores))):
                columns = slice(unit * width, (unit + 1) * width)
                losses = []
                with torch.no_grad():
                    whole = weight.clone()
                    for gate in (1.01, 0.99):
                        weight[:, columns] = whole[:, columns] * gate
                        losses.append(float(supervised("classification")(model, one)))
                        weight.copy_(whole)
                assert float(scores[unit]) == pytest.approx(abs(losses[0] - losses[1]) / 0.02, abs=1e-3)


def test_taylor_adds_up_over_batches_and_leaves_the_model_alone():
    model = tiny_encoder()
    before = logits(model, inputs())
    parts = [taylor(model, [inputs(seed=seed)], supervised("classification")) for seed in (1, 2)]
    both = taylor(model, [inputs(seed=1), inputs(seed=2)], supervised("classification"))
    assert torch.allclose(both[0].heads, parts[0][0].heads + parts[1][0].heads)
    assert torch.equal(logits(model, inputs()), before) and all(parameter.grad is None for parameter in model.parameters())


def test_pruning_nothing_changes_nothing():
    model = tiny_encoder()
    same = prune(model, [[0, 1, 2, 3], [0, 1]], [list(range(32)), list(range(20))]).eval()
    assert torch.equal(logits(same, inputs()), logits(model, inputs()))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), st.lists(st.integers(0, 31), min_size=1, max_size=32, unique=True))
def test_cutting_is_masking(heads, neurons):
    """A cut model equals the whole one in which the projections' columns of all other heads and neurons are zero."""
    model = tiny_encoder()
    cut = prune(model, [sorted(heads), [1]], [sorted(neurons), list(range(20))]).eval()
    with torch.no_grad():
        for layer, kept in ((0, heads), (1, [1])):
            weight = model.layers[layer].attention.output.weight
            for head in set(range(weight.shape[1] // 6)) - set(kept):
                weight[:, head * 6 : head * 6 + 6] = 0
        for neuron in set(range(32)) - set(neurons):
            model.layers[0].feedforward.down.weight[:, neuron] = 0
    assert torch.allclose(logits(cut, inputs()), logits(model, inputs()), atol=1e-5)
    assert [layer.attention.heads for layer in cut.config.layers] == [len(heads), 1]
    assert cut.layers[0].attention.qkv.weight.shape == (3 * 6 * len(heads), 24)


def test_glu_is_cut_too():
    model = tiny_encoder(layers=[{"attention": {"heads": 2, "head_width": 6}, "feedforward": {"kind": "glu", "neurons": 10}}])
    cut = prune(model, [[0, 1]], [[1, 4, 9]]).eval()
    with torch.no_grad():
        for neuron in set(range(10)) - {1, 4, 9}:
            model.layers[0].feedforward.down.weight[:, neuron] = 0
    assert torch.allclose(logits(cut, inputs()), logits(model, inputs()), atol=1e-6)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_layer_that_keeps_no_neuron_is_its_attention_alone(norm, norm_first):
    """The same as a network that gives nothing; with norms after, where all weights of the first are one number, and all its biases."""
    model = tiny_encoder(norm={"kind": norm}, norm_first=norm_first)
    with torch.no_grad():
        first = model.layers[0]
        first.feedforward.down.weight.zero_()
        first.feedforward.down.bias.zero_()
        first.attention_norm.weight.fill_(1.7)
        if norm == "layernorm":
            first.attention_norm.bias.fill_(0.4)
    cut = prune(model, [[0, 1, 2, 3], [0, 1]], [[], list(range(20))]).eval()
    assert torch.allclose(logits(cut, inputs()), logits(model, inputs()), atol=1e-5)
    assert [name for name, _ in cut.layers[0].named_children() if "feedforward" in name] == []
    again = prune(cut, [[0, 1], [0, 1]], [[], [3]])
    assert [(layer.attention.heads, layer.feedforward.neurons) for layer in again.config.layers] == [(2, 0), (2, 1)]


def test_a_layer_without_a_network_has_no_neuron_to_score():
    without = prune(tiny_encoder(), [[0, 1, 2, 3], [0, 1]], [[], list(range(20))])
    scores = taylor(without, [inputs()], supervised("classification"))
    assert [(len(layer.heads), len(layer.neurons)) for layer in scores] == [(4, 0), (2, 20)]
    assert all(layer.heads.abs().sum() > 0 for layer in scores) and scores[1].neurons.abs().sum() > 0


def test_the_best_are_kept_in_each_layer_or_over_all():
    scores = [torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0.1, 0.9])]
    assert choose(scores, [2, 1], "uniform") == [[0, 1], [1]]
    assert choose([torch.tensor([10.0, 9.0, 8.0]), torch.tensor([1.0, 0.001, 0.001])], [2, 2], "global") == [[0, 1, 2], [0]]
    assert choose(scores, [0, 1], "global") == choose(scores, [0, 1], "uniform") == [[], [1]]
    importance = [Importance(scores[0], torch.rand(32)), Importance(scores[1], torch.rand(20))]
    smaller = prune_by(tiny_encoder(), importance, [2, 1], [8, 5], "uniform")
    assert [(layer.attention.heads, layer.feedforward.neurons) for layer in smaller.config.layers] == [(2, 8), (1, 5)]


def test_counts_are_one_number_or_one_a_layer():
    assert counts((), [4, 2], "heads") == [4, 2]
    assert counts((2,), [4, 2], "heads") == [2, 2]
    assert counts((3, 1), [4, 2], "heads") == [3, 1]
    assert counts((0, 1), [9, 2], "neurons", least=0) == [0, 1]
    with pytest.raises(ConfigError, match="Layer 0 has 0 neurons; 3 cannot be kept. Give a number for each layer, and 0 for that one"):
        counts((3,), [0, 4], "neurons", least=0)
    with pytest.raises(ConfigError, match="Layer 0 has 4 heads; 0 cannot be kept"):
        counts((0, 2), [4, 2], "heads")
    with pytest.raises(ConfigError, match="Layer 1 has 2 heads; 3 cannot be kept"):
        counts((3,), [4, 2], "heads")
    with pytest.raises(ConfigError, match="3 numbers of heads for 2 layers"):
        counts((1, 1, 1), [4, 2], "heads")


def test_soft_loss_is_the_divergence_by_its_formula():
    student, teacher, temperature = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64), 3.0
    p, q = (torch.softmax(values / temperature, -1) for values in (teacher, student))
    expected = temperature**2 * sum(float(p[i, j] * torch.log(p[i, j] / q[i, j])) for i in range(4) for j in range(3)) / 4
    assert float(divergence(student, teacher, temperature)) == pytest.approx(expected)
    assert float(divergence(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_pooling_leaves_padding_out_and_the_hidden_loss_is_relative():
    state, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.allclose(pooled(state, mask)[0], state[0, :2].mean(0))
    target = torch.randn(8, 3)
    assert float(hidden_loss(target * 0 + target.mean(), target)) == pytest.approx(23 / 24, rel=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_the_labels():
    teacher = tiny_encoder()
    one = inputs()
    with torch.no_grad():
        teacher_logits, states = teacher.states(one["input_ids"], one["attention_mask"])
        answers = {
            "teacher_logits": teacher_logits,
            "teacher_states": torch.stack([pooled(state, one["attention_mask"]) for state in states], 1),
        }
        given_all = {**one, **answers}
        weights = {"soft": 1.0, "hidden": 1.0, "temperature": 2.0}
        assert float(objective(**weights, hard=0.0)(teacher, given_all)) == pytest.approx(0, abs=1e-6)
        along = objective(**weights, hard=0.0, along=lambda _: (teacher_logits, states))
        assert float(along(teacher, one)) == pytest.approx(0, abs=1e-6)
        hard = objective(soft=0.0, hidden=0.0, hard=1.0, temperature=2.0)(teacher, given_all)
        assert float(hard) == pytest.approx(float(supervised("classification")(teacher, one)))


def test_a_student_that_pools_early_is_compared_by_its_one_state():
    teacher, one = tiny_encoder(), inputs()
    student = rebuilt(teacher, early_pooling=True)
    with torch.no_grad():
        teacher_logits, states = teacher.states(one["input_ids"], one["attention_mask"])
        own = student.states(one["input_ids"], one["attention_mask"])[1]
        targets = [pooled(state, one["attention_mask"]) for state in states]
        given_all = {**one, "teacher_logits": teacher_logits, "teacher_states": torch.stack(targets, 1)}
        weights = {"soft": 0.0, "hard": 0.0, "hidden": 1.0, "temperature": 2.0}
        expected = hidden_loss(own[1], targets[1]) / 2  # the first layer is the teacher's own
        assert float(objective(**weights)(student, given_all)) == pytest.approx(float(expected), rel=1e-4) and expected > 0
        with pytest.raises(ConfigError, match="with early pooling the last layer has one state a text") as error:
            objective(**weights, along=lambda _: (teacher_logits, states))(student, one)
        assert "--hidden-states pooled" in error.value.hint


def test_a_student_that_pools_early_is_cut_by_scores_of_its_pooled_rows():
    model = tiny_encoder(early_pooling=True)
    importance = taylor(model, [inputs()], supervised("classification"))
    assert (importance[1].heads > 0).all() and importance[1].neurons.sum() > 0
    cut = prune(model, [[0, 1, 2, 3], [1]], [list(range(32)), [0, 4, 9]]).eval()
    assert cut.config.early_pooling
    with torch.no_grad():
        model.layers[1].attention.output.weight[:, :6] = 0
        model.layers[1].feedforward.down.weight[:, [neuron for neuron in range(20) if neuron not in (0, 4, 9)]] = 0
    assert torch.allclose(logits(cut, inputs()), logits(model, inputs()), atol=1e-5)
