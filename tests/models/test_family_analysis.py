"""What `analyze` measures of every family, against the family's own parts, one loop at a time."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from support.families import tiny_dense
from support.models import make_ids
from support.stories import TEXT, make_tokenizer
from versatileffn.analysis.expert_words import words_by_expert
from versatileffn.analysis.loop_moves import MEASURES as LOOP_MEASURES
from versatileffn.analysis.loop_moves import measure_loops
from versatileffn.analysis.loop_profile import loop_profile
from versatileffn.analysis.pathways import MEASURES, measure_pathways, pathway_updates
from versatileffn.analysis.readings import read
from versatileffn.analysis.token_page import page_data
from versatileffn.analysis.words import ranked_words
from versatileffn.evaluation.loops import layer_use
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.models.family import reuse_config

VOCABULARY = 300


def convert(model_type, **knobs):
    """A tiny model of a family, gains off zero."""
    config = reuse_config(
        tiny_dense(model_type, vocab_size=VOCABULARY).config, FFNConfig.from_dict(knobs)
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain" in name:
                parameter.fill_(0.5)
            elif parameter.dim() == 1:  # no norm is the identity
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def seen_by(model, ids):
    """Each layer's H, view, plan and update."""
    found = []

    def watch(layer):
        own = layer.reuse

        def reuse(hidden, view, plan=None):
            update, decided = own(hidden, view, plan)
            found.append((hidden, view, decided, update, layer.execution))
            return update, decided

        layer.reuse = reuse

    for layer in model.reuse_layers():
        watch(layer)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for layer in model.reuse_layers():
        del layer.reuse
    return found


def states(hidden, view, plan):
    """H_1 … H_L, each the FFN of the one before, by the family's own parts."""
    state, found = hidden, []
    for loop in range(plan.max_loops):
        inner = view.phi(view.project(view.norm(state)))
        out = view.down(inner)
        out = out if view.post_norm is None else view.post_norm(out)
        gain = 1.0 if plan.loop_gains is None else plan.loop_gains[loop]
        state = state + gain * view.scale * out
        found.append(state)
    return found


@pytest.mark.parametrize("knobs", [{}, {"reuse_gains": "learned"}], ids=["paper", "learned"])
def test_pathways_are_the_familys_own(model_type, knobs):
    """Y_depth is so many loops, the two mix to what the layer gives, and measures are of both."""
    model, ids = convert(model_type, **knobs), make_ids(2, 9)
    found, loops = seen_by(model, ids), set()
    _, shown, _ = measure_pathways(model, [ids])
    for index, (hidden, view, plan, update, execution) in enumerate(found):
        with torch.no_grad():
            width, depth = pathway_updates(hidden, view, plan, execution)
            every = torch.stack(states(hidden, view, plan))
        lam = plan.lam[..., None]
        torch.testing.assert_close(lam * width + (1 - lam) * depth, update, rtol=1e-4, atol=1e-5)
        at = (plan.loop_count - 1)[None, ..., None].expand(1, *hidden.shape)
        width, depth = hidden + view.scale * width, hidden + view.scale * depth
        torch.testing.assert_close(depth, every.gather(0, at)[0], rtol=1e-4, atol=1e-4)
        cosine = torch.tensor(shown["cosine"][index]).float()
        torch.testing.assert_close(
            cosine, cosine_similarity(width, depth, dim=-1)[0], rtol=1e-4, atol=1e-4
        )
        loops |= set(plan.loop_count.unique().tolist())
    assert len(loops) > 1
    assert all(abs(shown[name]).max() > 1e-3 for name in MEASURES)


@pytest.mark.parametrize(
    "knobs",
    [{"variant": "k-loop", "num_loops": 3}, {"fusion": "depth", "reuse_gains": "learned"}],
    ids=["k-loop", "depth"],
)
def test_loops_are_the_familys_own(model_type, knobs):
    model, ids = convert(model_type, **knobs), make_ids(2, 9)
    found = seen_by(model, ids)
    means, shown, _ = measure_loops(model, [ids])
    for index, (hidden, view, plan, *_) in enumerate(found):
        with torch.no_grad():
            every = [hidden, *states(hidden, view, plan)]
        assert len(shown[index]) == plan.max_loops == len(every) - 1
        last = every[1] - every[0]
        for loop, measured in enumerate(shown[index], start=1):
            move = every[loop] - every[loop - 1]
            expected = torch.stack([
                cosine_similarity(every[loop], every[loop - 1], dim=-1),
                cosine_similarity(move, last, dim=-1),
                move.norm(dim=-1) / hidden.norm(dim=-1),
            ])  # fmt: skip
            torch.testing.assert_close(
                torch.tensor(measured).float(), expected[:, 0], rtol=1e-3, atol=1e-4
            )
            row = next(each for each in means if (each.layer, each.loop) == (index + 1, loop))
            for name, values in zip(LOOP_MEASURES, expected, strict=True):
                assert getattr(row, name) == pytest.approx(values.mean().item(), rel=1e-3, abs=1e-4)
            last = move


def test_every_view_reads_the_family(model_type):
    """What the views show of one text: of virtual experts, and of real ones."""
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    model = convert(model_type)
    readings = read(model, [ids])
    data = page_data(readings, tokenizer)
    profile = loop_profile(model, [torch.tensor([ids])])
    for row, group in zip(data["layers"], profile.layers, strict=True):
        assert str(row["number"]) == group.label
        assert row["mean"] == pytest.approx(group.mean_loops, abs=1e-4)
        assert row["experts"]
    assert ranked_words(readings, tokenizer, 2, 1)
    model = convert(model_type, variant="moe")
    readings = read(model, [ids])
    uses = layer_use(model, [torch.tensor([ids])])
    for row, use in zip(page_data(readings, tokenizer)["layers"], uses, strict=True):
        assert row["load"] == pytest.approx(use.expert_load, abs=1e-4)
    assert words_by_expert(readings, tokenizer, 2, 1)
