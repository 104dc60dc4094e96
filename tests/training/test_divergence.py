"""A run that diverges stops as that, is never saved as a model, and says so when started again."""

import json

import pytest
import torch

from versatileffn.errors import DivergedError
from versatileffn.training.divergence import check_logs, check_weights
from versatileffn.training.run import train
from versatileffn.training.trainer import ReuseTrainer

NAN = float("nan")


def strict(line: str) -> dict:
    """JSON without NaN, which other readers don't take."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(line, parse_constant=refuse)


@pytest.fixture
def broken_after(monkeypatch):
    """Makes the weights not finite at the end of a step."""

    def breaks(step: int) -> None:
        original = ReuseTrainer.training_step

        def training_step(self, model, inputs, *rest):
            loss = original(self, model, inputs, *rest)
            if self.state.global_step == step - 1:
                for parameter in model.parameters():
                    parameter.grad.fill_(NAN)
            return loss

        monkeypatch.setattr(ReuseTrainer, "training_step", training_step)

    return breaks


@pytest.mark.parametrize(("step", "reason", "kept"), [
    (2, "the gradient's norm is nan", []),
    (3, "the held-out loss is nan", ["checkpoint-2"]),
    (6, "the gradient's norm is nan", ["checkpoint-2", "checkpoint-4"]),  # the last one
])  # fmt: skip
def test_training_stops_with_its_last_good_checkpoint(
    make_config, tmp_path, broken_after, step, reason, kept
):
    run = tmp_path / "run"
    broken_after(step)
    with pytest.raises(DivergedError, match=f"diverged at step .: {reason}; lower optim.learn"):
        train(make_config())
    assert not (run / "model").exists()
    assert not (run / "run.json").exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
    for line in (run / "log.jsonl").read_text().splitlines():
        strict(line)
    record = strict((run / "diverged.json").read_text())
    assert record["reason"] == reason

    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    message = rf"diverged at step {record['step']}: {reason}; it.*{kept[-1] if kept else 'has no'}"
    for _ in range(2):
        with pytest.raises(DivergedError, match=message) as caught:
            train(make_config())
        assert "another run.output_dir, or delete" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))


def test_without_the_cause_the_run_goes_on_once_the_record_is_gone(
    make_config, tmp_path, broken_after, monkeypatch
):
    with monkeypatch.context():
        broken_after(3)
        with pytest.raises(DivergedError):
            train(make_config())
    monkeypatch.undo()
    (tmp_path / "run" / "diverged.json").unlink()
    train(make_config())
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_learning_rate_that_is_too_high(make_config, tmp_path):
    with pytest.raises(DivergedError, match="training diverged"):
        train(make_config(optim__learning_rate=1e30, run__max_steps=20))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_weights_are_looked_at_whatever_was_logged():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    check_weights(model, 7)
    for value in (float("-inf"), NAN, 1e30):
        with torch.no_grad():
            model[1].bias[0] = value
        with pytest.raises(DivergedError, match="at step 7: the norms of 1 of 4 weights aren't"):
            check_weights(model, 7)


@pytest.mark.parametrize("key", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_what_is_logged_is_looked_at(key, value):
    check_logs({key: 1.0, "aux_loss": NAN}, 3)
    with pytest.raises(DivergedError, match=f"at step 3: .* is {value}"):
        check_logs({key: value}, 3)
