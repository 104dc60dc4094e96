"""What a budget, and the verbs that write, refuse: each in one line, with what to do instead."""

import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import versatileffn as vf
from support.models import SHAPE, VARIANTS
from versatileffn.cli.calibrate import keep
from versatileffn.cli.main import app
from versatileffn.errors import VersatileFFNError

CURVE = [{"penalty": -1.0, "mean_loops": 3.5}, {"penalty": 1.0, "mean_loops": 1.5}]


@pytest.fixture(scope="module")
def models(make_folder, tmp_path_factory):
    """A checkpoint of each variant, one of Transformers' own, and one with a curve."""
    found = {name: make_folder(**VARIANTS[name]) for name in ("dense", "k-loop", "moe")}
    found["soft"] = make_folder(variant="versatile", loop_mix="soft")
    found["versatile"] = make_folder()
    found["curve"] = tmp_path_factory.mktemp("curve") / "model"
    shutil.copytree(found["versatile"], found["curve"])
    keep(found["curve"], CURVE)
    found["llama"] = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 300})).save_pretrained(found["llama"])
    for file in found["versatile"].glob("tokenizer*"):
        shutil.copy(file, found["llama"])
    return found


NOTHING_CAPPED = "model decides nothing that could be capped.*convert with vf.Versatile"
NO_MEAN = "model decides nothing token by token.*convert with vf.Versatile"
NO_REUSE = "has no reused FFN.*convert it with versatileffn.upcycle"
NO_LOOPS = "decides no loops.*give a versatile model"
LONG = "more than the 64 that the model takes: shorten the prompt$"
TEXTS = {"short": "some words", "long": "words " * 70, "empty": ""}
GENERATE = [
    # A model that decides nothing.
    ("dense", ["--budget", 1], NOTHING_CAPPED),
    ("moe", ["--budget", 1], NOTHING_CAPPED),
    ("llama", ["--budget", 1], NO_REUSE),
    ("dense", ["--mean-loops", 1], NO_MEAN),
    (
        "k-loop",
        ["--mean-loops", 2],
        f"{NO_MEAN.replace('.*', '.*give max_loops where it loops.*')}",
    ),
    ("llama", ["--mean-loops", 2], NO_REUSE),
    ("dense", ["--show-loops"], "it is dense.*give a versatile model"),
    ("llama", ["--show-loops"], NO_LOOPS),
    ("moe", ["--show-loops"], "its experts are real"),
    ("k-loop", ["--show-loops"], "every token takes 3 loops by design"),
    # A budget out of range.
    ("versatile", ["--budget", 5], "max_loops=5 is more than the 4 loops there are: give 1 to 4"),
    ("versatile", ["--budget", 0], "max_loops=0 is too few.*give 1 to 4"),
    ("versatile", ["--budget", -2], "max_loops=-2 is too few.*give 1 to 4"),
    ("k-loop", ["--max-loops", 4], "more than the 3 loops there are: give 1 to 3"),
    ("curve", ["--mean-loops", 1.2], "outside of this checkpoint's curve: give 1.5 to 3.5"),
    ("curve", ["--mean-loops", 9], "outside of this checkpoint's curve: give 1.5 to 3.5"),
    ("curve", ["--mean-loops", "nan"], "mean_loops=nan must be a finite number"),
    ("soft", ["--mean-loops", 2], "runs every loop for every token.*give max_loops"),
    # No curve.
    ("versatile", ["--mean-loops", 2], "make it with `versatileffn calibrate MODEL TEXT`"),
    # A text that doesn't fit.
    ("versatile", ["long"], LONG),
    ("versatile", ["--max-new-tokens", 63], "shorten the prompt, or lower --max-new-tokens$"),
    ("versatile", ["empty"], "the prompt is empty: give at least a word"),
]


@pytest.mark.parametrize("verb", ["generate", "chat"])
@pytest.mark.parametrize(("name", "extra", "message"), GENERATE, ids=str)
def test_the_command_line(models, verb, name, extra, message):
    text = TEXTS.get(extra[0], TEXTS["short"])
    options = [str(option) for option in extra if option not in TEXTS]
    spoken = [text] if verb == "generate" else []
    done = CliRunner().invoke(app, [verb, str(models[name]), *spoken, *options], input=f"{text}\n")
    if verb == "chat" and text == TEXTS["empty"]:
        assert done.exit_code == 0  # a line with nothing in it asks for nothing
        return
    assert done.exit_code == 1
    if isinstance(done.exception, VersatileFFNError):
        said = str(done.exception)
    else:  # a line of a conversation, which may go on
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        message = message.replace("shorten the prompt", "begin another conversation, /new")
    assert re.search(message, said), said
    assert "\n" not in said
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["dense", "llama", "moe", "k-loop"])
def test_a_conversation_without_loops_to_show_ends_before_it_begins(models, name):
    done = CliRunner().invoke(app, ["chat", str(models[name]), "--show-loops"], input="Hello\n")
    assert done.exit_code == 1
    assert isinstance(done.exception, VersatileFFNError)
    assert done.stdout == ""


TENSOR = torch.tensor
PYTHON = [
    ("versatile", {"max_loops": 0}, "too few.*give 1 to 4"),
    ("versatile", {"max_loops": 5}, "give 1 to 4"),
    ("versatile", {"max_loops": 1.5}, "must be a whole number"),
    ("versatile", {"max_loops": True}, "must be a whole number"),
    ("versatile", {"max_loops": TENSOR([1, 9])}, "give 1 to 4"),
    ("versatile", {"max_loops": TENSOR([1.0])}, "whole numbers.*use int64"),
    ("versatile", {"max_loops": TENSOR([], dtype=torch.int64)}, "give one number for each"),
    ("versatile", {"mean_loops": 2.0}, "versatileffn calibrate MODEL TEXT"),
    ("curve", {"mean_loops": 0.5}, "give 1.5 to 3.5"),
    ("dense", {"max_loops": 1}, NOTHING_CAPPED),
    ("k-loop", {"mean_loops": 2.0}, NO_MEAN),
]
FOREIGN = ("llama", {"max_loops": 1}, NO_REUSE)
"""Transformers' own classes know no budget, the context manager alone sees it."""


def enter(model, **budget):
    with vf.compute_budget(model, **budget):
        pass


WAYS = {
    "context": enter,
    "setting": lambda model, **budget: model.set_compute_budget(**budget),
    "loading": lambda model, **budget: type(model).from_pretrained(model.name_or_path, **budget),
    "generate": lambda model, **budget: model.generate(model.dummy_inputs["input_ids"], **budget),
}


@pytest.mark.parametrize(
    ("way", "name", "budget", "message"),
    [(way, *case) for way in WAYS for case in PYTHON] + [("context", *FOREIGN)],
    ids=str,
)
def test_in_python(models, way, name, budget, message):
    model = AutoModelForCausalLM.from_pretrained(models[name])
    with pytest.raises(VersatileFFNError, match=message) as refused:
        WAYS[way](model, **budget)
    assert "\n" not in str(refused.value)
