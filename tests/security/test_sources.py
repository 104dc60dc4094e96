"""What could run data as code isn't in the sources, or is in its harmless form."""

import ast
from collections.abc import Iterator
from pathlib import Path

import versatileffn

SOURCES = Path(versatileffn.__file__).parent
NEVER = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "shelve.open", "joblib.load", "dill.load", "dill.loads", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "tarfile.open", "zipfile.ZipFile",
    "shutil.unpack_archive", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter",
}  # fmt: skip


def calls() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Where, what, and its keyword arguments."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                options = {k.arg or "**": ast.unparse(k.value) for k in node.keywords}
                yield f"{path.name}:{node.lineno}", ast.unparse(node.func), options


def test_nothing_that_runs_data_is_called():
    assert [(where, name) for where, name, _ in calls() if name in NEVER] == []


def test_the_dangerous_are_called_in_their_harmless_form():
    seen = set()
    for where, name, options in calls():
        if name == "torch.load":
            assert options["weights_only"] == "True", where
        elif name == "yaml.load":
            assert options["Loader"] == "_Loader", where
        elif name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", where
        elif name.startswith("subprocess."):
            assert options.get("shell", "False") == "False", where
        else:
            continue
        seen.add(name)
    assert {"torch.load", "yaml.load"} <= seen


def test_pages_and_cards_made_of_other_peoples_text_are_escaped():
    for where, name, options in calls():
        if name.endswith("Environment"):
            assert "autoescape" in options, where
