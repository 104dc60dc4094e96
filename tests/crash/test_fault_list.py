"""Each fault of the list is tried by a test that is there, and the page shows the list."""

import ast

import pytest

from crash.fault_list import BEGIN, END, FAULT_LIST, TESTS, Listed, shown
from crash.tables import PAGE


@pytest.mark.parametrize("listed", FAULT_LIST, ids=lambda listed: listed.fault)
def test_each_fault_is_tried(listed: Listed) -> None:
    assert listed.tests
    for name in listed.tests:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        (found,) = (
            node for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == function
        )  # fmt: skip
        marks = [ast.unparse(each) for each in found.decorator_list]
        assert not any("mark.skip(" in mark or "xfail" in mark for mark in marks)


def test_the_page_shows_the_list() -> None:
    assert BEGIN + shown() + END in PAGE.read_text()
