"""The commands of docs/looking.md are ones that the program takes."""

import json
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from versatileffn.cli.analyze import View
from versatileffn.cli.main import app

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "looking.md").read_text(encoding="utf-8")
LINES = PAGE.split("```sh\n")[1].split("```")[0].splitlines()


@pytest.mark.parametrize("line", LINES)
def test_a_command_parses(line) -> None:
    program, verb, *arguments = shlex.split(line, comments=True)
    assert (program, verb) == ("versatileffn", "analyze")
    get_command(app).commands[verb].make_context(verb, arguments)


def test_every_view_has_a_command() -> None:
    assert {shlex.split(line)[2] for line in LINES} == {view.value for view in View}


def test_the_numbers_are_the_committed_ones() -> None:
    record = json.loads((DOCS / "figures" / "looking.json").read_text(encoding="utf-8"))
    found, text = record["found"], " ".join(PAGE.split())
    second = found["tokens"]["correlations"][1]
    own, following = (f"{second[key]:.3f}".replace("-", "−") for key in ("own", "next"))
    assert f"ρ = {own} with the token's own, {following} with the next one's" in text
    assert f"{record['tokens']:,} tokens" in text
    assert found["loops"]["layers"][0]["loop_share"][0] == 1
    one, two = found["similarity"]["layers"]
    assert f"{one['cosine']:.3f} in layer 1, {two['cosine']:.3f} in layer 2" in text
    assert f"{one['cosine_updates']:.3f} and {two['cosine_updates']:.3f}" in text
    assert f"{100 * one['width_share']:.1f} % and {100 * two['width_share']:.1f} %" in text
