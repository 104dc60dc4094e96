"""The pathways' outputs against their definitions, and what is measured of them."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from support.models import make_ids, make_model
from versatileffn.analysis.pathways import MEASURES, measure_pathways, pathway_updates
from versatileffn.errors import ConfigError
from versatileffn.layer import VersatileFFN


@pytest.mark.parametrize("knobs", [{}, {"fusion": "average"}, {"reuse_gains": "learned"}], ids=str)
def test_pathways_are_their_definitions_and_mix_to_the_output(knobs) -> None:
    torch.manual_seed(0)
    layer = VersatileFFN(16, 64, num_experts=4, **knobs).double().eval()
    if layer.gains is not None:
        for gain in layer.gains.parameters():
            torch.nn.init.constant_(gain, 0.5)
    hidden = torch.randn(3, 7, 16, dtype=torch.float64)
    with torch.no_grad():
        out, _, plan = layer(hidden)
        view = layer.mlp.view(layer.norm, layer.loop_weights)
        width, depth = pathway_updates(hidden, view, plan, layer.execution)
        lam = plan.lam[..., None]
        torch.testing.assert_close(lam * width + (1 - lam) * depth, out - hidden)
        state, loops = hidden, [hidden]
        for loop in range(4):
            gain = 1.0 if plan.loop_gains is None else plan.loop_gains[loop]
            state = state + gain * layer.mlp(layer.norm(state))
            loops.append(state)
        chosen = torch.stack(loops).gather(0, plan.loop_count[None, ..., None].expand(1, 3, 7, 16))
        torch.testing.assert_close(depth, chosen[0] - hidden)
        inner = plan.shared * torch.ones(3, 7, 64, dtype=torch.float64)
        for k in range(plan.gates.shape[-1]):
            neurons = torch.arange(64) // 16 == plan.experts[..., k, None]
            gain = 1.0 if plan.width_gain is None else plan.width_gain
            inner = inner + gain * plan.gates[..., k, None] * neurons
        x = layer.norm(hidden)
        first = torch.nn.functional.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
        torch.testing.assert_close(width, layer.mlp.down_proj(inner * first))
    assert plan.loop_count.unique().numel() > 1


def test_means_are_over_tokens_and_the_model_is_left_alone() -> None:
    model = make_model(variant="versatile")
    batches = [make_ids(2, 5), make_ids(1, 9, seed=3)]
    before = model(input_ids=batches[1]).logits
    means, shown, longest = measure_pathways(model, batches)
    assert longest == batches[1][0].tolist()
    assert torch.equal(model(input_ids=batches[1]).logits, before)
    assert all("reuse" not in vars(layer) for layer in model.modules())
    assert [row.layer for row in means] == [1, 2]
    assert all(shown[name].shape == (2, 9) for name in MEASURES)
    alone = [measure_pathways(model, [row[None]])[0] for ids in batches for row in ids]
    for index, row in enumerate(means):
        for name in MEASURES:
            parts = [getattr(rows[index], name) for rows in alone]
            expected = (5 * parts[0] + 5 * parts[1] + 9 * parts[2]) / 19
            assert getattr(row, name) == pytest.approx(expected)


def test_the_first_layers_cosine_is_that_of_its_outputs() -> None:
    model = make_model(variant="versatile")
    ids = make_ids(1, 8)
    seen = []
    layer = model.model.layers[0]
    own = layer.reuse
    layer.reuse = lambda hidden, view: seen.append((hidden, view)) or own(hidden, view)
    with torch.no_grad():
        plan = model(input_ids=ids, output_reuse_plans=True).reuse_plans[0]
        hidden, view = seen[0]
        width, depth = pathway_updates(hidden, view, plan, "auto")
    del layer.reuse
    _, shown, _ = measure_pathways(model, [ids])
    cosine = cosine_similarity(hidden + width, hidden + depth, dim=-1)[0]
    torch.testing.assert_close(torch.tensor(shown["cosine"][0]).float(), cosine)
    ratio = (width.norm(dim=-1) / hidden.norm(dim=-1))[0]
    torch.testing.assert_close(torch.tensor(shown["width_size"][0]).float(), ratio)


@pytest.mark.parametrize("settings", [
    {"variant": "dense"}, {"variant": "k-loop"}, {"variant": "moe"},
    {"variant": "versatile", "fusion": "depth"},
], ids=str)  # fmt: skip
def test_a_model_without_two_pathways_is_refused(settings) -> None:
    with pytest.raises(ConfigError, match="no two pathways to compare"):
        measure_pathways(make_model(**settings), [make_ids(1, 4)])
