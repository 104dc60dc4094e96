"""The results file: written after every case, so that a run that is stopped goes on later."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from versatileffn.bench.suite import Case
from versatileffn.errors import ConfigError
from versatileffn.files import write_json, writing

FORMAT = 1


class Results:
    """Settings of a run, and what each finished case found.

    Attributes:
        path: the JSON file.
        content: what stands in it.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @classmethod
    def open(
        cls, path: Path, settings: Mapping[str, Any], command: str, overwrite: bool = False
    ) -> "Results":
        """Continue a results file, or begin one.

        Args:
            path: the file; its folder is made.
            settings: what all cases share, JSON: threads, device, versions, seed, distributions.
            command: the command line, kept beside those of earlier runs.
            overwrite: forget results with other settings.

        Raises:
            ConfigError: the file holds something else, or results with other settings.
        """
        if path.exists() and not overwrite:
            found = cls.read(path)
            old = found.content["settings"]
            changed = [key for key in settings if old.get(key) != settings[key]]
            if changed:
                raise ConfigError(
                    f"{path} was measured with another {changed[0]}: choose another --out, or "
                    "pass --overwrite"
                )
            if command not in found.content["commands"]:
                found.content["commands"].append(command)
                found.save()
            return found
        content = {
            "format": FORMAT,
            "commands": [command],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": dict(settings),
            "cases": {},
        }
        results = cls(path, content)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            results.save()
        return results

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a results file.

        Raises:
            ConfigError: it can't be read, or isn't one.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or not isinstance(content["cases"], dict):
                raise ValueError("another format")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is no results file of `versatileffn bench` "
                f"({type(error).__name__}): choose another one"
            ) from None
        return cls(path, content)

    def missing(self, cases: Sequence[Case], source: str) -> list[Case]:
        """Cases that weren't measured yet, or with other settings or sources."""
        known = self.content["cases"]
        return [
            case
            for case in cases
            if case.name not in known
            or known[case.name]["source_sha256"] != source
            or known[case.name]["inputs"] != case.inputs()
        ]

    def add(self, case: Case, source: str, seconds: float, found: Mapping[str, Any]) -> None:
        """Keep what a case found, on disk."""
        self.content["cases"][case.name] = {
            "inputs": case.inputs(),
            "source_sha256": source,
            "seconds": seconds,
            "found": dict(found),
        }
        self.save()

    def found(self, kind: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Settings and findings of all finished cases of a kind, by name."""
        return {
            name: (case["inputs"]["settings"], case["found"])
            for name, case in self.content["cases"].items()
            if case["inputs"]["kind"] == kind
        }

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.content)
