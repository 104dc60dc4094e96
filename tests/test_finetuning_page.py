"""The snippets of docs/finetuning.md run, in their order, and do what the page says."""

import math
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from typer.main import get_command

import versatileffn as vf
from portable.trainers import own_tokenizer, preferences
from support.models import SHAPE, make_ids, make_model
from versatileffn.cli.main import app
from versatileffn.errors import ConfigError

PAGE = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text(encoding="utf-8")
FOLDERS = ("path-or-hub-id", "out", "base", "adapter", "merged", "dense-again")


QUIET = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1}


class Texts(Dataset):
    """Eight texts of random tokens."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = make_ids(9, seed=index)
        return {"input_ids": ids, "labels": ids}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder / "path-or-hub-id")
    return folder


@pytest.fixture(scope="module")
def names(folder):
    """What each snippet defines, by the last word of the heading above it."""
    found = {"__name__": "finetuning", "train_dataset": Texts(), "ids": make_ids(2, 9)}
    found |= {"tokenizer": own_tokenizer(), "preferences": preferences} if find_spec("trl") else {}
    kept = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        for snippet in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            if "from trl" in snippet and not find_spec("trl"):
                continue
            for name in FOLDERS:
                snippet = snippet.replace(f'"{name}"', repr(str(folder / name)))
            snippet = snippet.replace("max_steps=100", f"max_steps=3, **{QUIET}")
            if "preferences" in snippet:
                found["preferences"] = preferences()
            exec(compile(snippet, "finetuning.md", "exec"), found)
        kept[section.splitlines()[0].split()[-1]] = dict(found)
    return kept


def test_the_trainer_of_all_weights_moves_gains_and_tau(names):
    model = names["Trainer"]["model"]
    assert model.config.tau == model.model.layers[0].controller.tau == 0.1
    assert any(weight.any() for name, weight in model.named_parameters() if "gain" in name)


def test_the_page_s_trainer_spares_gains_and_nothing_else(names, tmp_path):
    model = names["Trainer"]["model"]
    args = TrainingArguments(tmp_path, use_cpu=True)
    theirs, ours = (
        set(cls(model, args).get_decay_parameter_names(model))
        for cls in (Trainer, names["Trainer"]["ReuseTrainer"])
    )
    assert theirs - ours == {name for name, _ in model.named_parameters() if "gain" in name}
    assert not ours - theirs


def test_the_adapter_s_run_trains_gains_too_and_merges(names, folder):
    found = names["LoRA"]
    assert found["wrapped"].config.tau == 0.1
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert merged.model.layers[0].gains.width_gain.any()
    with torch.no_grad():
        logits = found["wrapped"].eval()(input_ids=found["ids"]).logits
        torch.testing.assert_close(merged(found["ids"]).logits, logits, rtol=1e-4, atol=1e-4)


def test_what_the_page_says_of_other_configurations(folder):
    """Both are taken for the ways in which gains stay at 0."""
    from peft import LoraConfig, get_peft_model

    for options in (
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["loop_gains"]},
    ):
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        get_peft_model(model, LoraConfig(**options))
        gains = [w for name, w in model.named_parameters() if "gain" in name]
        assert gains
        assert not any(weight.requires_grad for weight in gains)
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig())


def test_the_learned_controller_has_a_gradient_and_learns(names):
    model = names["learns"]["model"]
    for layer in model.reuse_layers():
        for weight in layer.controller.parameters():
            assert weight.grad is not None
            assert weight.grad.any()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    moved = {n for n, weight in model.named_parameters() if not torch.equal(weight, before[n])}
    assert {name for name in before if "controller" in name} <= moved


def test_the_dense_model_is_the_first_one(names, folder):
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense-again")
    first, ids = AutoModelForCausalLM.from_pretrained(folder / "path-or-hub-id"), make_ids(2, 9)
    assert type(dense) is LlamaForCausalLM
    with torch.no_grad():
        assert torch.equal(dense(ids).logits, first(ids).logits)


@pytest.mark.skipif(not find_spec("trl"), reason="TRL isn't installed")
def test_the_first_loss_of_dpo(names):
    losses = [e["loss"] for e in names["TRL"]["trainer"].state.log_history if "loss" in e]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)


def test_the_command_parses():
    verb, *arguments = shlex.split(re.search(r"^versatileffn (.*)$", PAGE, re.MULTILINE)[1])
    get_command(app).commands[verb].make_context(verb, arguments)


def test_tau_falls_in_any_trainer_and_goes_on_where_it_was(tmp_path):
    class Watch(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_step_end(self, args, state, control, model, **kwargs):
            self.seen.append(model.model.layers[1].controller.tau)

    def run(steps, schedule=None, resume=None):
        watch, model = Watch(), make_model(variant="versatile")
        args = TrainingArguments(
            tmp_path, max_steps=steps, save_steps=2, use_cpu=True, disable_tqdm=True,
            report_to="none",
        )  # fmt: skip
        anneal = vf.AnnealTau(start=4.0, end=0.25, anneal_fraction=1.0, steps=schedule)
        Trainer(model, args, train_dataset=Texts(), callbacks=[anneal, watch]).train(
            resume_from_checkpoint=resume
        )
        return watch.seen, model.config.tau

    seen, last = run(4)
    assert seen == pytest.approx([4.0, 2.0, 1.0, 0.5])
    assert last == 0.25
    seen, last = run(4, resume=str(tmp_path / "checkpoint-2"))
    assert seen == pytest.approx([1.0, 0.5])
    assert run(2, schedule=4) == (pytest.approx([4.0, 2.0]), pytest.approx(1.0))


@pytest.mark.parametrize(
    "wrong", [{"start": 0.0}, {"end": -1.0}, {"anneal_fraction": 1.5}, {"steps": 0}], ids=str
)
def test_a_schedule_out_of_range_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        vf.AnnealTau(**wrong)
