"""docs/families.md shows what the committed run found, for every family and every property."""

import json
import re
from pathlib import Path

import pytest
from transformers import ArceeConfig, ArceeForCausalLM

from support.family_table import BEGIN, DOCS, END, properties, render
from support.forked import forked
from support.models import SHAPE
from versatileffn.errors import CheckpointError
from versatileffn.models.table import FAMILIES, family_of

RENEW = "run pytest tests/models/test_families.py --write-families"
PROPERTIES = properties(Path(__file__).with_name("test_families.py"))
WITH_A_ROW = """
import sys
import versatileffn as vf
from transformers import AutoModelForCausalLM
from versatileffn.models import config, family
from versatileffn.models.table import FAMILIES, Family

del FAMILIES["arcee"]
config.config_class.cache_clear()
try:
    vf.upcycle(sys.argv[1])
except vf.errors.CheckpointError as error:
    print(error)
FAMILIES["arcee"] = Family("Arcee", proj=("up_proj",), gated=False)
config.register_configs()
model, receipt = vf.upcycle(sys.argv[1])
model.save_pretrained(sys.argv[1] + "/out")
loaded = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/out")
print(type(model).__name__, receipt.logit_difference, type(loaded) is type(model))
"""
RECORD = json.loads((DOCS / "families.json").read_text("utf-8"))


def test_the_table_is_the_records():
    page = (DOCS / "families.md").read_text("utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == render(RECORD), RENEW


def test_the_record_covers_every_family_and_property():
    assert list(RECORD["families"]) == list(FAMILIES), RENEW
    for family, found in RECORD["families"].items():
        assert sorted(found) == sorted(PROPERTIES), f"{family}: {RENEW}"
        lacking = {test for test, outcome in found.items() if outcome not in ("passed", "skipped")}
        assert not lacking, family
        assert {test for test, outcome in found.items() if outcome == "skipped"} <= {"classifies"}


def test_an_unknown_family_names_the_known_ones_and_the_file():
    with pytest.raises(CheckpointError, match=r"'mamba'.*llama, .*stablelm.*models/table\.py"):
        family_of("mamba")


def test_a_row_is_all_that_a_family_needs(tmp_path):
    """In a process of its own, which starts as if nobody had written the row."""
    ArceeForCausalLM(ArceeConfig(**SHAPE)).save_pretrained(tmp_path)
    done = forked("-c", WITH_A_ROW, tmp_path)
    assert done.returncode == 0, done.stderr
    refused, made = done.stdout.splitlines()
    assert re.search(r"'arcee' isn't supported.*models/table\.py", refused)
    assert made == "VersatileArceeForCausalLM 0.0 True"
