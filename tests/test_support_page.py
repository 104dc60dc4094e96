"""docs/support.md says what the project states, and the wheel has every file."""

import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def rows() -> list[tuple[str, ...]]:
    found = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in PAGE.splitlines()]
    return [row for row in found if len(row) == 3 and row[0] and "---" not in row[0]]


def test_the_table_is_what_the_project_states():
    ranges = dict(re.match(r"([a-z-]+)(.*)", each).groups() for each in PROJECT["dependencies"])
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    told = re.search(r"on Python ([\d.]+)", (ROOT / "constraints.txt").read_text())[1]
    expected = [("Python", PROJECT["requires-python"], told)]
    expected += [(n, ranges[n], pins[n]) for n in ("torch", "transformers", "accelerate")]
    assert rows() == expected


def test_the_pinned_versions_are_supported():
    for name, supported, pinned in rows():
        assert pinned in SpecifierSet(supported), name


def test_every_target_that_the_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", PAGE)) <= targets


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources, by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in (*PROJECT["license-files"], PROJECT["readme"], "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        return zipfile.ZipFile(folder / build_wheel(str(folder)))


def test_the_wheel_has_every_file_of_the_package(wheel):
    source, inside = ROOT / "src", set(wheel.namelist())
    files = (file for file in (source / "versatileffn").rglob("*") if file.is_file())
    expected = {str(f.relative_to(source)) for f in files if f.parent.name != "__pycache__"}
    assert len(expected) > 200
    assert not expected - inside
    assert "versatileffn/py.typed" in inside
    assert any(name.endswith(".j2") for name in inside)


def test_the_wheel_says_its_version_and_command(wheel):
    folder = f"versatileffn-{PROJECT['version']}.dist-info"
    assert f"Version: {PROJECT['version']}\n" in wheel.read(f"{folder}/METADATA").decode()
    commands = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "versatileffn = versatileffn.cli.main:main" in commands
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
