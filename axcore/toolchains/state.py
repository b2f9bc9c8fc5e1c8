"""``build/state.json``: which steps are finished, and from what."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from ..files import Stamp, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


class Finished(BaseModel):
    """A finished step: the key of everything it depended on, its files and their bytes."""

    key: str
    outputs: dict[str, int]


class State(BaseModel):
    """What is known of earlier runs; empty where the file is missing or damaged."""

    stamps: dict[str, Stamp] = {}
    steps: dict[str, Finished] = {}

    @classmethod
    def load(cls, path: Path) -> State:
        """Read `path`. Believing nothing only costs time, so damage is no error."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls()

    def save(self, path: Path) -> None:
        """Write `path` in one go."""
        write_atomic(path, self.model_dump_json(indent=2) + "\n")

    def key(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        version: Sequence[str],
        inputs: Iterable[Path],
    ) -> str:
        """Return what identifies a step: its command, its tool and the contents it reads."""
        contents = {path.name: self._sha256(path) for path in inputs}
        identity = [list(words), dict(environment), list(version), contents]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def outputs_of(self, step: str, key: str, bundle: Path) -> list[Path] | None:
        """Return the files of a step finished under `key`; None if there is work to do."""
        done = self.steps.get(step)
        if done is None or done.key != key:
            return None
        paths = {bundle / name: size for name, size in done.outputs.items()}
        whole = all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
        return list(paths) if whole else None

    def _sha256(self, path: Path) -> str:
        """Hash a file, unless it looks as it did the last time: checkpoints take minutes."""
        now = path.stat()
        known = self.stamps.get(str(path))
        if known is None or (known.size, known.mtime_ns) != (now.st_size, now.st_mtime_ns):
            known = self.stamps[str(path)] = Stamp.of(path)
        return known.sha256
