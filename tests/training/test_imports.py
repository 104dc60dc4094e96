"""A controller of someone's own: imported by name, trained, saved, and loaded again."""

import json
import sys
import textwrap

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from support.forked import VERB, forked
from versatileffn.errors import ConfigError
from versatileffn.ffn.registry import CONTROLLERS
from versatileffn.imports import import_modules
from versatileffn.training.run import train

ROUTER = '''
    import torch
    import versatileffn as vf
    from versatileffn.ffn.plan_fields import one_hot_loops


    @vf.register_controller("{name}")
    class Mine(torch.nn.Module):
        """Loops by the sign of one learned direction; starts with weights of its own."""

        def __init__(self, d_model, d_hidden, config):
            super().__init__()
            self.config = config
            self.direction = torch.nn.Linear(d_model, 1)
            self.reset_parameters()

        def reset_parameters(self, std=0.02):
            torch.nn.init.normal_(self.direction.weight, std=std)
            torch.nn.init.constant_(self.direction.bias, 0.125)

        def forward(self, hidden):
            score = self.direction(hidden).squeeze(-1)
            count = 1 + (score > 0).long()
            probs = one_hot_loops(count, self.config.max_loops).to(score.dtype)
            return vf.ReusePlan(count, probs, lam=score.sigmoid() / 2)
'''


def write_router(path, name):
    path.write_text(textwrap.dedent(ROUTER.format(name=name)))
    return path


@pytest.fixture
def router(tmp_path):
    """A file that registers a controller, under a name of this test."""
    name = f"mine_{tmp_path.name}"
    yield write_router(tmp_path / f"{name}.py", name), name
    CONTROLLERS.pop(name, None)
    sys.modules.pop(name, None)


def test_it_is_trained_saved_and_loaded_again(router, make_config):
    path, name = router
    changes = {
        "model__ffn": {"controller": name, "fusion": "depth", "max_loops": 2},
        "model__imports": [str(path)],
        "run__max_steps": 2,
        "run__save_steps": 2,
    }
    run = train(make_config(**changes))
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["model"]["ffn"]["controller"] == name
    assert len(record["imports"][str(path)]) == 64
    trained = AutoModelForCausalLM.from_pretrained(run / "model")
    controller = trained.model.layers[0].controller
    assert type(controller).__name__ == "Mine"
    assert controller.direction.bias.item() not in (0.0, 0.125)  # it drew its own, and learned
    ids = torch.arange(20)[None]
    first = trained(ids).logits
    trained.save_pretrained(run / "again")
    again = AutoModelForCausalLM.from_pretrained(run / "again")
    assert torch.equal(again(ids).logits, first)
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(ConfigError, match=rf"imports\..*{name}.* was"):
        train(make_config(**changes))


def test_on_the_command_line_the_import_is_an_option_and_on_the_receipt(router, tmp_path):
    path, name = router
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).save_pretrained(
        tmp_path / "dense"
    )
    upcycle = ["upcycle", tmp_path / "dense", tmp_path / "out", "--controller", name]
    upcycle += ["--fusion", "depth", "--max-loops", "2"]

    def run(*options):
        return forked(VERB, *options)

    told = run(*upcycle)
    assert told.returncode == 1
    assert f"controller={name!r} is unknown" in told.stderr
    assert "--import" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    done = run("--import", path, *upcycle)
    assert done.returncode == 0, done.stderr
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["logit_difference"] <= 1e-5  # gains are the layer's, so its start is exact, too
    assert receipt["imports"].keys() == {str(path)}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "nowhere.*can't be imported"),
        ("1/0", r"can't be imported \(ZeroDivisionError"),
        ("import versatileffn as vf\nvf.register_controller('linear')(type('X', (), {}))",
         "a controller 'linear' is there already"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(tmp_path, code, message):
    path = tmp_path / ("nowhere.py" if code is None else f"broken_{tmp_path.name}.py")
    if code is not None:
        path.write_text(code)
    with pytest.raises(ConfigError, match=message) as caught:
        import_modules([str(path)])
    assert "\n" not in str(caught.value)
    assert path.stem not in sys.modules


def test_a_file_doesnt_hide_a_module_of_the_same_name(tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="a module called 'json' is there already"):
        import_modules([str(tmp_path / "json.py")])
