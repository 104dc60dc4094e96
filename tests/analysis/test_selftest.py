"""The self-test finds what is wrong, and nothing where nothing is."""

import email.message
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from support.families import TYPICAL, tiny_config
from support.models import VARIANTS, make_model
from versatileffn.analysis import selftest, surroundings
from versatileffn.analysis.speed import Timings
from versatileffn.execution import select
from versatileffn.execution.select import execution_choices, forget_choices
from versatileffn.ffn.config import KLoop, Versatile
from versatileffn.models.family import model_class, reuse_config

CPU = torch.device("cpu")
FORMS = [Versatile(reuse_gains="learned"), Versatile(loop_mix="soft"), KLoop(3, loop_rank=2)]


@pytest.mark.parametrize("ffn", FORMS, ids=["learned", "soft", "k-loop-weights"])
@pytest.mark.parametrize("family", TYPICAL)
def test_a_layer_of_any_family_is_right(family, ffn):
    """Its own norms, biases, activation and scale; gains and residuals off zero."""
    config = reuse_config(tiny_config(family), ffn)
    torch.manual_seed(0)
    model = model_class(config)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for subject in selftest.subjects_of(model):
        found = selftest.numerics(subject)
        assert found["ok"], found
        assert found["errors"].keys() == {"output", "gradients", selftest.ONE_LOOP}
        assert 0 < found["errors"]["output"] < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_a_model_just_converted_is_right(seed):
    """Its gains are 0, so that the controller's gradient is rounding, here and in the truth."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    dense = LlamaConfig(vocab_size=300, num_hidden_layers=2, **sizes)
    config = reuse_config(dense, Versatile(reuse_gains="learned"))
    for subject in selftest.subjects_of(model_class(config)(config).eval()):
        found = selftest.numerics(subject)
        assert not any(gain.any() for gain in subject.layer.gains.parameters())
        assert found["ok"], found
        assert "gradients" in found["errors"]


@pytest.mark.parametrize("dtype", selftest.LIMITS, ids=str)
def test_our_own_layer_is_right(dtype):
    subject = selftest.own_subject(48, 96, dtype, CPU)
    with torch.no_grad():
        plan = subject.layer.decide(subject.hidden(64), subject.view)
    assert len(set(plan.loop_count.tolist())) == 4  # else it would test less than it says
    found = selftest.numerics(subject)
    assert found["ok"]
    assert found["skipped"] is None
    assert subject.layer.budget is None


def off_by_one_loop(run):
    def broken(hidden, view, weights):
        fewer = (weights.loop_count - 1).clamp_min(1)
        probs = torch.nn.functional.one_hot(fewer - 1, weights.max_loops).to(weights.probs_ML)
        return run(hidden, view, replace(weights, loop_count=fewer, probs_ML=probs))

    return broken


def one_gradient_lost(run):
    """The right output, and no gradient from what is added to the residual stream."""

    def broken(hidden, view, weights):
        output = run(hidden, view, weights)
        return output.detach() + 0 * output

    return broken


BROKEN = {
    "output": ("run_packed", off_by_one_loop),
    "gradients": ("run_packed_training", one_gradient_lost),
    selftest.ONE_LOOP: ("run_once", lambda run: lambda *given: 2 * run(*given)),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("dtype", selftest.LIMITS, ids=str)
def test_a_broken_executor_is_found(what, dtype, monkeypatch):
    name, broken = BROKEN[what]
    monkeypatch.setattr(select, name, broken(getattr(select, name)))
    found = selftest.numerics(selftest.own_subject(48, 96, dtype, CPU))
    assert not found["ok"]
    wrong = {key for key, error in found["errors"].items() if error > 100 * found["limit"]}
    assert wrong == {what}


def test_numbers_that_are_none_are_wrong(monkeypatch):
    monkeypatch.setattr(select, "run_packed", lambda hidden, *_: hidden * torch.nan)
    assert not selftest.numerics(selftest.own_subject(48, 96, torch.float32, CPU))["ok"]


def test_a_large_layer_is_held_to_its_output_alone(monkeypatch):
    monkeypatch.setattr(selftest, "MOST_WEIGHTS", 100)
    found = selftest.numerics(selftest.own_subject(48, 96, torch.float32, CPU))
    assert found["errors"].keys() == {"output", selftest.ONE_LOOP}
    assert "gradients" in found["skipped"]


@pytest.mark.parametrize("name", VARIANTS)
def test_executors_are_those_that_the_model_gets(name):
    model = make_model(**VARIANTS[name])
    found = selftest.executors(selftest.subjects_of(model))
    assert {row["work"] for row in found} == {*selftest.WORKS, selftest.ONE_LOOP}
    assert {row["layers"] for row in found} == {2}
    forget_choices()
    with torch.no_grad():
        model(torch.zeros(1, 9, dtype=torch.int64))
    used = {choice["executor"] for choice in execution_choices()} or {"experts"}
    assert used == {row["executor"] for row in found if row["work"] == "prefill"}


def test_a_real_mixture_is_left_alone():
    (subject, _) = selftest.subjects_of(make_model(variant="moe"))
    found = selftest.numerics(subject)
    assert found["ok"]
    assert "real experts" in found["skipped"]


def test_speeds_are_those_of_the_clock():
    """`auto` takes 2 s, masked 3 s, dense 1 s, in every round."""
    subject = selftest.own_subject(48, 96, torch.float32, CPU)
    seconds = {"auto": 2.0, "masked": 3.0, "dense": 1.0}

    def clock(subjects, **_):
        for run in subjects.values():
            run()
        return Timings({name: [seconds[name]] * 3 for name in subjects})

    rows = selftest.speeds(subject, clock)
    assert [row["tokens_per_second"] for row in rows] == [0.5, 128, 128]
    assert all(row["masked"]["median"] == 1.5 and row["dense"]["median"] == 0.5 for row in rows)
    assert subject.layer.execution == "auto"
    assert all(weight.grad is None for weight in subject.layer.parameters())


def test_what_is_missing_has_a_command():
    needed = surroundings.applying([
        "torch>=2", "torch>=99", "no-such-thing>=1.5", "other ; python_version < '3'", "torch",
    ])  # fmt: skip
    assert surroundings.install(needed) == "pip install 'torch>=99' 'no-such-thing>=1.5'"
    assert surroundings.install(needed[:1]) is None


def test_every_extra_says_what_it_is_for():
    required, extras = surroundings.requirements()
    assert {need.name for need in required} > {"torch", "transformers"}
    assert extras.keys() == surroundings.PURPOSES.keys()


def test_without_the_sources_pip_knows_what_is_required(monkeypatch, tmp_path):
    listed = ["torch>=2.11", "gguf>=0.10; extra == 'gguf'", "triton; extra == 'dev'",
              "old; python_version < '3' and extra == 'dev'"]  # fmt: skip
    monkeypatch.setattr(surroundings, "ROOT", tmp_path / "lib" / "versatileffn")
    monkeypatch.setattr(surroundings.metadata, "requires", lambda _: listed)
    told = email.message.Message()
    for extra in ("gguf", "dev"):
        told["Provides-Extra"] = extra
    monkeypatch.setattr(surroundings.metadata, "metadata", lambda _: told)
    required, extras = surroundings.requirements()
    assert [need.name for need in required] == ["torch"]
    assert {name: [n.name for n in needed] for name, needed in extras.items()} == {
        "gguf": ["gguf"], "dev": ["triton"],
    }  # fmt: skip
