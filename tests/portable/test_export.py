"""An exported folder: equal to the package without the package, and safe to save again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from portable.cases import TEMPLATE, TEXT, models, write_case
from support.models import SHAPE, make_ids, make_model
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.ffn.controller import LinearController
from versatileffn.models.checkpoint import load_checkpoint, read_config
from versatileffn.publish.export import RECORD, export
from versatileffn.publish.origin import origin_of
from versatileffn.publish.push import push
from versatileffn.upcycle import RECEIPT, save_upcycled, upcycle
from versatileffn.workspace.manifest import damage, files_of, read_record

ELSEWHERE = Path(__file__).with_name("elsewhere.py")
CODE = "modeling_versatileffn.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for name, model in models().items():
        write_case(folder, name, model)
    return folder


def look_elsewhere(root: Path, home: Path, *options: str) -> dict:
    """What a process of its own finds, which has never heard of this package."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # or sums round otherwise
    if "--block" not in options:
        environment["PYTHONPATH"] = str(Path(vf.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(ELSEWHERE), str(root), *options],
        env=environment, cwd=home, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["cases"]


@pytest.fixture(scope="module")
def without_package(root, tmp_path_factory):
    return look_elsewhere(root, tmp_path_factory.mktemp("home"), "--block")


@pytest.mark.parametrize("name", list(models()))
def test_without_the_package_it_is_the_masked_execution(without_package, name):
    found = without_package[name]
    assert found["module"].endswith(".modeling_versatileffn")
    assert found["difference"] == 0
    assert found["after saving again"] == 0


def test_saved_again_without_the_package_it_keeps_its_code(root, without_package):
    for name, found in without_package.items():
        assert set(found["auto_map"].values()) == set(
            read_record(root / name / "out" / "config.json")["auto_map"].values()
        )
        code = (root / name / "again" / CODE).read_bytes()
        assert code == (root / name / "out" / CODE).read_bytes()


def test_the_tokenizer_and_its_template_come_along(root, without_package):
    assert without_package["learned"]["text ids"] == train_bpe([TEXT] * 3, 300)(TEXT)["input_ids"]
    assert (root / "learned" / "out" / "chat_template.jinja").read_text() == TEMPLATE


def test_with_the_package_its_own_classes_take_over(root, tmp_path):
    one = tmp_path / "root"
    one.mkdir()
    (one / "paper").symlink_to(root / "paper")
    found = look_elsewhere(one, tmp_path)["paper"]
    assert found["module"] == "versatileffn.models.family"
    assert found["difference"] < 1e-5  # another executor
    assert (root / "paper" / "again" / CODE).read_bytes() == (
        root / "paper" / "out" / CODE
    ).read_bytes()
    assert not (root / "paper" / "again" / "family.py").exists()


def test_what_was_imported_before_is_used_without_trust(root):
    model = AutoModelForCausalLM.from_pretrained(root / "paper" / "out")
    assert type(model) is vf.VersatileLlamaForCausalLM


def test_its_record_lists_every_file(root):
    out = root / "learned" / "out"
    record = read_record(out / RECORD)
    assert set(files_of(record)) == {p.name for p in out.iterdir()} - {RECORD}
    assert damage(out, files_of(record)) == []
    code = out / CODE
    text = code.read_text(encoding="utf-8")
    code.write_text(text.replace("return output_MD", "return -output_MD", 1), encoding="utf-8")
    try:
        assert damage(out, files_of(record)) == [f"{CODE} isn't what was written"]
    finally:
        code.write_text(text, encoding="utf-8")


def test_a_conversion_carries_what_is_known_of_its_base(tmp_path):
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**SHAPE))
    dense.generation_config.eos_token_id = [3, 7]
    dense.save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: mit\n---\nThe base's card.\n")
    (tmp_path / "dense" / "LICENSE").write_text("terms")
    model, receipt = upcycle(tmp_path / "dense")
    save_upcycled(model, receipt, tmp_path / "reused")
    export(str(tmp_path / "reused"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "## Conversion" in card
    assert str(tmp_path) not in card
    assert not [word for word in ("## Training", "## Evaluation", "## Budget") if word in card]
    assert "base_model" not in card  # a folder's name is no id on the Hub
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert "The base's card." in (tmp_path / "out" / "base_card.md").read_text()
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert reloaded.generation_config.eos_token_id == [3, 7]
    ids = make_ids(1, 8)
    torch.testing.assert_close(reloaded(ids).logits, dense.eval()(ids).logits)


def test_no_record_has_a_local_path(tmp_path):
    """Of the base, the conversion or the training: names go out, folders don't."""
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "dense")
    model, receipt = upcycle(tmp_path / "dense")
    save_upcycled(model, receipt, tmp_path / "reused")
    export(str(tmp_path / "reused"), tmp_path / "out")
    for path in (tmp_path / "out").glob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert read_record(tmp_path / "out" / RECORD)["receipt"]["source"] == "dense"


@pytest.mark.parametrize("gone", ["/srv/models/gone", "../gone", "a/b/c", "two words"])
def test_a_base_that_is_gone_and_could_be_no_hub_id_is_a_name(tmp_path, gone):
    (tmp_path / RECEIPT).write_text(json.dumps({"source": gone}))
    origin = origin_of(str(tmp_path))
    assert (origin.base, origin.base_id, origin.base_card) == (Path(gone).name, None, None)


def test_a_budget_curve_stands_in_the_card(tmp_path):
    curve = [{"penalty": 0.0, "mean_loops": 3.25}, {"penalty": 1.0, "mean_loops": 1.5}]
    model = make_model(variant="versatile")
    model.config.loop_curve = curve
    model.save_pretrained(tmp_path / "saved")
    export(str(tmp_path / "saved"), tmp_path / "out")
    assert "| 0 | 3.25 |\n| 1 | 1.5 |" in (tmp_path / "out" / "README.md").read_text()


def test_another_models_results_are_refused(tmp_path):
    make_model(variant="versatile").save_pretrained(tmp_path / "saved")
    results = {"dtype": "float32", "tasks": {}, "model": "other", "model_sha256": "0" * 64}
    with pytest.raises(ConfigError, match="those of other, another model"):
        export(str(tmp_path / "saved"), tmp_path / "out", results=results)
    assert not (tmp_path / "out").exists()


def test_decisions_by_code_of_the_users_are_refused(tmp_path):
    @vf.register_controller("of-my-own")
    class Own(LinearController):
        pass

    make_model(variant="versatile", controller="of-my-own").save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="'of-my-own' decide, which is code of yours"):
        export(str(tmp_path / "saved"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dense_model_is_refused(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="Transformers loads everywhere"):
        export(str(tmp_path / "dense"), tmp_path / "out")


def test_an_export_loads_by_our_own_loader_and_is_exported_again(root, tmp_path):
    out = root / "paper" / "out"
    model = load_checkpoint(AutoModelForCausalLM, out, read_config(out))
    assert type(model) is vf.VersatileLlamaForCausalLM
    export(str(out), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_pushing_without_a_token_says_so(root, monkeypatch):
    monkeypatch.setattr("versatileffn.publish.push.get_token", lambda: None)
    with pytest.raises(ConfigError, match="nobody is logged in at the Hub"):
        push(root / "paper" / "out", "me/mine")
    with pytest.raises(ConfigError, match="has no export"):
        push(root / "paper" / "saved", "me/mine")


def test_pushing_uploads_the_folder_once(root, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, repo, **options):
            calls.append((repo, options))

        def upload_folder(self, **options):
            calls.append(options)
            return type("Done", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr("versatileffn.publish.push.get_token", lambda: "secret")
    monkeypatch.setattr("versatileffn.publish.push.HfApi", Hub)
    (root / "moe" / "out" / "secret.env").write_text("TOKEN=1")
    with pytest.raises(ConfigError, match=r"secret.env, which `versatileffn export` didn't write"):
        push(root / "moe" / "out", "me/mine", changed=True)
    (root / "moe" / "out" / "secret.env").unlink()
    calls.clear()
    assert push(root / "moe" / "out", "me/mine", private=True) == "https://hub/commit"
    assert calls[1] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[2]["folder_path"] == root / "moe" / "out"
    assert {"export.json", "config.json", "model.safetensors"} <= set(calls[2]["allow_patterns"])
    (root / "moe" / "out" / "README.md").write_text("another card")
    with pytest.raises(ConfigError, match=r"README.md isn't what was written.*--changed"):
        push(root / "moe" / "out", "me/mine")
    assert push(root / "moe" / "out", "me/mine", changed=True)
