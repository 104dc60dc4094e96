"""A tokenizer's chat template runs in Transformers' sandbox, and what it isn't allowed is said."""

import json
import shutil
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError

from support.command_line import run
from versatileffn.models.tokenizer import load_own_tokenizer

REACHING = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mknod('CANARY') }}",
    "{% for m in messages %}{{ messages.append(m) }}{% endfor %}",
]
"""What every sandbox of Jinja is tried with; the last changes what it is given."""
NOTHING = ["{{ messages.__class__ }}", "{{ raise_exception.__globals__ }}"]


def with_template(model: Path, template: str, at: Path) -> Path:
    shutil.copytree(model, at)
    for name in ("chat_template.jinja", "chat_template.json"):
        (at / name).unlink(missing_ok=True)
    file = at / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return at


@pytest.mark.parametrize("template", REACHING + NOTHING)
def test_a_template_reaches_for_nothing(template, original, tmp_path):
    template = template.replace("CANARY", str(tmp_path / "canary"))
    tokenizer = load_own_tokenizer(with_template(original.model, template, tmp_path / "model"))
    talk = [{"role": "user", "content": "w1"}]
    if template in NOTHING:  # what it may not see is as if it weren't there
        assert tokenizer.apply_chat_template(talk, tokenize=False) == ""
    else:
        with pytest.raises(SecurityError):
            tokenizer.apply_chat_template(talk, tokenize=False)
    assert not (tmp_path / "canary").exists()


def test_a_harmless_one_works(original, tmp_path):
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    tokenizer = load_own_tokenizer(with_template(original.model, template, tmp_path / "model"))
    said = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    assert said.strip() == "w1"


def test_chat_says_so_in_one_line(original, tmp_path, monkeypatch, capsys):
    model = with_template(original.model, REACHING[0], tmp_path / "model")
    assert run(monkeypatch, "chat", model) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    (said,) = set(shown.err.splitlines())  # the same for each line of the talk
    assert "chat template of" in said
    assert "is unsafe" in said
