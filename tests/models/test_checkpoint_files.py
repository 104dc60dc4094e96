"""What lies in a checkpoint's files is looked at before it is loaded."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from support.gguf import write_gguf
from support.models import SHAPE
from versatileffn import memory
from versatileffn.data.tokenizers import find_tokenizer, train_bpe
from versatileffn.errors import CheckpointError, ConfigError, DataError, ResourceError
from versatileffn.models import weights
from versatileffn.models.checkpoint import read_any_config
from versatileffn.models.tokenizer import load_own_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"
DENSE = vf.Dense()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "dense"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def split(folder):
    """The same checkpoint in several files, with an index."""
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int64, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64],
    ids=str,
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_numbers_that_are_no_weights(folder, dtype, form):
    tensors = load_file(folder / "model.safetensors")
    tensors[UP] = (tensors[UP] * 100).to(dtype)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is stored as"):
        vf.upcycle(folder, DENSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_kind_of_floating_point_number_is_one(folder, dtype):
    LlamaForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(folder)
    assert vf.upcycle(folder, DENSE)[0].dtype == dtype


def test_masks_of_old_checkpoints_are_no_weights():
    stored = {"h.0.attn.bias": "BOOL", "embeddings.position_ids": "I64", "h.0.attn.weight": "F32"}
    weights.check_stored({"h.0.attn.weight"}, stored, "old")
    with pytest.raises(CheckpointError, match="position_ids"):
        weights.check_stored({"embeddings.position_ids"}, stored, "old")


def test_a_checkpoint_in_several_files_loads(split):
    assert len(list(split.glob("model-*.safetensors"))) > 1
    assert vf.upcycle(split)[1].logit_difference <= 1e-5


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/{}/elsewhere.safetensors"])
def test_an_index_that_leads_out_of_its_folder(split, place, tmp_path):
    (tmp_path / "elsewhere.safetensors").write_bytes(b"secret")
    _point_elsewhere(split, place.format(str(tmp_path).strip("/")))
    with pytest.raises(CheckpointError, match="lies outside its folder"):
        vf.upcycle(split, DENSE)


def test_an_index_whose_file_is_a_link_out_of_its_folder(split, tmp_path):
    shard = sorted(split.glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="a link that leads out of its folder"):
        vf.upcycle(split, DENSE)


def test_a_lone_file_of_weights_may_be_a_link(folder, tmp_path):
    """To wherever the user, or a download, keeps it."""
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert vf.upcycle(folder)[1].logit_difference <= 1e-5


def test_the_hubs_cache_links_its_files(split, tmp_path):
    """It keeps contents beside the snapshots, and links to them."""
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.parent.mkdir()
    split.rename(snapshot)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(cache / "blobs" / str(number))
        path.symlink_to(Path("..", "..", "blobs", str(number)))
    assert vf.upcycle(snapshot)[1].logit_difference <= 1e-5


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"metadata": {}}']
)
def test_an_index_that_is_none(split, content):
    (split / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is no index of weights"):
        vf.upcycle(split, DENSE)


def test_an_index_that_names_a_missing_file(split):
    sorted(split.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(CheckpointError, match="which is missing"):
        vf.upcycle(split, DENSE)


def _point_elsewhere(split, place):
    index = split / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][UP] = place
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("layers", [1025, 10**12])
def test_more_layers_than_any_model_has(folder, layers):
    edit(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(CheckpointError, match=rf"num_hidden_layers .* is {layers:,}, .* 1,024"):
        vf.upcycle(folder, DENSE)


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_sizes_that_no_memory_holds(folder, name):
    """Tensors of another shape would be allocated and filled before anyone sees the difference."""
    edit(folder / "config.json", **{name: 10**12})
    with pytest.raises(ResourceError, match=r"needs [\d,.]+ GiB of memory, [\d,.]+ GiB are avail"):
        vf.upcycle(folder, DENSE)


def test_memory_is_compared_with_what_a_container_may_have(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text(f"{3 * 2**20}\n")
    used.write_text(f"{2**20}\n")
    monkeypatch.setattr(memory, "CGROUP_FILES", ((limit, used),))
    assert memory.available_memory() == 2 * 2**20
    memory.check_memory(2 * 2**20, "the model", "take a smaller one")
    with pytest.raises(ResourceError, match=r"the model needs 3.0 MiB .* 2.0 MiB are available"):
        memory.check_memory(3 * 2**20, "the model", "take a smaller one")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**19}\nactive_file {2**18}\n")
    assert memory.available_memory() == 2 * 2**20 + 2**19 + 2**18
    limit.write_text("max\n")
    assert memory.available_memory() > 3 * 2**20


@pytest.mark.parametrize(
    ("variant", "setting"),
    [(vf.Versatile, "max_loops"), (vf.KLoop, "num_loops"), (vf.Versatile, "num_experts")],
)
def test_a_million_of_anything(folder, variant, setting):
    with pytest.raises(ConfigError):
        vf.upcycle(folder, variant(**{setting: 10**6}))


def test_a_million_experts_are_never_allocated(folder):
    with pytest.raises(ResourceError, match="of memory"):
        vf.upcycle(folder, vf.MoE(num_experts=10**6, d_expert=10**5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": -1.0}, "rms_norm_eps in its config is -1.0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -10000.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta"),
        ({"num_labels": 10**9}, "num_labels in its config is 1,000,000,000"),
        ({"hidden_size": 10**4000}, "hidden_size in its config is a number of 13288 bits"),
    ],
)
def test_numbers_that_compute_nothing(folder, change, message):
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        read_any_config(folder)


def test_a_number_of_thousands_of_digits(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"vocab_size": 97', f'"vocab_size": {"9" * 5000}')
    )
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        read_any_config(folder)


def test_finite_weights_that_compute_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[UP] = tensors[UP] * 0 + 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="computes NaN or infinity"):
        vf.upcycle(folder)


@pytest.mark.parametrize("length", [2**40, 2**62])
def test_a_gguf_header_that_promises_too_much(folder, tmp_path, length):
    """The package's own reader goes on behind the end of the file, until memory is full."""
    path = tmp_path / "dense.gguf"
    write_gguf(LlamaForCausalLM.from_pretrained(folder), path)
    name, number_array = b"general.tags", struct.pack("<II", 9, 4)
    entry = struct.pack("<Q", len(name)) + name + number_array + struct.pack("<Q", length)
    content = path.read_bytes()
    counts = struct.unpack("<QQ", content[8:24])
    header = content[:8] + struct.pack("<QQ", counts[0], 1)
    path.write_bytes(header + entry)
    with pytest.raises(CheckpointError, match="ends before what its header promises"):
        vf.upcycle(path)


@pytest.mark.parametrize("size", [0, 3, 24, 400, 2000])
def test_a_gguf_file_that_is_cut_off(folder, tmp_path, size):
    path = tmp_path / "dense.gguf"
    write_gguf(LlamaForCausalLM.from_pretrained(folder), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="can't be read as GGUF"):
        vf.upcycle(path)


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/b", "a\nb", "a\0b"])
def test_a_chat_templates_name_is_no_path(folder, name):
    tokenizer = train_bpe(["some words"], 300)
    tokenizer.save_pretrained(folder)
    templates = [{"name": "default", "template": "x"}, {"name": name, "template": "y"}]
    edit(folder / "tokenizer_config.json", chat_template=templates)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for load in (load_own_tokenizer, lambda place: find_tokenizer(str(place))):
        with pytest.raises(DataError, match="chat template called"):
            load(folder)


def test_chat_templates_with_plain_names_are_carried(folder, tmp_path):
    tokenizer = train_bpe(["some words"], 300)
    tokenizer.chat_template = {"default": "x", "tool_use": "y"}
    tokenizer.save_pretrained(folder)
    assert load_own_tokenizer(folder).chat_template == tokenizer.chat_template


def test_links_that_lead_nowhere(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointError, match="a link that leads nowhere"):
        vf.upcycle(loop)
    with pytest.raises(CheckpointError, match="isn't UTF-8"):
        vf.upcycle("some-\udcff-name")
