"""The commands of docs/looking.md are ones that the program takes."""

import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from versatileffn.cli.analyze import View
from versatileffn.cli.main import app

PAGE = (Path(__file__).parents[1] / "docs" / "looking.md").read_text(encoding="utf-8")
LINES = PAGE.split("```sh\n")[1].split("```")[0].splitlines()


@pytest.mark.parametrize("line", LINES)
def test_a_command_parses(line) -> None:
    program, verb, *arguments = shlex.split(line, comments=True)
    assert (program, verb) == ("versatileffn", "analyze")
    get_command(app).commands[verb].make_context(verb, arguments)


def test_every_view_has_a_command() -> None:
    assert {shlex.split(line)[2] for line in LINES} == {view.value for view in View}
