"""Weights divided among processes: the same training as one process, in less memory.

`pytest tests/training/test_parallel.py --ranks 4` takes four processes and all cases; without it
two take those that are enough to notice that something broke.
"""

import errno
import json
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from support.forked import forked
from support.launch import torchrun
from training.conftest import TINY, ranks
from training.parallel_worker import noise_by_tokens
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.models.checkpoint import load_checkpoint, read_config
from versatileffn.models.family import model_class, reuse_config
from versatileffn.models.shares import load_shares, save_shares
from versatileffn.publish.export import export, export_dense
from versatileffn.training.batches import plan_batches
from versatileffn.training.config import TrainConfig
from versatileffn.training.init import model_config
from versatileffn.training.parallel import check_launch
from versatileffn.training.restoring import reading
from versatileffn.training.run import train
from versatileffn.training.start import StartModel

WORKER = Path(__file__).with_name("parallel_worker.py")
LEARNED = {"variant": "versatile", "num_experts": 4, "reuse_gains": "learned", "gain_init": 0.1}
PAPER = {"variant": "versatile", "num_experts": 4}
TIED = {"architecture": TINY | {"tie_word_embeddings": True}}


@dataclass(frozen=True)
class Case:
    """A run, as changes of the tiny one.

    Args:
        model, optim, run, parallel: of these sections.
        wide: only with `--ranks`.
        close: relative difference that rounding may make.
    """

    model: dict[str, Any]
    optim: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    wide: bool = True
    close: float = 1e-4


CASES = {
    "learned gains, tied": Case({"ffn": LEARNED} | TIED, wide=False),
    "paper's form, bf16": Case({"ffn": PAPER}, run={"bf16": True}, wide=False, close=1e-3),
    "dense": Case({}),
    "recompute": Case({"ffn": LEARNED}, run={"execution": "recompute"}),
    "masked": Case({"ffn": PAPER}, run={"execution": "masked"}),
    "checkpointing": Case({"ffn": LEARNED}, run={"gradient_checkpointing": True}),
    "loops of their own": Case({"ffn": LEARNED | {"loop_rank": 2}}),
    "k-loop": Case({"ffn": {"variant": "k-loop"}}),
    "experts": Case(
        {
            "ffn": {
                "variant": "moe",
                "num_experts": 4,
                "router_bias_rate": 0.01,
                "router_aux_loss_coef": 0.0,
            }
        }
    ),
    "frozen": Case({"ffn": LEARNED}, {"frozen": [r"mlp\.", "gains"]}),
    "consistency": Case({"ffn": {"variant": "k-loop"}}, {"consistency": {}}),
    "curriculum": Case({"ffn": PAPER}, {"loop_curriculum": {"share": 0.5}}),
    "gathered once": Case({"ffn": LEARNED}, parallel={"reshard_after_forward": False}),
    "replicas": Case({"ffn": LEARNED} | TIED, parallel={"replicas": 2}),
}
BASE = "learned gains, tied"


def configure(case: Case, tokens: Path, folder: Path, **parallel: Any) -> TrainConfig:
    """A run of a case; `parallel` is its section, none without."""
    return TrainConfig.model_validate({
        "model": {"architecture": TINY} | case.model,
        "data": {"tokens": str(tokens), "seq_len": 32},
        "optim": {"learning_rate": 1e-2, "max_grad_norm": 0.5} | case.optim,
        "run": {
            "output_dir": str(folder), "max_steps": 6, "tokens_per_batch": 8 * 32,
            "per_device_train_batch_size": 1, "eval_steps": 3, "eval_windows": 10,
            "save_steps": 2, "logging_steps": 2, "use_cpu": True, "report_to": [],
        } | case.run,
        "parallel": parallel or None,
    })  # fmt: skip


def write(config: TrainConfig) -> Path:
    """The file beside the run's folder that holds its configuration."""
    path = Path(config.run.output_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return path


def launch(paths: list[Path], count: int) -> str:
    """Run configurations one after the other in as many processes; what they said."""
    result = forked("training.parallel_worker:main", *paths, ranks=count)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = ranks(metafunc.config)
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", ["N to 1", "1 to N", *(["N to N", "N to 2"] if every else [])])
    if "name" in metafunc.fixturenames:
        metafunc.parametrize(
            "name", [name for name, case in CASES.items() if every or not case.wide]
        )


@pytest.fixture(scope="module")
def together(count: int, tokens: Path, tmp_path_factory: Any, request: Any) -> Path:
    """The folder of the chosen cases' runs, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("together")
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    names = {BASE, *(spec.params["name"] for spec in chosen if spec and "name" in spec.params)}
    paths = [
        write(configure(case, tokens, folder / name, strategy="fsdp2", **case.parallel))
        for name, case in CASES.items()
        if name in names
    ]
    said = launch(paths, count)
    assert said.count("of weights each (fsdp2)") == len(paths)
    return folder


@pytest.fixture(scope="module")
def count(request: Any) -> int:
    return ranks(request.config) or 2


def test_divided_weights_train_as_whole_ones(name, together, count, tokens, tmp_path):
    case, ours = CASES[name], together / name
    # In bfloat16 a tie may be decided otherwise; among two processes none is here.
    close = case.close * (20 if case.run.get("bf16") and count > 2 else 1)
    with noise_by_tokens():
        alone = train(configure(case, tokens, tmp_path / "alone"))
    for one, many in zip(read_log(alone), read_log(ours), strict=True):
        for key in one.keys() - {"tokens_crc32", "eval_model_preparation_time"}:
            assert many[key] == pytest.approx(one[key], rel=close, abs=close), key
    losses = [entry["loss"] for entry in read_log(ours) if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    expected, found = weights(alone), weights(ours)
    assert expected.keys() == found.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=close, atol=10 * close)
    configs = [json.loads((run / "model" / "config.json").read_text()) for run in (alone, ours)]
    assert configs[0] == configs[1]

    record = json.loads((ours / "run.json").read_text())
    held = json.loads((alone / "run.json").read_text())["weight_bytes_per_process"]
    shares = count // case.parallel.get("replicas", 1)
    assert record["processes"] == count
    assert held / shares <= record["weight_bytes_per_process"] < held / shares * 1.1


def test_tokens_of_one_step_loop_differently_in_each_process(together, count):
    """Otherwise what is compared here would say little."""
    entry = [e for e in read_log(together / BASE) if "loss" in e][-1]
    shares = [entry[f"layer_1/loop_share_{loops}"] for loops in (1, 2, 3, 4)]
    assert sum(share > 0.05 for share in shares) >= 2
    assert entry["layer_1/loop_gain_2"] != 0.1


def interrupted(run: Path, folder: Path) -> Path:
    """A copy of a finished run as it was after step 4."""
    shutil.copytree(run, folder)
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    return folder


def run_with(processes: int, tokens: Path, folder: Path, capfd: Any) -> str:
    """Train the base case; what was said."""
    config = configure(CASES[BASE], tokens, folder, strategy="fsdp2")
    if processes > 1:
        return launch([write(config)], processes)
    capfd.readouterr()
    with noise_by_tokens():
        train(config)
    return capfd.readouterr().out


def test_any_number_of_processes_goes_on(pair, together, count, tokens, tmp_path, capfd):
    before, after = [count if number == "N" else int(number) for number in pair.split(" to ")]
    if before == 1:
        run_with(1, tokens, tmp_path / "alone", capfd)
    whole = together / BASE if before > 1 else tmp_path / "alone"
    parted = interrupted(whole, tmp_path / "parted")
    shares = parted / "checkpoints" / "checkpoint-4" / "optimizer"
    assert len(list(shares.iterdir())) == before
    said = run_with(after, tokens, parted, capfd)
    assert "resumed after step 4" in said
    assert (f"goes on with {after} processes, before it had {before}" in said) == (before != after)
    assert ("one process has nothing to share" in said) == (after == 1)
    close = {"rtol": 0, "atol": 0} if before == after else {"rtol": 1e-4, "atol": 1e-4}
    expected, found = weights(whole), weights(parted)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, **close)
    for one, other in zip(read_log(whole), read_log(parted), strict=True):
        for key in {"loss", "eval_loss", "grad_norm", "learning_rate"} & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-4), key
    record = json.loads((parted / "run.json").read_text())
    assert record["processes"] == after
    assert record["processes_before"] == ([before] if before != after else [])


@pytest.mark.parametrize(("section", "run", "says"), [
    ({"strategy": "ddp", "replicas": 2}, {}, "replicas has no effect with strategy ddp"),
    ({"strategy": "fsdp2"}, {"torch_compile": True}, "exclude each other"),
    ({"strategy": "fsdp"}, {}, "fsdp2"),
])  # fmt: skip
def test_what_cannot_be_is_refused(section, run, says, tokens, tmp_path):
    with pytest.raises(ValidationError, match=says):
        configure(Case({}, run=run), tokens, tmp_path / "run", **section)


def test_another_engine_of_the_launcher_is_refused(tokens, tmp_path, monkeypatch):
    config = configure(Case({}), tokens, tmp_path / "run", strategy="fsdp2", replicas=3)
    with pytest.raises(ConfigError, match="replicas=3 doesn't divide 4 processes"):
        check_launch(config.parallel, 4)
    check_launch(config.parallel, 1)  # which shares nothing
    with pytest.raises(ConfigError, match="replicas=3 leaves nothing to divide"):
        check_launch(config.parallel, 3)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="accelerate launch was told to use FSDP"):
        train(config)


def test_a_share_that_is_missing_is_found(together, tmp_path):
    """torch's reader leaves what it doesn't find as it was, without a word."""
    whole = together / BASE / "checkpoints" / "checkpoint-6"
    shutil.copytree(whole, tmp_path / "torn")
    first, *_ = sorted((tmp_path / "torn" / "weights").glob("shard-*.safetensors"))
    first.unlink()
    config = read_config(str(whole))
    with pytest.raises(CheckpointError, match="a share is missing"):
        load_checkpoint(model_class(config), str(tmp_path / "torn"), config)


def test_a_checkpoint_in_shares_loads_and_is_exported(together, tmp_path):
    checkpoint = together / BASE / "checkpoints" / "checkpoint-6"
    config, expected = read_config(str(checkpoint)), weights(together / BASE)
    loaded = load_checkpoint(model_class(config), str(checkpoint), config).state_dict()
    export(str(checkpoint), tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    assert plain.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(loaded[name], weight)
        assert torch.equal(plain[name], weight)
    assert (tmp_path / "plain" / "tokenizer.json").is_file()


def test_a_dense_checkpoint_in_shares_is_put_together(tokens, tmp_path):
    run = train(configure(Case({}), tokens, tmp_path / "run", strategy="fsdp2"))
    checkpoint = str(run / "checkpoints" / "checkpoint-6")
    with pytest.raises(CheckpointError, match="give --dense"):
        export(checkpoint, tmp_path / "plain")
    export_dense(checkpoint, tmp_path / "plain")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    for name, weight in weights(run).items():
        assert torch.equal(again[name], weight)


def test_damaged_shares_are_told_and_nothing_is_unpickled(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3)}
    save_shares(tensors, tmp_path)
    (file,) = tmp_path.iterdir()
    load_shares(read := {"a": torch.zeros(2, 3)}, tmp_path)
    assert torch.equal(read["a"], tensors["a"])
    for other, says in (
        ({"b": torch.zeros(2)}, "b isn't there"),
        ({"a": torch.zeros(3, 2)}, r"a has the shape \(2, 3\), not \(3, 2\)"),
    ):
        with pytest.raises(CheckpointError, match=says), reading(tmp_path):
            load_shares(other, tmp_path)
    file.write_bytes(pickle.dumps({"a": torch.ones(2, 3)}))
    with pytest.raises(CheckpointError, match="can't be read"), reading(tmp_path):
        load_shares({"a": torch.zeros(2, 3)}, tmp_path)


def test_a_full_disk_is_an_ordinary_error(tmp_path, monkeypatch):
    """torch's own is no Exception, so that what cleans up after a failed save would miss it."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.distributed.checkpoint.filesystem.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_shares({"a": torch.zeros(2)}, tmp_path)


def test_tensor_parallelism_leaves_the_ffn_whole(tmp_path, request):
    if not ranks(request.config):
        pytest.skip("with --ranks")
    config = reuse_config(LlamaConfig(vocab_size=64, **TINY), FFNConfig.from_dict(PAPER))
    model_class(config)(config).save_pretrained(tmp_path / "model")
    result = torchrun(tmp_path / "model", script=WORKER.with_name("tensor_parallel_worker.py"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("tensor parallelism can't divide model.layers.*.mlp.up_proj") == 2


def test_filled_piece_by_piece_it_is_the_model_that_is_built_whole(together, count, request):
    if not ranks(request.config):
        pytest.skip("with --ranks")
    run = together / BASE
    sources = [run / "model", run / "checkpoints" / "checkpoint-6"]
    script = WORKER.with_name("piecewise_worker.py")
    result = torchrun(*sources, ranks=count, script=script)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_conversion_is_built_whole_and_then_divided(tokens, tmp_path, request):
    if not ranks(request.config):
        pytest.skip("with --ranks")
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=64, eos_token_id=63, **TINY))
    dense.save_pretrained(tmp_path / "dense")
    ffn = {"variant": "k-loop", "reuse_gains": "learned", "gain_init": 0.1}
    source = {"architecture": None, "init_from": str(tmp_path / "dense")}
    converted = Case(source | {"ffn": ffn})
    alone = train(configure(converted, tokens, tmp_path / "alone"))
    config = configure(converted, tokens, tmp_path / "many", strategy="fsdp2")
    result = torchrun(write(config))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("each process builds the whole model") == 1
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(tmp_path / "many")[name], weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ffn", [LEARNED, None])
def test_one_process_says_that_all_build_the_whole_model(ffn, tokens, tmp_path, capsys):
    """Of a conversion that adds weights; a dense model in a folder is read as it is."""
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=64, eos_token_id=63, **TINY))
    dense.save_pretrained(tmp_path / "dense")
    case = Case({"architecture": None, "init_from": str(tmp_path / "dense"), "ffn": ffn})
    config = configure(case, tokens, tmp_path / "run", strategy="fsdp2")
    planned = model_config(config.model, 64, 63, 32)
    for rank in (0, 1):
        StartModel(config, planned, plan_batches(config, 625, 2), rank)
        said = capsys.readouterr().out
        assert ("can't be read piece by piece" in said) == (ffn is not None and rank == 0)


def test_a_run_of_whole_weights_goes_on_with_two_processes(tokens, tmp_path, request):
    if not ranks(request.config):
        pytest.skip("with --ranks")
    alone = train(configure(CASES["dense"], tokens, tmp_path / "alone"))
    parted = interrupted(alone, tmp_path / "parted")
    result = torchrun(write(configure(CASES["dense"], tokens, parted)))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "goes on with 2 processes, before it had 1" in result.stdout
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(parted)[name], weight, rtol=1e-4, atol=1e-4)
