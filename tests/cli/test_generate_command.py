"""`versatileffn generate` writes what `model.generate` writes, by the budget that is asked for."""

import json
import re

import pytest
from typer.testing import CliRunner

from support.models import make_model
from versatileffn.cli.main import app
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import ConfigError

PROMPT = "some words"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    words = train_bpe(["a text of some words"] * 3, 300)
    make_model(vocab_size=len(words), bos_token_id=0, eos_token_id=1).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def run(*arguments, expect=None):
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if expect is None:
        assert done.exit_code == 0, done.output
        return done.stdout
    assert isinstance(done.exception, expect)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_it_writes_by_the_budget(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, words = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = words(PROMPT, return_tensors="pt")["input_ids"]
    found = []
    for budget in (1, 4):
        said = run(folder, PROMPT, "--budget", budget, "--max-new-tokens", 9, "--json",
                   tmp_path / "out.json")  # fmt: skip
        record = json.loads((tmp_path / "out.json").read_text())
        expected = model.generate(ids, max_new_tokens=9, do_sample=False, max_loops=budget)
        expected = words.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        assert record["text"] == expected
        assert said.strip() == expected.strip()
        assert record["max_loops"] == budget
        found.append(expected)
    assert found[0] != found[1]


def test_the_chat_template_is_used(folder, tmp_path):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    make_model(vocab_size=len(words)).save_pretrained(tmp_path)
    words.chat_template = "{% for m in messages %}of {{ m.content }} a text{% endfor %}"
    words.save_pretrained(tmp_path)
    lengths = []
    for way in ("--chat", "--plain"):
        run(
            tmp_path, PROMPT, way, "--max-new-tokens", 1, "--json", tmp_path / "out" / f"{way}.json"
        )
        record = json.loads((tmp_path / "out" / f"{way}.json").read_text())
        lengths.append(record["prompt_tokens"])
    assert lengths[0] > lengths[1] == len(words(PROMPT)["input_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", 9], "max_loops=9 is more than the 4 loops"),
        (["--budget", 0], "max_loops=0 is too few"),
        (["--mean-loops", 2], "`versatileffn calibrate MODEL TEXT`"),
        (["--max-new-tokens", 64], "more than the 64 that the model takes.*--max-new-tokens"),
    ],
    ids=str,
)
def test_what_is_refused(folder, arguments, message):
    assert re.search(message, run(folder, PROMPT, *arguments, expect=ConfigError))


def test_a_prompt_longer_than_the_model(folder):
    said = run(folder, "words " * 70, expect=ConfigError)
    assert said.endswith("more than the 64 that the model takes: shorten the prompt")
