"""What the command line says about itself, at once: version, help, completion."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from typer.main import get_command

from support.terminal import VERSATILEFFN, environment
from versatileffn import signals
from versatileffn.cli.main import VERBS, app
from versatileffn.provenance import versions

SCRIPT = f"#!{sys.executable}\nfrom versatileffn.cli.main import main\nmain()\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A home with `versatileffn` on the path, as pip installs it, completed in bash and zsh."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    (home / "bin" / "versatileffn").write_text(SCRIPT)
    (home / "bin" / "versatileffn").chmod(0o755)
    settings = {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    return environment(**settings)


def shell(command, env, name="bash"):
    done = subprocess.run([name, "-c", command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_version(installed):
    module = [*VERSATILEFFN, "--version"]
    said = subprocess.run(module, env=installed, capture_output=True, text=True, check=True).stdout
    assert said == f"versatileffn {versions()['versatileffn']}\n"
    assert shell("versatileffn --version", installed) == said
    if versions()["versatileffn"] != "source tree":
        assert said.split()[1] == metadata.version("versatileffn")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [("ge", {"generate"}), ("generate --mean", {"--mean-loops"}), ("--ver", {"--version"})],
)
def test_bash_completes(installed, words, expected):
    """The installed completion, called as bash calls it at a tab."""
    install = "versatileffn --install-completion; true"  # a shell of one command becomes it
    assert "bash completion installed" in shell(install, installed)
    rows = shell(
        f"source ~/.bash_completions/versatileffn.sh; COMP_WORDS=(versatileffn {words}); "
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _versatileffn_completion versatileffn; "
        'printf "%s\\n" "${COMPREPLY[@]}"',
        installed,
    )
    assert set(rows.split()) == expected


def test_completion_is_shown(installed):
    shown = shell("versatileffn --show-completion; true", installed)
    assert signals.COMPLETING in shown


def test_words_need_no_torch(monkeypatch):
    """Else each tab would take seconds."""
    code = (
        "import sys; sys.argv = ['versatileffn', '--help']; import versatileffn.cli.main; "
        "assert 'versatileffn.cli.generate' in sys.modules; "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("argv", "original", "alone"),
    [
        (["versatileffn"], [], True),
        (["/bin/versatileffn", "--help"], [], True),
        (["/bin/versatileffn", "train", "--help"], [], False),
        (["-m", "--version"], ["python", "-m", "versatileffn", "--version"], True),
        (["-m"], ["python", "-m", "versatileffn.cli.main"], True),
        (["-m", "--help"], ["python", "-m", "pytest", "versatileffn", "--help"], False),
        (["pytest"], ["pytest"], False),
    ],
)
def test_who_asks(monkeypatch, argv, original, alone):
    """A program that imports the package gets all of it, whatever its arguments are."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.delenv(signals.COMPLETING, raising=False)
    assert signals.wants_words_only() == alone
    monkeypatch.setenv(signals.COMPLETING, "complete_bash")
    mine = "pytest" not in (*argv, *original)
    assert signals.wants_words_only() == mine


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb):
    command = get_command(app).commands[verb]
    (example,) = re.findall(r"^Example: versatileffn (.+)$", command.epilog)
    name, *arguments = shlex.split(example)
    assert name == verb
    command.make_context(verb, arguments)
