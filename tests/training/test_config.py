"""Configurations: what people may write, and the one line they get when they err."""

from pathlib import Path

import pytest
import yaml

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import MoE
from versatileffn.training.config import TrainConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))


def test_there_are_shipped_configs():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_shipped_configs_are_valid(path):
    load_config(path)


@pytest.mark.parametrize("name", ["354m", "720m", "1.21b"])
def test_paper_configs_continue_as_their_comment_says(name):
    path = CONFIGS / "paper" / f"{name}.yaml"
    config = load_config(path, [
        "model.architecture=null", "model.init_from=runs/x/model", "model.ffn.variant=versatile",
        "run.output_dir=runs/y",
    ])  # fmt: skip
    ffn = config.model.ffn
    assert (ffn.num_experts, ffn.top_k, ffn.max_loops, ffn.reuse_gains) == (8, 2, 4, "fixed")
    assert ffn.router_aux_loss_coef == 1e-5


def sections(schema: type = TrainConfig):
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from sections(field.annotation)
        else:
            yield schema.__name__, name, field


def test_every_knob_is_described():
    for schema, name, field in sections():
        assert field.description, f"{schema}.{name}"
        assert len(field.description) > 15, f"{schema}.{name}"


BASE = {
    "model": {
        "architecture": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
    },
    "data": {"tokens": "t", "seq_len": 32},
    "optim": {"learning_rate": 1e-3},
    "run": {"output_dir": "o", "max_steps": 10, "tokens_per_batch": 64, "save_steps": 10},
}


def write(tmp_path: Path, text: str | None = None) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE) if text is None else text)
    return path


def test_overrides_are_yaml_and_make_sections(tmp_path):
    config = load_config(write(tmp_path), [
        "optim.learning_rate=3e-4", "model.ffn.variant=moe", "model.ffn.router_aux_loss_coef=1e-3",
        "run.report_to=[]", "optim.tau=as-released", "run.eval_windows=null",
    ])  # fmt: skip
    assert config.optim.learning_rate == 3e-4
    assert config.model.ffn == MoE(router_aux_loss_coef=1e-3)
    assert config.model_dump(mode="json")["model"]["ffn"] == config.model.ffn.to_dict()
    assert config.optim.tau.end == 5.0
    assert config.run.report_to == []


def test_numbers_like_1e_5_are_numbers(tmp_path):
    path = write(
        tmp_path,
        yaml.safe_dump(BASE).replace("hidden_size: 32", "hidden_size: 32\n    rms_norm_eps: 3e-5"),
    )
    assert load_config(path).model.architecture.rms_norm_eps == 3e-5


@pytest.mark.parametrize(("override", "message"), [
    ("optim.learning_rat=1", r"unknown key 'optim.learning_rat'; did you mean 'learning_rate'\?"),
    ("optim.tau.strat=1", r"unknown key 'optim.tau.strat'; did you mean 'start'\?"),
    ("learning_rate=1", r"unknown key 'learning_rate'; did you mean 'optim.learning_rate'\?"),
    ("model.ffn.num_expert=4", r"model.ffn: unknown key 'num_expert'; did you mean 'num_experts'"),
    ("model.architecture.hidden=4", "unknown key 'model.architecture.hidden'; did you mean 'hid"),
    ("model.ffn.num_loops=4", "model.ffn: num_loops is a knob of k-loop, not of versatile"),
    ("model.ffn.execution=masked", "model.ffn: 'execution' is no part .*: set run.execution"),
    ("model.ffn.tau=1", "model.ffn: 'tau' is no part of a model: set optim.tau"),
    ("model.ffn=[1]", r"model.ffn: \[1\] must be a mapping"),
    ("run.execution=fast", "run.execution='fast': input should be 'auto'"),
    ("model.imports=router", "model.imports='router': input should be a valid list"),
    ("model.architecture.family=lama", "unknown family 'lama'; did you mean 'llama'"),
    ("model.ffn.top_k=9", "model.ffn: top_k=9 exceeds num_experts=8"),
    ("model.ffn.top_k=two", "model.ffn: top_k='two' must be a whole number"),
    ("model.ffn.variant=mixture", "model.ffn: variant='mixture'.*'dense'"),
    ("model.ffn.max_loops=0", "model.ffn: max_loops=0 must be a whole number"),
    ("model.init_from=x", "model: give exactly one of init_from and architecture"),
    ("optim.learning_rate=0", "optim.learning_rate=0: input should be greater than 0"),
    ("optim.learning_rate=.nan", "optim.learning_rate=nan: input should be a finite number"),
    ("optim.tau=hot", "optim.tau: unknown preset 'hot'"),
    ("optim.tau.end=0", "optim.tau.end=0: input should be greater than 0"),
    ("run.max_steps=null", "run: give exactly one of max_steps and num_train_epochs"),
    ("run.logging_steps=3", "run: save_steps=10 is not a multiple of logging_steps=3"),
    ("run.tokens_per_batch=65", "run.tokens_per_batch=65 is not a multiple of data.seq_len=32"),
    ("run.report_to=[tensorbord]", "unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
    ("data.tokens=null", "data.tokens=None: input should be a valid string"),
    ("data.seq_len.x=1", "data.seq_len is 32, not a section"),
    ("nonsense", "write it as section.key=value"),
    ("run.seed=[", "can't be parsed"),
    ("run.seed=2024-13-45", "can't be parsed.*month"),
    ("run.seed=0b_", "can't be parsed"),
    ("run.seed={a: 1, a: 2}", "key 'a' is given twice"),
    ("run.max_steps=true", "run.max_steps=True: input should be a valid integer"),
    ("run.max_steps='10'", "run.max_steps='10': input should be a valid integer"),
    ("run.max_steps=10000000000000", "run.max_steps=.*less than or equal"),
    ("optim.learning_rate=true", "learning_rate=True: input should be a valid number"),
    ('run.output_dir="a\\0b"', "run.output_dir: .* is no path"),
    ('run.output_dir="\\ud800"', "run.output_dir: .* is no path"),
    ("run.output_dir=''", "run.output_dir: '' is no path"),
    ("model.architecture={}", "model.architecture.hidden_size is missing; add it"),
    ("model.architecture.num_hidden_layers=0", "num_hidden_layers=0: input should be greater"),
    ("model.architecture.num_hidden_layers=-1", "num_hidden_layers=-1: input should be greater"),
    ("model.architecture.intermediate_size=0", "intermediate_size=0: input should be greater"),
    ("model.architecture.hidden_size=0", "hidden_size=0: input should be greater"),
    ("model.architecture.hidden_size=33", "not a multiple of num_attention_heads=2"),
    ("model.architecture.hidden_size=wide", "hidden_size='wide': input should be a valid integer"),
    ("model.architecture.num_key_value_heads=5", "not a multiple of num_key_value_heads=5"),
    ("model.architecture.num_key_value_heads=0", "num_key_value_heads=0: input should be greater"),
    ("model.architecture.head_dim=0", "head_dim=0: input should be greater"),
    ("model.architecture.head_dim=7", "head_dim=7 .* must be even"),
    ("model.architecture.hidden_act=bogus", "hidden_act='bogus': input should be 'silu'"),
    ("model.architecture.attention_dropout=5", "attention_dropout=5: input should be less"),
    ("model.architecture.pad_token_id=99999", "unknown key 'model.architecture.pad_token_id'"),
    ("model.architecture.rope_scaling={rope_type: x}", "unknown key .*rope_scaling"),
    ("model.architecture.rope_theta=0", "rope_theta=0: input should be greater"),
    ("model.architecture.rms_norm_eps=.nan", "rms_norm_eps=nan: input should be a finite"),
])  # fmt: skip
def test_bad_values_are_one_line(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("model: [", r"run.yaml: can't be parsed in line \d"),
    ("just text", "must hold a mapping"),
    ("", "must hold a mapping"),
    ("model: {init_from: x}", "data is missing; add it"),
    ("model: {init_from: x}\ndata: 1\nmodel: {}", "in line 3: the key 'model' is given twice"),
    ("data: {seq_len: 1, seq_len: 2}", "the key 'seq_len' is given twice"),
    ("a: " + "[" * 5000, "can't be parsed"),
    ("model: &m {ffn: {top_k: *m}}", "in line 1: an alias, which isn't read here: write its"),
    ("a: " + "1" * 5000, "a number of 5,000 digits"),
    ("#" * 2**20 + "\n", "larger than 1,048,576 bytes"),
])  # fmt: skip
def test_bad_files_are_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nested", ["[{}]", "{{<<: [{}]}}"], ids=["aliases", "merge keys"])
@pytest.mark.timeout(60)
def test_anchors_that_expand_without_end_are_refused(tmp_path, nested):
    lines = ["l0: &l0 {k: 1}"]
    for level in range(1, 13):  # 9 ** 12 values, written out
        aliases = ", ".join([f"*l{level - 1}"] * 9)
        lines.append(f"l{level}: &l{level} {nested.format(aliases)}")
    with pytest.raises(ConfigError, match="an alias") as caught:
        load_config(write(tmp_path, "\n".join(lines)))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("override", [
    "run.seed=" + "9" * 5000, "run.seed=0x" + "f" * 9000, "model.ffn.tau=0b" + "1" * 9000,
    "model.ffn.top_k=" + "7" * 99, "run.seed=" + "1:" * 3000 + "1",
    "optim.learning_rate=" + "1" * 5000 + "e5", "run." + "x." * 1000 + "y=1",
    "model.ffn.variant=[" + "a," * 3000 + "]", "run.seed=" + "{a: " * 400 + "1" + "}" * 400,
    "model.architecture.rms_norm_eps=-1e-6", "model.architecture.rms_norm_eps=1e-400",
    "model.architecture.rope_theta=-1", "model.ffn.router_aux_loss_coef=-1",
], ids=lambda override: override[:40])  # fmt: skip
@pytest.mark.timeout(60)
def test_endless_numbers_and_values_are_one_short_line(tmp_path, override):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path), [override])
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_circle_of_links_is_named(tmp_path):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match=r"loop\.yaml: can't be read \(Too many levels"):
        load_config(tmp_path / "loop.yaml")


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(tmp_path / "binary.yaml")


def test_a_merged_key_may_be_given_again(tmp_path):
    text = yaml.safe_dump(BASE) + "  tokens_per_batch: 128\n"
    with pytest.raises(ConfigError, match="'tokens_per_batch' is given twice"):
        load_config(write(tmp_path, text))
    rest = yaml.safe_dump({k: v for k, v in BASE.items() if k != "optim"})
    merged = "optim: {<<: &o {learning_rate: 1}, learning_rate: 2}\n" + rest
    config = load_config(write(tmp_path, merged))
    assert config.optim.learning_rate == 2


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(write(tmp_path), ["run.output_dir=~/x", "data.tokens=~/t"])
    assert config.run.output_dir == str(tmp_path / "x")
    assert config.data.tokens == str(tmp_path / "t")
