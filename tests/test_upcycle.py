"""Upcycling: the receipt is true, and every bad checkpoint is refused in one line."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)

import versatileffn as vf
from support.gguf import write_gguf
from support.models import SHAPE, make_ids
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.models.hub import hub_options
from versatileffn.models.tokenizer import load_own_tokenizer
from versatileffn.upcycle import EXACT, upcycle

STORIES = Path(__file__).parents[1].parent / "shared" / "models" / "stories15m"


@pytest.fixture
def dense_folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "dense"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


LEARNED = {
    "dense": vf.Dense(),
    "k-loop": vf.KLoop(reuse_gains="learned"),
    "k-loop-rank": vf.KLoop(reuse_gains="learned", loop_rank=2),
    "moe": vf.MoE(reuse_gains="learned"),
    "versatile": vf.Versatile(reuse_gains="learned"),
    "token-choice": vf.Versatile(controller="token-choice", fusion="depth", reuse_gains="learned"),
}
FIXED = {"k-loop": vf.KLoop(), "moe": vf.MoE(), "versatile": vf.Versatile()}


@pytest.mark.parametrize("config", LEARNED.values(), ids=LEARNED)
@pytest.mark.parametrize("execution", ["masked", "packed"])
def test_learned_gains_give_the_dense_function(dense_folder, config, execution):
    model, receipt = upcycle(dense_folder, config)
    model.set_execution(execution)
    dense = AutoModelForCausalLM.from_pretrained(dense_folder)
    ids = make_ids(3, 20)
    torch.testing.assert_close(logits(model, ids), logits(dense, ids), rtol=0, atol=1e-5)
    assert receipt.logit_difference <= 1e-5


def test_a_gguf_file_is_upcycled_like_the_folder_it_was_made_from(dense_folder, tmp_path):
    write_gguf(LlamaForCausalLM.from_pretrained(dense_folder), tmp_path / "dense.gguf")
    config = vf.Versatile(reuse_gains="learned")
    from_folder, expected = upcycle(dense_folder, config)
    from_file, receipt = upcycle(tmp_path / "dense.gguf", config)
    ids = make_ids(3, 20)
    torch.testing.assert_close(logits(from_file, ids), logits(from_folder, ids))
    assert receipt.new_tensors == expected.new_tensors
    assert receipt.parameters_after == expected.parameters_after


def test_a_gguf_files_end_token_is_the_configs(tmp_path):
    """Transformers takes the token that begins a text for the one that ends it."""
    tokenizer = train_bpe(["some words and others"] * 3, 300)
    ends = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 512} | ends)))
    path = tmp_path / "dense.gguf"
    write_gguf(model, path, tokenizer)
    confused = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert confused.eos_token_id != ends["eos_token_id"]
    with pytest.warns(UserWarning, match="the config's is taken"):
        assert load_own_tokenizer(path).eos_token_id == ends["eos_token_id"]
    assert upcycle(path)[0].generation_config.eos_token_id == ends["eos_token_id"]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.9}], ids=["", "greedy"])
def test_generation_settings_are_carried_over(dense_folder, tmp_path, sampling):
    """Stop tokens; and what greedy generation ignores doesn't keep the model from being saved."""
    settings = {"eos_token_id": [5, 7], "max_length": 33, "do_sample": False} | sampling
    (dense_folder / "generation_config.json").write_text(json.dumps(settings))
    model, _ = upcycle(dense_folder)
    model.save_pretrained(tmp_path / "out")
    loaded = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (loaded.eos_token_id, loaded.max_length, loaded.do_sample) == ([5, 7], 33, False)


def test_contradictory_generation_settings_keep_their_end_tokens(dense_folder, tmp_path):
    settings = {"eos_token_id": [5, 7], "pad_token_id": -1}
    (dense_folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="contradicts itself: only its end tokens"):
        model, _ = upcycle(dense_folder)
    model.save_pretrained(tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [5, 7]


def test_the_default_starts_at_the_dense_model_and_the_papers_form_is_asked_for(dense_folder):
    model, receipt = upcycle(dense_folder)
    assert model.config.ffn() == vf.Versatile(reuse_gains="learned")
    assert receipt.logit_difference <= 1e-5
    assert receipt.expected == EXACT
    _, receipt = upcycle(dense_folder, vf.Versatile())
    assert receipt.ffn["reuse_gains"] == "fixed"
    assert "gibberish" in receipt.expected
    assert "--gains learned" in str(receipt)


@pytest.mark.parametrize(
    "config", [*LEARNED.values(), *FIXED.values(), vf.KLoop(num_loops=1)], ids=str
)
def test_what_the_receipt_expects_is_what_happens(dense_folder, config):
    _, receipt = upcycle(dense_folder, config)
    assert (receipt.expected == EXACT) == (receipt.logit_difference <= 1e-5)


@pytest.mark.parametrize("fusion", ["average", "width", "depth"])
def test_every_fusion_with_learned_gains_starts_at_the_dense_model(dense_folder, fusion):
    _, receipt = upcycle(dense_folder, vf.Versatile(fusion=fusion, reuse_gains="learned"))
    assert receipt.logit_difference <= 1e-5


def test_code_that_a_config_names_is_not_named_by_the_result(dense_folder):
    config = json.loads((dense_folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "alien.Alien"}
    (dense_folder / "config.json").write_text(json.dumps(config))
    assert "auto_map" not in upcycle(dense_folder)[0].config.to_dict()


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """Then only what was downloaded before is looked for, without the loaders' retries."""
    asked = []

    def unreachable(self, name, timeout):
        asked.append(name)
        raise ConnectionError

    def load(name, local_files_only=False, **options):
        asked.append(local_files_only)
        raise OSError("not on this machine")

    hub_options.cache_clear()
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", load)
    with pytest.raises(CheckpointError, match="not on this machine"):
        upcycle("some-owner/some-model")
    assert asked == ["some-owner/some-model", True]
    hub_options.cache_clear()


@pytest.mark.parametrize("config", FIXED.values(), ids=FIXED)
def test_fixed_gains_change_the_function_and_the_receipt_says_so(dense_folder, config):
    model, receipt = upcycle(dense_folder, config)
    dense = AutoModelForCausalLM.from_pretrained(dense_folder)
    ids = make_ids(3, 20)
    assert (logits(model, ids) - logits(dense, ids)).abs().max() > 1e-3
    assert receipt.logit_difference > 1e-3


def test_learned_gains_in_training_mode_start_at_the_dense_loss(dense_folder):
    """Whatever noise is drawn, all L loops and every λ give F(H)."""
    model, _ = upcycle(dense_folder, vf.Versatile(reuse_gains="learned"))
    assert not model.training
    dense, ids = AutoModelForCausalLM.from_pretrained(dense_folder), make_ids(3, 20)
    trained = model.train()(ids)
    assert trained.logits.requires_grad
    torch.testing.assert_close(trained.logits.detach(), logits(dense, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("execution", ["masked", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_learned_gains_move_no_bit(tmp_path, execution, dtype, bias):
    """The executors are arranged so that even rounding is the dense model's (docs/algebra.md)."""
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"mlp_bias": bias})))
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    llama.to(dtype).save_pretrained(tmp_path)
    model, receipt = upcycle(tmp_path, vf.Versatile(reuse_gains="learned"))
    model.set_execution(execution)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    ids = make_ids(4, 32)
    with torch.no_grad():
        counts = model(ids, output_reuse_plans=True).reuse_plans[0].loop_count.unique()
    assert len(counts) > 1
    assert model.dtype == dtype
    if execution == "masked":
        assert torch.equal(logits(model, ids), logits(dense, ids))
        return
    # Tokens stand in another order, and some CPUs' matrix products round a row by its place.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    difference = (logits(model, ids) - logits(dense, ids)).abs().max()
    assert difference <= tolerance * logits(dense, ids).abs().max()
    assert receipt.logit_difference <= tolerance * receipt.logit_scale


def test_a_quantized_checkpoint_is_refused(dense_folder):
    config = json.loads((dense_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (dense_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is quantized"):
        upcycle(dense_folder)


def test_the_receipt_counts_what_was_added(dense_folder, tmp_path):
    model, receipt = upcycle(dense_folder, vf.Versatile())
    dense = AutoModelForCausalLM.from_pretrained(dense_folder)
    assert receipt.parameters_before == dense.num_parameters()
    assert receipt.parameters_after == model.num_parameters()
    added = {n: list(p.shape) for n, p in model.named_parameters() if ".controller." in n}
    assert receipt.new_tensors == added
    assert receipt.parameters_after - receipt.parameters_before == 2 * 32 * (8 + 4)
    receipt.save(tmp_path / "receipt.json")
    assert json.loads((tmp_path / "receipt.json").read_text()) == receipt.to_dict()
    assert f"(+{2 * 32 * 12:,}" in str(receipt)


def test_dense_weights_are_taken_over_and_the_seed_decides_the_rest(dense_folder):
    first, _ = upcycle(dense_folder, vf.Versatile(), seed=1)
    again, _ = upcycle(dense_folder, vf.Versatile(), seed=1)
    other, _ = upcycle(dense_folder, vf.Versatile(), seed=2)
    dense = AutoModelForCausalLM.from_pretrained(dense_folder).state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if name in dense:
            assert torch.equal(tensor, dense[name])
        else:
            assert not torch.equal(tensor, other.state_dict()[name])


def test_tied_embeddings_stay_tied(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    model, receipt = upcycle(tmp_path, vf.Versatile(reuse_gains="learned"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert receipt.logit_difference <= 1e-5


def test_a_model_of_ours_can_be_a_dense_source(dense_folder, tmp_path):
    model, _ = upcycle(dense_folder, vf.Dense())
    model.save_pretrained(tmp_path / "ours")
    _, receipt = upcycle(tmp_path / "ours", vf.Versatile(reuse_gains="learned"))
    assert receipt.logit_difference <= 1e-5


def test_an_upcycled_model_is_no_source(dense_folder, tmp_path):
    model, _ = upcycle(dense_folder, vf.Versatile())
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="already a versatile model"):
        upcycle(tmp_path / "ours")


def test_an_unknown_family_lists_the_known_ones_and_where_to_add_it(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="family 'gpt2'") as caught:
        upcycle(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "qwen3" in str(caught.value)
    assert "models/table.py" in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        upcycle(tmp_path / "nowhere")


def test_missing_weights(dense_folder):
    weights = dense_folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj"):
        upcycle(dense_folder)


def test_weights_tied_in_the_file_but_not_in_the_config(dense_folder):
    weights = dense_folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*tie_word_embeddings"):
        upcycle(dense_folder)


def test_a_truncated_file_of_weights(dense_folder):
    weights = dense_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="can't be read"):
        upcycle(dense_folder)


def test_weights_of_another_shape(dense_folder):
    config = json.loads((dense_folder / "config.json").read_text())
    (dense_folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(CheckpointError, match=r"embed_tokens.*don't belong|lm_head.*don't belong"):
        upcycle(dense_folder)


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", "null", '{"model_type": "llama", "hidden_size": "a"}', "not json", ""],
)
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="is no readable checkpoint"):
        upcycle(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 1},
        {"hidden_act": "bogus"},
        {"num_attention_heads": 3},
        {"max_position_embeddings": 0},
    ],
    ids=str,
)
def test_a_config_that_does_not_belong_to_the_weights(dense_folder, change):
    config = json.loads((dense_folder / "config.json").read_text())
    (dense_folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError):
        upcycle(dense_folder)


def test_weights_that_are_not_numbers(dense_folder):
    weights = dense_folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["model.norm.weight"][3] = float("nan")
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN"):
        upcycle(dense_folder)


def test_a_run_folder_is_told_from_its_checkpoint(dense_folder, tmp_path):
    (tmp_path / "run").mkdir()
    dense_folder.rename(tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match="run/model, its checkpoint"):
        upcycle(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is a file"):
        upcycle(tmp_path / "run" / "model" / "config.json")


@pytest.mark.parametrize("seed", [-1, 2**70, "a", None], ids=str)
def test_bad_seeds(dense_folder, seed):
    with pytest.raises(ConfigError, match="seed="):
        upcycle(dense_folder, seed=seed)


def test_experts_that_do_not_fit(dense_folder):
    with pytest.raises(ConfigError, match=r"8·9 = 72 exceeds d_hidden=64"):
        upcycle(dense_folder, vf.Versatile(d_expert=9))


@pytest.mark.skipif(
    not STORIES.exists(), reason="the stories15m checkpoint isn't beside this clone"
)
def test_a_real_checkpoint_keeps_its_logits():
    ids = torch.randint(0, 32000, (2, 100), generator=torch.Generator().manual_seed(0))
    dense = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    model, receipt = upcycle(STORIES, vf.Versatile(reuse_gains="learned"))
    assert receipt.logit_difference <= 1e-5
    torch.testing.assert_close(logits(model, ids), logits(dense, ids), rtol=0, atol=1e-5)
