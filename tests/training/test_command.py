"""`versatileffn train` as people call it: it trains, continues, and errs in one line."""

import sys

import pytest
import yaml

from versatileffn.cli.main import main
from versatileffn.training.progress import SpeedCallback


@pytest.fixture
def config_file(make_config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    return path


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["versatileffn", "train", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_it_trains_and_shows_progress(config_file, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, str(config_file), "--set", "run.max_steps=8") == 0
    out = capsys.readouterr().out
    assert "step 8/8  loss" in out
    assert "tokens/s  left 0:00:0" in out
    assert "held-out loss" in out
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_an_error_is_one_line_and_writes_nothing(config_file, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, str(config_file), "--set", "run.max_step=3") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "did you mean 'max_steps'?" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_interruption_says_how_to_continue(config_file, monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SpeedCallback, "on_step_begin", interrupt)
        assert call(monkeypatch, str(config_file)) == 130
    assert "the same command again to continue" in capsys.readouterr().err
    assert call(monkeypatch, str(config_file)) == 0
