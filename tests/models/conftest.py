"""Which families are tested, and the record of a run."""

from pathlib import Path

import torch
import transformers

from support.families import TYPICAL
from support.family_table import properties, write
from versatileffn.models.family import FAMILIES

MODULE = "test_families.py::test_"


def pytest_addoption(parser):
    parser.addoption("--all-families", action="store_true", help="not only the typical ones")
    parser.addoption("--write-families", action="store_true", help="all, into docs/families.md")


def wants(config, *options):
    return any(config.getoption(option, default=False) for option in options)


def pytest_generate_tests(metafunc):
    if "model_type" in metafunc.fixturenames:
        every = wants(metafunc.config, "--all-families", "--write-families")
        metafunc.parametrize("model_type", list(FAMILIES) if every else TYPICAL, scope="module")


def pytest_terminal_summary(terminalreporter, config):
    if not wants(config, "--write-families"):
        return
    found = {family: {} for family in FAMILIES}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            test, _, family = report.nodeid.partition(MODULE)[2].rstrip("]").partition("[")
            if family in FAMILIES:
                found[family][test] = outcome
    order = properties(Path(__file__).with_name("test_families.py"))
    found = {f: {test: of[test] for test in order if test in of} for f, of in found.items()}
    versions = f"Transformers {transformers.__version__} and torch {torch.__version__}"
    write({"versions": versions.partition("+")[0], "families": found})
