"""Which families are tested, and the record of a run."""

import json
from pathlib import Path

from support.families import TYPICAL
from versatileffn.models.family import FAMILIES

MODULE = "test_families.py::test_"


def pytest_addoption(parser):
    parser.addoption("--all-families", action="store_true", help="not only the typical ones")
    parser.addoption("--families-json", help="write each family's passed and failed properties")


def pytest_generate_tests(metafunc):
    if "model_type" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-families", default=False)
        metafunc.parametrize("model_type", list(FAMILIES) if every else TYPICAL, scope="module")


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--families-json", default=None)
    if not path:
        return
    found = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call" or outcome == "error":
                _, _, name = report.nodeid.partition(MODULE)
                test, _, family = name.rstrip("]").partition("[")
                if family in FAMILIES:
                    found.setdefault(family, {})[test] = outcome == "passed"
    ordered = {family: found[family] for family in FAMILIES if family in found}
    Path(path).write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
