"""The curve: measured, kept, looked up; and what no curve can be made of, or looked up in."""

import json
import math

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import versatileffn as vf
from support.layers import PLANS, decide, make_any, make_hidden
from support.models import VARIANTS, make_ids, make_model
from versatileffn.analysis import speed
from versatileffn.analysis.calibration import calibrate, draw_curve, measure_caps
from versatileffn.analysis.dial_clock import budget_name, clock_budgets
from versatileffn.analysis.executed import executed_ffn_flops
from versatileffn.budget import penalty_for, set_loop_penalty
from versatileffn.cli.calibrate import calibrate_command, keep
from versatileffn.cli.verify import verify_command
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import ConfigError, VersatileFFNError
from versatileffn.evaluation.loops import layer_use, mean_loops
from versatileffn.ffn.controller import LinearController
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.manifest import digests, read_record

TEXT = " ".join(f"the {n} small cats and {n % 7} dogs sat on the mat." for n in range(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint that knows a text a little, converted by us, with its tokenizer."""
    root = tmp_path_factory.mktemp("calibration")
    tokenizer = train_bpe([TEXT], 300)
    model = make_model(vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=0).train()
    ids = torch.tensor(tokenizer(TEXT).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(30):
        window = ids[step * 40 : step * 40 + 256].view(8, 32)
        model(input_ids=window, labels=window).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def batches(folder):
    tokenizer = train_bpe([TEXT], 300)
    ids = torch.tensor(tokenizer(TEXT).input_ids)
    return list(ids[: len(ids) // 64 * 64].view(-1, 64).split(16))


@pytest.fixture(scope="module")
def calibrated(folder, batches):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return model, calibrate(model, batches, points=5)


def run(command, *arguments, expect=None):
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})
    if expect is None:
        assert done.exit_code == 0, done.output
        return done.output
    assert isinstance(done.exception, expect)
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.mark.parametrize("name", ["paper", "learned", "average", "token-choice"])
def test_loops_never_grow_with_the_penalty(name):
    layer, hidden = make_any("swiglu", PLANS[name], gains_at=0.4).eval(), make_hidden(60, 16)
    logits = decide(layer, hidden).loop_logits
    before = torch.full((60,), 4)
    for penalty in (-9.0, -0.5, 0.0, 0.3, 1.0, 9.0):
        set_loop_penalty(layer, penalty)
        plan = decide(layer, hidden)
        prices = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64) * penalty
        torch.testing.assert_close(plan.loop_logits, logits - prices)
        assert torch.equal(plan.loop_count, (logits - prices).argmax(-1) + 1)
        assert (plan.loop_count <= before).all()
        before = plan.loop_count
    assert (before == 1).all()


def test_each_point_is_what_the_model_does_with_its_penalty(calibrated, batches):
    model, curve = calibrated
    assert [point["penalty"] for point in curve] == sorted(point["penalty"] for point in curve)
    assert 0.0 in [point["penalty"] for point in curve]
    means = [point["mean_loops"] for point in curve]
    assert max(means) > 3.8
    assert min(means) < 1.2
    for point in curve[:: len(curve) - 1]:
        set_loop_penalty(model, point["penalty"])
        assert mean_loops(layer_use(model, batches)) == pytest.approx(point["mean_loops"])
        flops = executed_ffn_flops(model, batches).ffn_per_token
        assert flops == pytest.approx(point["ffn_flops_per_token"])
        nats = [
            model(input_ids=ids, labels=ids).loss.item() * ids[:, 1:].numel() for ids in batches
        ]
        expected = sum(nats) / sum(ids[:, 1:].numel() for ids in batches)
        assert point["nats_per_token"] == pytest.approx(expected, rel=1e-4)
    set_loop_penalty(model, None)


def test_the_command_keeps_the_curve_where_saves_carry_it(folder, batches, tmp_path):
    """`vf.compute_budget(mean_loops=…)` finds it there, after another save and load, too."""
    said = run(
        calibrate_command, folder / "model", folder / "text.txt", "--points", 5, "--figure",
        tmp_path / "curve.svg", "--json", tmp_path / "curve.json",
    )  # fmt: skip
    assert "at most 4" in said
    assert (tmp_path / "curve.svg").read_bytes().count(b"<svg ") == 1
    record = json.loads((tmp_path / "curve.json").read_text())
    AutoModelForCausalLM.from_pretrained(folder / "model").save_pretrained(tmp_path / "again")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert model.config.loop_curve == record["curve"]
    for wanted in (1.5, 2.0, 3.0):
        with vf.compute_budget(model, mean_loops=wanted):
            assert mean_loops(layer_use(model, batches)) == pytest.approx(wanted, abs=0.3)
    with vf.compute_budget(model, mean_loops=3.0, max_loops=2):
        assert max(len(u.loop_share) - 1 for u in layer_use(model, batches)) == 3
        assert all(not any(u.loop_share[2:]) for u in layer_use(model, batches))
    free = model(batches[0]).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again", mean_loops=1.5)
    assert not torch.equal(loaded(batches[0]).logits, free)
    loaded.set_compute_budget()
    assert torch.equal(loaded(batches[0]).logits, free)
    ids = batches[0][:2, :9]
    asked = model.generate(ids, max_new_tokens=8, do_sample=False, mean_loops=1.2)
    with vf.compute_budget(model, mean_loops=1.2):
        assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), asked)


def test_caps_are_what_the_model_does_with_them(calibrated, batches):
    model = calibrated[0]
    free = layer_use(model, batches)
    caps = measure_caps(model, batches)
    assert [point["max_loops"] for point in caps] == [1, 2, 3, 4]
    assert layer_use(model, batches) == free  # the budget is as before
    assert caps[-1]["mean_loops"] == pytest.approx(mean_loops(free))
    shares = [use.loop_share for use in free]
    for point in caps:
        least = [
            sum(min(n, point["max_loops"]) * share for n, share in enumerate(each, start=1))
            for each in shares
        ]
        # later layers see other tokens under a cap, the first one the same
        with vf.compute_budget(model, max_loops=point["max_loops"]):
            capped = layer_use(model, batches)
            assert capped[0].mean_loops == pytest.approx(least[0])
            assert mean_loops(capped) == pytest.approx(point["mean_loops"])
            flops = executed_ffn_flops(model, batches).ffn_per_token
        assert flops == pytest.approx(point["ffn_flops_per_token"])
    dense = executed_ffn_flops(make_model(variant="dense", vocab_size=300), batches)
    assert caps[0]["ffn_flops_per_token"] == dense.ffn_per_token


def test_the_clock_runs_every_budget_beside_dense(folder, tmp_path):
    """What it times is what it says: each subject runs under its own budget."""
    run(calibrate_command, folder / "model", folder / "text.txt", "--points", 2, "--limit", 16,
        "--clock", 0, "--json", tmp_path / "curve.json")  # fmt: skip
    record = json.loads((tmp_path / "curve.json").read_text())
    points = [*record["curve"], *record["caps"]]
    names = {"dense", *map(budget_name, points)}
    assert len(names) == 1 + 3 + 4
    for work in ("prefill", "decode"):
        found = record["clock"][work]
        assert found["rounds"] == 5
        assert found["tokens_per_second"].keys() == found["of_dense"].keys() == names
        assert found["of_dense"]["dense"] == {"median": 1, "low": 1, "high": 1}


def test_a_budgets_turn_is_under_that_budget(calibrated, batches, monkeypatch):
    model, seen = calibrated[0], []
    twin = make_model(variant="dense", vocab_size=300)

    def watch(subjects, **_):
        for name, work in subjects.items():
            _, loops = speed.with_loops(model, lambda work=work: work() or [])
            budget = model.reuse_layers()[0].budget
            seen.append((name, budget.most if budget else loops))
        return speed.Timings({name: [1.0] for name in subjects})

    monkeypatch.setattr(speed, "measure", watch)
    points = [{"penalty": 1e3}, {"penalty": -1e3}, {"max_loops": 2}]
    clock_budgets(model, twin, points, batches[0], 0)
    for name, found in (("penalty=1000", 1), ("penalty=-1000", 4), ("max_loops=2", 2)):
        assert [loops for subject, loops in seen if subject == name] == [found, found]
    assert model.reuse_layers()[0].budget is None
    assert mean_loops(layer_use(model, batches)) not in (1, 4)  # none is left behind


def test_a_folder_stays_what_was_written(calibrated, tmp_path):
    """The config's digest follows in every record that lists it, and a record's in the next."""
    inner, outer = tmp_path / "stage" / "model", tmp_path / "stage"
    calibrated[0].save_pretrained(inner)
    write_json(inner / "receipt.json", {"source": "kept", "files": digests(inner)})
    write_json(outer / "stage.json", {"files": digests(outer)})
    weights = digests(inner, ["config.json", "receipt.json"])
    keep(inner, calibrated[1])
    assert run(verify_command, outer).count("ok") == 2
    assert read_record(inner / "receipt.json")["source"] == "kept"
    assert digests(inner, ["config.json", "receipt.json"]) == weights
    (inner / "generation_config.json").unlink()
    keep(inner, calibrated[1])  # vouches for nothing but what it wrote
    app = typer.Typer()
    app.command()(verify_command)
    assert CliRunner().invoke(app, [str(outer)]).exit_code == 1


def test_a_curve_of_weights_that_were_converted_anew_is_dropped(calibrated):
    from versatileffn.models.family import reuse_config

    config = calibrated[0].config
    config.loop_curve = calibrated[1]
    assert reuse_config(config, vf.KLoop(2)).loop_curve is None
    config.loop_curve = None


def test_between_points_the_penalty_is_interpolated():
    curve = [
        {"penalty": 1.0, "mean_loops": 1.5},
        {"penalty": -2.0, "mean_loops": 4.0},
        {"penalty": 0.0, "mean_loops": 2.0},
        {"penalty": 3.0, "mean_loops": 1.5},
    ]
    assert penalty_for(curve, 3.0) == pytest.approx(-1.0)
    assert penalty_for(curve, 1.75) == pytest.approx(0.5)
    assert penalty_for(curve, 2) == 0.0
    assert penalty_for(curve, 1.5) == 1.0
    for outside in (1.0, 4.5):
        with pytest.raises(ConfigError, match=r"give 1\.5 to 4, or max_loops"):
            penalty_for(curve, outside)
    for no_number in (True, "2", math.nan):
        with pytest.raises(ConfigError, match="must be a finite number"):
            penalty_for(curve, no_number)


def test_a_checkpoint_without_a_curve_names_the_command():
    with pytest.raises(ConfigError, match="`versatileffn calibrate MODEL TEXT`"):
        make_model().set_compute_budget(mean_loops=2.0)


@pytest.mark.parametrize("name", ["dense", "moe", "k-loop"])
def test_a_model_that_decides_no_loops(name):
    for call in (lambda m: m.set_compute_budget(mean_loops=2.0), lambda m: calibrate(m, [])):
        with pytest.raises(ConfigError, match=f"a {name} model decides nothing token by token"):
            call(make_model(**VARIANTS[name]))


def test_what_no_penalty_makes_cheaper():
    with pytest.raises(ConfigError, match="loop_mix='soft' runs every loop"):
        make_model(loop_mix="soft").set_compute_budget(mean_loops=2.0)

    class Own(torch.nn.Module):
        pass

    model = make_model()
    model.reuse_layers()[1].controller = Own()
    with pytest.raises(ConfigError, match="a Own has no loop_penalty"):
        model.set_compute_budget(mean_loops=2.0)


def test_a_wrapped_controller_is_priced():
    class Wrapped(torch.nn.Module):
        def __init__(self, inner: LinearController):
            super().__init__()
            self.inner = inner

        def forward(self, hidden):
            return self.inner(hidden)

    model, ids = make_model(), make_ids(2, 20)
    for layer in model.reuse_layers():
        layer.controller = Wrapped(layer.controller)
    set_loop_penalty(model, 1e3)
    plans = model(ids, output_reuse_plans=True).reuse_plans
    assert all((plan.loop_count == 1).all() for plan in plans)


BAD = {
    "too short": ("model", "short.txt", "needs 1,000 or more: give a longer one"),
    "empty": ("model", "empty.txt", "has 0 tokens"),
    "another language": ("model", "other.txt", "a language that it was trained on"),
    "no text": ("model", "lost.txt", "lost.txt: give a text file or folder, or a task's name"),
    "no task": ("model", "arc", "there is no task 'arc': did you mean 'arc_easy'"),
    "no model": ("lost", "text.txt", "no folder with a config.json"),
    "another vocabulary": ("small", "text.txt", "measure on what its own tokenizer makes"),
    "no tokenizer": ("mute", "text.txt", "copy the one it was trained with into its folder"),
    "soft": ("soft", "text.txt", "train with loop_mix='hard'"),
} | {
    variant: (variant, "text.txt", f"a {variant} model decides nothing token by token")
    for variant in ("dense", "moe", "k-loop")
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(folder):
    """Models and texts of which no curve can be made, beside the good ones."""
    texts = {
        "short": "the small cats", "empty": "",
        "other": " ".join(f"{'жщюѣ'[n % 4]}{n * 7919 % 97}" for n in range(900)),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    settings = {name: {**VARIANTS[name], "vocab_size": 300} for name in ("dense", "moe", "k-loop")}
    settings |= {"soft": {"vocab_size": 300, "loop_mix": "soft"}, "small": {"vocab_size": 97}}
    for name, each in settings.items():
        make_model(**each).save_pretrained(folder / name)
        train_bpe([TEXT], 300).save_pretrained(folder / name)
    make_model(vocab_size=300).save_pretrained(folder / "mute")
    return folder


@pytest.mark.parametrize("options", [(), ("--clock", 0)], ids=["", "clock"])
@pytest.mark.parametrize(("model", "text", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line_with_the_remedy(bad, tmp_path, model, text, said, options):
    config = bad / model / "config.json"
    before = config.read_bytes() if config.exists() else None
    given = text if text == "arc" else bad / text
    out = tmp_path / "curve.json"
    command = (bad / model, given, *options, "--json", out)
    assert said in run(calibrate_command, *command, expect=VersatileFFNError)
    assert not out.exists()
    assert (config.read_bytes() if config.exists() else None) == before


def test_a_text_longer_than_the_model_is_read_in_windows(folder, tmp_path):
    """As many windows as are asked for; a model of 64 tokens reads 64 at a time."""
    for limit in (16, 20):
        run(calibrate_command, folder / "model", folder / "text.txt", "--points", 2, "--limit",
            limit, "--json", tmp_path / "curve.json")  # fmt: skip
        record = json.loads((tmp_path / "curve.json").read_text())
        assert record["tokens"] == 64 * limit


@pytest.mark.parametrize(
    "curve", [[{"penalty": 1.0}], "steep", [{"penalty": 1, "mean_loops": "2"}]]
)
def test_a_config_with_a_damaged_curve(curve):
    with pytest.raises(ConfigError, match="loop_curve"):
        type(make_model().config)(loop_curve=curve)


def test_the_picture_is_the_same_every_time(calibrated):
    assert draw_curve(calibrated[1]) == draw_curve(calibrated[1])
