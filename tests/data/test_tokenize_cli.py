"""The verb parses, calls and prints."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from versatileffn.cli.tokenize import tokenize_command
from versatileffn.errors import ConfigError, DataError

app = typer.Typer()
app.command()(tokenize_command)


def test_summary_and_options(corpus_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    arguments = [str(corpus_folder), "--out", str(out), "--vocab-size", "300"]
    result = CliRunner().invoke(app, [*arguments, "--val-documents", "4", "--seed", "2"])
    assert result.exit_code == 0, result.output
    record = json.loads((out / "meta.json").read_text())
    for size in record["splits"].values():
        assert f"{size['tokens']:,}" in result.output
    assert record["seed"] == 2
    assert record["settings"]["val_documents"] == 4


def test_error_is_raised_for_the_program_to_print(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    assert "none.jsonl: no such file" in str(result.exception)


def test_a_name_is_not_taken_for_markup(tmp_path: Path) -> None:
    source = tmp_path / "[red]a.txt"
    source.write_text("text")
    arguments = [str(source), "-o", str(tmp_path / "[x]"), "--val-fraction", "0"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "[red]a.txt" in result.output
    assert "[x]" in result.output


def test_option_without_effect_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    for option in (["--hub-split", "train"], ["--eos-token", "x"], ["--document-separator", "x"]):
        result = CliRunner().invoke(app, [str(corpus_folder), "-o", str(tmp_path / "o"), *option])
        assert isinstance(result.exception, ConfigError)
        assert "has no effect" in str(result.exception)
    result = CliRunner().invoke(app, [""])
    assert "SOURCE is empty" in str(result.exception)


def test_executor_options_reach_the_executor(corpus_folder: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--executor-option", "=cpu"], "'=cpu' must be KEY=VALUE"),
        (["--executor-option", "--partition=cpu"], "'partition' has no effect on local"),
    ):
        result = CliRunner().invoke(app, [str(corpus_folder), "-o", str(tmp_path / "o"), *words])
        assert isinstance(result.exception, ConfigError)
        assert said in str(result.exception)
    assert CliRunner().invoke(app, [str(corpus_folder), "--executor", "pbs"]).exit_code == 2


@pytest.mark.parametrize(
    "option", ["--executor", "--tokenizer", "--workers", "--overwrite", "--hub-config"]
)
def test_help_names_the_option(option: str) -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert option in result.output
