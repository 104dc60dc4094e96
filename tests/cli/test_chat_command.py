"""`versatileffn chat`: turns are remembered, and it ends as it is told to."""

import json
import subprocess

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from support.terminal import VERSATILEFFN, Terminal, environment
from versatileffn.cli.main import app

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }} {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
NEW = 5


@pytest.fixture(scope="module")
def talker(make_folder):
    return make_folder(TEMPLATE)


def talk(folder, out, *lines, options=()):
    arguments = ["chat", folder, "--max-new-tokens", NEW, "--json", out, *options]
    text = "".join(f"{line}\n" for line in lines)
    done = CliRunner().invoke(app, list(map(str, arguments)), input=text)
    return done, json.loads(out.read_text())["turns"]


def answer_to(folder, text):
    """What the model says after a text, and how many tokens that has."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    ids = words(text, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
    return words.decode(new, skip_special_tokens=True), ids.shape[1]


def test_what_was_said_before_is_read(talker, tmp_path):
    done, turns = talk(talker, tmp_path / "c.json", "some words", "", "a text", "/new", "a text",
                       "/exit", "of")  # fmt: skip
    assert done.exit_code == 0, done.output
    first, second, third = turns
    assert [t["of_a_new_conversation"] for t in turns] == [True, False, True]
    assert (first["text"], first["prompt_tokens"]) == answer_to(talker, "u some words\na ")
    before = f"u some words\na {first['text']}\nu a text\na "
    assert (second["text"], second["prompt_tokens"]) == answer_to(talker, before)
    assert (third["text"], third["prompt_tokens"]) == answer_to(talker, "u a text\na ")
    assert second["text"] != third["text"]
    assert done.stdout == "".join(f"{turn['text']}\n" for turn in turns)
    assert f"{3 * NEW} tokens, " in done.stderr
    assert "note" not in done.stderr


def test_without_a_template_it_is_one_text_and_says_so_once(folder, tmp_path):
    done, (first, second) = talk(folder, tmp_path / "c.json", "some words", "a text")
    assert done.stderr.count("has no chat template") == 1
    assert first["text"] == answer_to(folder, "some words")[0]
    assert second["text"] == answer_to(folder, f"some words\n{first['text']}\na text")[0]


def test_budget_and_loops_hold_for_every_turn(talker, tmp_path):
    done, turns = talk(talker, tmp_path / "c.json", "some words", "a text",
                       options=["--show-loops", "--budget", 2])  # fmt: skip
    loops = [piece["loops"] for turn in turns for piece in turn["pieces"] if piece["loops"]]
    assert len(loops) == 2 * (NEW - 1)
    assert {count for each in loops for count in each} == {1, 2}
    assert done.stdout.count("[") >= NEW
    assert done.stderr.count("in brackets") == 1


def test_a_conversation_too_long_is_refused_and_another_begun(talker, tmp_path):
    lines = ["some words", "a text of some words " * 30, "/new", "a text"]
    done, turns = talk(talker, tmp_path / "c.json", *lines)
    assert done.exit_code == 1
    assert [turn["prompt"] for turn in turns] == ["some words", "a text"]
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "more than the 64 that the model takes: begin another conversation, /new" in error


def test_a_pipe(talker):
    done = subprocess.run(
        [*VERSATILEFFN, "chat", str(talker), "--max-new-tokens", str(NEW)], timeout=300,
        input=b"some words\n\xff\xfe\n", capture_output=True, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    answer = answer_to(talker, "u some words\na ")[0]
    assert done.stdout.decode().startswith(f"{answer}\n")
    assert b"> " not in done.stdout
    assert f"{2 * NEW} tokens" in done.stderr.decode()


@pytest.mark.parametrize("way", ["Ctrl-C", "Ctrl-D"])
def test_a_terminal(talker, tmp_path, way):
    out = tmp_path / "c.json"
    with Terminal("chat", talker, "--max-new-tokens", NEW, "--json", out) as terminal:
        terminal.wait_for("> ")
        assert "/new begins another conversation, /exit or Ctrl-D ends" in terminal.shown
        terminal.say("some words")
        terminal.wait_for("> ", 2)
        if way == "Ctrl-C":
            terminal.interrupt()
        else:
            terminal.say("\x04")
        assert terminal.end() == {"Ctrl-C": 130, "Ctrl-D": 0}[way]
    assert "Traceback" not in terminal.shown
    assert f"{NEW} tokens, " in terminal.shown
    (turn,) = json.loads(out.read_text())["turns"]
    assert turn["text"] == answer_to(talker, "u some words\na ")[0]
