"""What stands on the token page: its data against the readings, and against the model."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from support.models import make_ids, make_model
from support.stories import TEXT, make_reading, make_tokenizer
from versatileffn.analysis.readings import read
from versatileffn.analysis.token_page import page_data, tokens_outcome
from versatileffn.analysis.token_texts import token_texts
from versatileffn.errors import DataError


def test_readings_are_what_the_model_says_in_the_order_given() -> None:
    model = make_model(variant="versatile")
    sequences = [make_ids(length, seed=length).tolist() for length in (9, 30, 4, 9)]
    for ids, reading in zip(sequences, read(model, sequences), strict=True):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_reuse_plans=True)
        assert reading.ids_T.tolist() == ids
        nats = cross_entropy(out.logits[0, :-1], reading.ids_T[1:], reduction="none")
        assert reading.nats_T[0].isnan()
        torch.testing.assert_close(reading.nats_T[1:], nats, rtol=1e-4, atol=1e-5)
        for layer, plan in zip(reading.layers, out.reuse_plans, strict=True):
            assert torch.equal(layer.loops_T.long(), plan.loop_count[0])
            assert torch.equal(layer.experts_TK.long(), plan.experts[0])
            assert torch.equal(layer.lam_T, plan.lam[0])


def test_token_texts_join_to_the_text() -> None:
    tokenizer = make_tokenizer()
    text = TEXT + "Ωmega and 🦆 aren't in its vocabulary."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "" in texts  # a duck takes several tokens, of which the last one is the duck
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        token_texts(object(), ids)


def test_the_data_are_the_readings() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    readings = [make_reading(ids, seed=0), make_reading(ids[:7], seed=1)]
    data = page_data(readings, tokenizer)
    assert data["starts"] == [0, len(ids)]
    assert data["nats"][0] is data["nats"][len(ids)] is None
    for index, layer in enumerate(data["layers"]):
        loops = torch.cat([reading.layers[index].loops_T for reading in readings])
        assert layer["loops"] == "".join(map(str, loops.tolist()))
        experts = torch.cat([reading.layers[index].experts_TK for reading in readings]) + 1
        assert layer["experts"] == experts.flatten().tolist()
        assert layer["mean"] == pytest.approx(loops.double().mean().item(), abs=1e-4)
        nats = torch.cat([reading.nats_T for reading in readings])
        known = nats.isfinite()
        own = spearmanr(loops[known], nats[known]).statistic
        after = spearmanr(loops[:-1][known[1:]], nats[1:][known[1:]]).statistic
        assert (layer["own"], layer["next"]) == pytest.approx((own, after), abs=1e-4)


def test_real_experts_have_loads_and_the_surprise_of_their_tokens() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    reading = make_reading(ids, loops_decided=False)
    data = page_data([reading], tokenizer)
    assert (data["max_loops"], data["num_experts"]) == (1, 8)
    for layer, row in zip(reading.layers, data["layers"], strict=True):
        assert "loops" not in row
        for expert in range(8):
            asked = (layer.experts_TK == expert).any(-1)
            selections = (layer.experts_TK == expert).sum() / layer.experts_TK.numel()
            nats = reading.nats_T[asked & reading.nats_T.isfinite()].mean()
            assert row["load"][expert] == pytest.approx(selections.item(), abs=1e-4)
            assert row["expert_nats"][expert] == pytest.approx(nats.item(), abs=1e-3)
    table = tokens_outcome([reading], tokenizer, "a model", "a text").table
    assert table["expert"] == [str(n) for _ in range(2) for n in range(1, 9)]


def test_readings_of_real_experts_are_the_routers() -> None:
    model, ids = make_model(variant="moe"), make_ids(12)
    reading = read(model, [ids.tolist()])[0]
    with torch.no_grad():
        routings = model(input_ids=ids[None], output_reuse_plans=True).reuse_plans
    for layer, routing in zip(reading.layers, routings, strict=True):
        weights = routing.router_logits[0].softmax(-1)
        best = weights.argmax(-1)
        assert torch.equal(layer.experts_TK[:, 0].long(), best)  # the one that weighs most is first
        assert layer.num_experts == weights.shape[-1]


def test_a_layer_that_decides_alike_has_no_correlation() -> None:
    reading = make_reading([1, 2, 3, 4])
    still = replace(reading.layers[0], loops_T=torch.full((4,), 2, dtype=torch.uint8))
    data = page_data([replace(reading, layers=(still, reading.layers[1]))], make_tokenizer())
    assert data["layers"][0]["own"] is None
    assert data["layers"][1]["own"] is not None


def test_the_page_is_one_file_whatever_the_text_says() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("</script><b>&amp;", add_special_tokens=False)["input_ids"]
    outcome = tokens_outcome([make_reading(ids)], tokenizer, "<model>", "a & b.txt")
    page = outcome.files["tokens.html"].decode()
    assert page.count("</script>") == 2
    assert "&lt;model&gt;" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    raw = page.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(raw) == json.loads(outcome.files["tokens.json"])
