"""Every family keeps every property: `pytest tests/models/test_families.py --all-families`.

A tiny random dense model is saved by Transformers and converted by `vf.upcycle`. Without the option
the typical families are tested, one for each kind of row. docs/families.md shows the outcome.
"""

import copy
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

import versatileffn as vf
from support.families import tiny_dense
from support.models import make_ids
from versatileffn.ffn.wide import WideLinear
from versatileffn.models.family import FAMILIES, HEADS, make_classes

ANSWERS = {
    "ForSequenceClassification": {"labels": torch.tensor([0, 2])},
    "ForTokenClassification": {"labels": torch.arange(18).view(2, 9) % 3},
    "ForQuestionAnswering": {
        "start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([4, 8])
    },
}  # fmt: skip
"""What each kind of classifier is trained with."""
GENERATION = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def dense(model_type, tmp_path_factory):
    """The dense model, and the folder that Transformers saved it into."""
    model, folder = tiny_dense(model_type), tmp_path_factory.mktemp(model_type)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def upcycled(dense):
    """As `vf.upcycle` makes it, and the receipt."""
    return vf.upcycle(dense[1], vf.Versatile(reuse_gains="learned"))


@pytest.fixture
def model(upcycled):
    """With gains off zero, so that the reuse matters, and tokens that run different loops."""
    model = copy.deepcopy(upcycled[0])
    with torch.no_grad():
        for layer in model.reuse_layers():
            for gain in layer.gains.parameters():
                gain.fill_(0.4)
    return model


def logits(model, ids=None):
    with torch.no_grad():
        return model(make_ids(2, 9) if ids is None else ids, use_cache=False).logits


def test_starts_exactly(dense, upcycled, model):
    """With learned gains the logits are the dense model's, to the bit; later they aren't."""
    converted, receipt = upcycled
    assert torch.equal(logits(converted), logits(dense[0]))
    assert receipt.logit_difference == 0
    assert not torch.allclose(logits(model), logits(dense[0]), atol=1e-3)


def test_one_loop_is_dense(dense):
    for ffn in (vf.KLoop(num_loops=1), vf.Dense()):
        assert torch.equal(logits(vf.upcycle(dense[1], ffn)[0]), logits(dense[0]))


def test_experts_start_silent(dense):
    converted, _ = vf.upcycle(dense[1], vf.MoE(reuse_gains="learned"))
    torch.testing.assert_close(logits(converted), logits(dense[0]), rtol=1e-5, atol=1e-5)
    assert all(layer.experts.gate_up_proj.any() for layer in converted.reuse_layers())


def test_executors_agree(model):
    """Logits and every gradient of packed training, and of its recomputing form, are masked's.

    Weights inside φ (Apertus has some) leave masked alone, which `auto` then takes. The families'
    norms compute in float32, and a gain's gradient is a sum that may nearly cancel."""
    ids, found = make_ids(2, 9), {}
    plain = not list(model.reuse_layers()[0].ffn_view().act.parameters())
    model.double().train()
    for execution in ("masked", "packed", "recompute") if plain else ("masked", "auto"):
        model.set_execution(execution)
        model.zero_grad()
        torch.manual_seed(3)
        out = model(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        found[execution] = {n: p.grad.clone() for n, p in model.named_parameters()}
        found[execution]["logits"] = out.logits.detach()
    for execution in found.keys() - {"masked"}:
        for name, expected in found["masked"].items():
            error = (found[execution][name] - expected).abs().max()
            assert error < 1e-5 * expected.abs().max() + 1e-8, (execution, name)


def test_saves_and_loads(model, tmp_path):
    model.set_tau(0.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.ffn() == model.config.ffn()
    assert [layer.controller.tau for layer in loaded.reuse_layers()] == [0.5, 0.5]
    assert torch.equal(logits(loaded), logits(model))


def test_generates(model):
    """Without a cache, with one, and padded on the left among other lengths: the same tokens."""
    short, long = make_ids(1, 4, seed=3), make_ids(1, 7, seed=4)
    plain = [model.generate(ids, use_cache=False, **GENERATION) for ids in (short, long)]
    assert torch.equal(model.generate(long, **GENERATION), plain[1])
    batch = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(batch)
    mask[0, :3] = 0
    together = model.generate(batch, attention_mask=mask, **GENERATION)
    assert torch.equal(together[0, 7:], plain[0][0, 4:])
    assert torch.equal(together[1, 7:], plain[1][0, 7:])


def test_compiles(model):
    """A training step's forward pass is one graph, plans included."""
    torch._dynamo.reset()
    ids = make_ids(2, 9)
    model.train()

    def forward(ids):
        return model(ids, labels=ids, output_reuse_plans=True, use_cache=False)

    torch.manual_seed(0)
    expected = forward(ids)
    torch.manual_seed(0)
    found = torch.compile(forward, fullgraph=True, backend="eager")(ids)
    torch.testing.assert_close(found.loss, expected.loss)
    for ours, plan in zip(found.reuse_plans, expected.reuse_plans, strict=True):
        assert torch.equal(ours.loop_count, plan.loop_count)


def test_training_lowers_the_loss(model):
    ids = make_ids(2, 9)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    torch.manual_seed(0)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle


def test_checkpoints_gradients(model):
    """Recomputing layers in the backward pass changes no gradient."""
    ids, gradients = make_ids(2, 9), []
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(5)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_pickles(model):
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))


def test_decides_in_float32(model, tmp_path):
    """In half precision too, and quantized; and what is new is drawn at the family's scale."""
    model.save_pretrained(tmp_path)
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            quantized = should_convert_module(f"{name}.weight", kept)
            assert quantized != (".controller." in name), name
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for layer in half.reuse_layers():
        new = [*layer.controller.parameters(), *layer.gains.parameters()]
        assert {weight.dtype for weight in new} == {torch.float32}
        assert getattr(layer, layer.family.mlp).get_submodule(layer.family.down).weight.dtype == (
            torch.bfloat16
        )
        for linear in (m for m in layer.controller.modules() if isinstance(m, WideLinear)):
            assert linear.weight.std().item() == pytest.approx(0.2, rel=0.2)


def test_leaves_the_ffn_whole(model):
    """FSDP wraps our layer; tensor parallelism, which can't know the experts, leaves out the FFN.

    Splitting F over ranks gives silently wrong logits for anything that masks neurons."""
    layer = model.reuse_layers()[0]
    assert model._no_split_modules == {type(layer).__name__}
    assert not [name for name in model.tp_plan if f".{layer.family.mlp}." in name]
    assert len(model(make_ids(1, 5), output_hidden_states=True).hidden_states) == 3


def test_classifies(model, model_type, tmp_path):
    """Whichever heads of that kind the family has: on our base model, with the balance loss."""
    assert {"ForCausalLM", *ANSWERS} == set(HEADS)
    model.save_pretrained(tmp_path)
    made, prefix, ids = make_classes(model_type), FAMILIES[model_type].prefix, make_ids(2, 9)
    there = [head for head in ANSWERS if prefix + head in made]
    if not there:
        pytest.skip("the family has no classifier")
    for head in there:
        classifier = HEADS[head][0].from_pretrained(tmp_path, num_labels=3)
        assert len(classifier.reuse_layers()) == 2
        classifier.router_aux_loss_coef = 0.5
        plain = classifier(ids, **ANSWERS[head])
        torch.manual_seed(0)
        trained = classifier.train()(ids, **ANSWERS[head])
        assert plain.aux_loss is None
        assert trained.aux_loss is not None
        trained.loss.backward()
        assert all(layer.controller.router.weight.grad.any() for layer in classifier.reuse_layers())
