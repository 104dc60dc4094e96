"""`versatileffn generate` writes what `model.generate` writes, by the budget that is asked for."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from support.terminal import Terminal
from versatileffn.cli.loop_colours import colour
from versatileffn.cli.main import app
from versatileffn.evaluation.observe import observe

PROMPT = "some words"
NEW = 9


def run(*arguments):
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def own_text(folder, **options):
    """The new tokens, and their text, as Transformers' `generate` makes them."""
    model, words = load(folder)
    ids = words(PROMPT, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=NEW, do_sample=False, **options)[0, ids.shape[1] :]
    return new, words.decode(new, skip_special_tokens=True)


def written(out):
    return json.loads(out.read_text())


def test_it_writes_by_the_budget(folder, tmp_path):
    found, out = [], tmp_path / "out.json"
    for name, budget in (("--budget", 1), ("--max-loops", 4)):
        done = run(folder, PROMPT, name, budget, "--max-new-tokens", NEW, "--json", out)
        _, expected = own_text(folder, max_loops=budget)
        assert written(out)["text"] == expected
        assert done.stdout.strip() == expected.strip()
        assert re.fullmatch(rf"{NEW} tokens, [\d.]+ tokens/s\n", done.stderr)
        assert written(out)["max_loops"] == budget
        found.append(expected)
    assert found[0] != found[1]


def test_the_budget_asked_for_goes_before_the_checkpoints_own(make_folder, tmp_path):
    folder = make_folder()
    GenerationConfig(max_loops=1, eos_token_id=1, bos_token_id=0).save_pretrained(folder)
    texts = []
    for extra in ([], ["--budget", 4]):
        run(folder, PROMPT, *extra, "--max-new-tokens", NEW, "--json", tmp_path / "out.json")
        texts.append(written(tmp_path / "out.json")["text"])
    assert texts == [own_text(folder, max_loops=1)[1], own_text(folder, max_loops=4)[1]]
    assert texts[0] != texts[1]


def test_the_chat_template_is_used(make_folder, tmp_path):
    folder = make_folder("{% for m in messages %}of {{ m.content }} a text{% endfor %}")
    lengths, out = [], tmp_path / "out.json"
    for way in ("--chat", "--plain"):
        run(folder, PROMPT, way, "--max-new-tokens", 1, "--json", out)
        lengths.append(written(out)["prompt_tokens"])
    assert lengths[0] > lengths[1] == len(load(folder)[1](PROMPT)["input_ids"])


@pytest.mark.parametrize("budget", [{}, {"max_loops": 2}], ids=["no-budget", "budget"])
def test_loops_are_those_of_reading_the_text(folder, tmp_path, budget):
    """With the cache and token by token, or all at once as every analysis reads: one ruler."""
    options = ["--max-loops", 2] if budget else []
    done = run(folder, PROMPT, "--show-loops", *options, "--max-new-tokens", NEW, "--json",
               tmp_path / "out.json")  # fmt: skip
    pieces = written(tmp_path / "out.json")["pieces"]
    model, words = load(folder)
    new, text = own_text(folder, **budget)
    assert "".join(piece["text"] for piece in pieces) == text
    ids = torch.cat([words(PROMPT, return_tensors="pt")["input_ids"][0], new])
    if budget:
        model.set_compute_budget(**budget)
    (seen,) = observe(model, [ids[None]])
    loops = torch.stack([plan.loop_count[0, -NEW:] for plan in seen.decisions], dim=-1).tolist()
    assert [piece["loops"] for piece in pieces] == [*loops[:-1], None]
    assert len({tuple(each) for each in loops}) > 1
    shown = [
        (piece["text"], "" if piece["loops"] is None else f"[{sum(piece['loops']) / 2:g}]")
        for piece in pieces
    ]
    assert done.stdout.strip("\n") == "".join(a + b for a, b in shown if a).strip("\n")
    assert "in brackets: loops of a token, mean of the 2 layers that decide" in done.stderr


def words_of(text):
    """Without control characters, which a random model writes, too."""
    return "".join(letter for letter in text if letter.isprintable())


@pytest.mark.parametrize("no_color", [None, "1"], ids=["colours", "NO_COLOR"])
def test_loops_on_a_terminal(folder, no_color, tmp_path):
    settings = {"COLORTERM": "truecolor"} | ({"NO_COLOR": no_color} if no_color else {})
    arguments = (folder, PROMPT, "--show-loops", "--max-new-tokens", NEW, "--json",
                 tmp_path / "out.json")  # fmt: skip
    with Terminal("generate", *arguments, **settings) as terminal:
        assert terminal.end() == 0, terminal.shown
    pieces = written(tmp_path / "out.json")["pieces"]
    means = [sum(p["loops"]) / 2 for p in pieces if p["loops"] and p["text"].strip()]
    assert len(set(map(round, means))) > 1
    for mean in means:
        ground = colour(round(mean), 4).bgcolor
        rgb = ground and ";".join(map(str, ground.triplet))
        assert (f"48;2;{rgb}" in terminal.shown) == (rgb is not None and no_color is None)
        assert (f"[{round(mean, 1):g}]" in terminal.shown) == (no_color is not None)
    text = "".join(piece["text"] for piece in pieces)
    assert words_of(text) in words_of(re.sub(r"\x1b\[[\d;]*m|\[[\d.]+\]", "", terminal.shown))
    assert ("\x1b[" in terminal.shown) == (no_color is None)
    assert "loops" in terminal.shown.splitlines()[0]  # the legend


def test_more_loops_are_darker():

    truth = [colour(n, 6).bgcolor for n in range(1, 7)]
    assert truth[0] is None
    light = [sum(ground.triplet) for ground in truth[1:]]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 5


def test_a_template_that_fails_is_one_line(make_folder):
    folder = make_folder("{{ raise_exception('no system role') }}")
    done = CliRunner().invoke(app, ["generate", str(folder), PROMPT])
    assert re.search(r"chat template of .* \(no system role\): mend it", str(done.exception))
    run(folder, PROMPT, "--plain", "--max-new-tokens", 1)
