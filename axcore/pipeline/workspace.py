"""Steps in an output folder: keyed by their inputs, kept when done, published together.

A step writes into a folder of its own below ``OUT/.axcore``; that folder gets its final name when
the step is done. When all steps are done their files move into OUT. So OUT changes only after
everything has succeeded, and a run that dies anywhere leaves finished steps for the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..bundle import MANIFEST
from ..errors import BundleError
from ..files import Stamp, explained_full_disk, sha256, write_atomic

STATE = ".axcore"
_RECORD = "step.json"
_KEEP_BYTES = 1 << 20  # a changed file up to this size may be somebody's work


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        name: Its name.
        key: Digest of everything it was made from.
        files: Path below OUT to content.
        metrics: What it measured; reproducible.
        seconds: How long it took.
        reused: Whether an earlier run did the work.
    """

    name: str
    key: str
    files: Mapping[str, Stamp]
    metrics: Mapping[str, Any]
    seconds: float
    reused: bool = field(default=False, compare=False)

    def dump(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> Step | None:
        """Read a record; None when there is none or it is damaged."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            files = {name: Stamp(**stamp) for name, stamp in raw.pop("files").items()}
            return cls(**{**raw, "files": files, "reused": True})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def digest(value: object) -> str:
    """Return the sha256 of a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Workspace:
    """The output folder of a conversion, locked while it is used.

    Args:
        out: The folder; made when absent.
        model: Id of the model; a folder holding a bundle of another one is refused.
    """

    def __init__(self, out: Path, model: str) -> None:
        self.out, self._model = out, model
        self.state = out / STATE
        self.steps: list[Step] = []

    def check(self) -> None:
        """Refuse a folder that holds something else than a bundle of this model.

        Raises:
            BundleError: It does; nothing was changed.
        """
        _check_folder(self.out, self._model)

    def is_current(self, record: str, identity: str) -> bool:
        """Whether the published bundle was made from `identity` and is whole."""
        try:
            last = json.loads((self.state / record).read_text(encoding="utf-8"))
            published = self._published(identity)
        except (OSError, ValueError):
            return False
        steps = self._records()
        return bool(last == published and steps and all(map(self._whole, steps)))

    def remember(self, record: str, identity: str) -> None:
        """Keep for `is_current` what the published bundle was made from."""
        write_atomic(self.state / record, json.dumps(self._published(identity)))

    def _published(self, identity: str) -> dict[str, str]:
        return {"identity": identity, "manifest": sha256(self.out / MANIFEST)}

    @contextmanager
    def locked(self) -> Iterator[Workspace]:
        """Hold the folder for this process.

        Raises:
            BundleError: The folder holds something else, or another process works in it.
        """
        self.check()
        with explained_full_disk(self.out):
            self.state.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.state / "lock")
        owner = self.state / "owner"
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            who = owner.read_text().strip() if owner.exists() else "unknown"
            raise BundleError(
                f"another axcore process is working in {self.out}\n  process id: {who}",
                hint="wait for it to end, or choose another folder with -o",
            ) from error
        try:
            with explained_full_disk(self.out):
                owner.write_text(str(os.getpid()))
            yield self
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def run(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any] | None]
    ) -> Step:
        """Return the step `name`, doing its work unless it was done from equal inputs.

        Args:
            name: Fit for a folder name.
            inputs: Everything the result depends on, JSON-like.
            make: Writes files into the folder it is given and returns metrics.
        """
        key = digest(inputs)
        step = self._finished(name, key) or self._make(name, key, make)
        self.steps.append(step)
        return step

    def path(self, step: Step, name: str) -> Path:
        """Return where a file of a finished step lies now."""
        staged = self._folder(step.name, step.key) / name
        return staged if staged.exists() else self.out / name

    def publish(self, manifest: str) -> list[str]:
        """Move the files of all steps into place, write the manifest, remove what is obsolete.

        Returns:
            Names of small files that somebody had changed; each is kept as ``<name>.orig``.
        """
        kept: list[str] = []
        with explained_full_disk(self.out, "finished steps"):
            # Noted before the first move: after a crash the next run knows what is ours.
            for step in self.steps:
                noted = self.state / "publishing" / f"{step.name}-{step.key[:16]}.json"
                write_atomic(noted, step.dump())
            known = self._known()
            for step in self.steps:
                kept += self._move(step, known)
            self._remove(known.keys() - {name for step in self.steps for name in step.files})
            for name in {record.name for record in self._records()} - {s.name for s in self.steps}:
                self._record(name).unlink(missing_ok=True)
            staged = self.state / MANIFEST  # not beside its goal, where a crash would leave it
            staged.write_text(manifest, encoding="utf-8")
            staged.replace(self.out / MANIFEST)
        for finished in ("steps", "publishing"):
            shutil.rmtree(self.state / finished, ignore_errors=True)
        return kept

    def _known(self) -> dict[str, list[Stamp]]:
        """Map the name of every file that is ours to all that a run may have written there."""
        known = _listed_files(self.out / MANIFEST)
        for path in self.state.glob("publish*/*.json"):
            record = Step.load(path)
            for name, stamp in record.files.items() if record else ():
                known.setdefault(name, []).append(stamp)
        return known

    def _remove(self, obsolete: set[str]) -> None:
        for name in obsolete:
            (self.out / name).unlink(missing_ok=True)
        for folder in sorted({(self.out / name).parent for name in obsolete} - {self.out}):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _finished(self, name: str, key: str) -> Step | None:
        staged = Step.load(self._folder(name, key) / _RECORD)
        if staged is not None and self._whole(staged):
            return staged
        published = Step.load(self._record(name))
        if published is not None and published.key == key and self._whole(published):
            return published
        return None

    def _whole(self, step: Step) -> bool:
        return all(stamp.holds(self.path(step, name)) for name, stamp in step.files.items())

    def _make(self, name: str, key: str, make: Callable[[Path], Mapping[str, Any] | None]) -> Step:
        final = self._folder(name, key)
        shutil.rmtree(final.parent, ignore_errors=True)
        temporary = final.with_name("unfinished")
        with explained_full_disk(self.out, "finished steps"):
            temporary.mkdir(parents=True)
            started = time.perf_counter()
            metrics = make(temporary) or {}
            files = {str(p.relative_to(temporary)): Stamp.of(p) for p in _files_below(temporary)}
            step = Step(name, key, files, metrics, round(time.perf_counter() - started, 3))
            write_atomic(temporary / _RECORD, step.dump())
            temporary.replace(final)
        return step

    def _move(self, step: Step, known: Mapping[str, Sequence[Stamp]]) -> Iterator[str]:
        folder = self._folder(step.name, step.key)
        for name in step.files:
            source, target = folder / name, self.out / name
            if not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if _is_somebodys(target, known[name]):
                target.replace(target.with_name(f"{target.name}.orig"))
                yield name
            source.replace(target)
        if (folder / _RECORD).exists():
            self._record(step.name).parent.mkdir(exist_ok=True)
            (folder / _RECORD).replace(self._record(step.name))

    def _records(self) -> list[Step]:
        records = (Step.load(path) for path in sorted((self.state / "published").glob("*.json")))
        return [record for record in records if record is not None]

    def _record(self, name: str) -> Path:
        return self.state / "published" / f"{name}.json"

    def _folder(self, name: str, key: str) -> Path:
        return self.state / "steps" / name / key[:16]


def _check_folder(out: Path, model: str) -> None:
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BundleError(f"{existing} is a file, not a folder", hint="choose a folder with -o")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / STATE).is_dir() and not (out / MANIFEST).is_file():
        names = ", ".join(sorted(path.name for path in out.iterdir())[:3])
        raise BundleError(
            f"{out} holds something else: {names}",
            hint="choose a new or empty folder with -o; nothing was changed",
        )
    try:
        holds = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["model"]["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if holds != model:
        raise BundleError(
            f"{out} holds a bundle of `{holds}`, not of `{model}`",
            hint="choose another folder with -o; nothing was changed",
        )


def _is_somebodys(target: Path, ours: Sequence[Stamp]) -> bool:
    """Whether `target` holds what no run of ours wrote, and is small enough to keep."""
    if not target.is_file() or target.stat().st_size > _KEEP_BYTES:
        return False
    return not any(stamp.holds(target) for stamp in ours)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _listed_files(manifest: Path) -> dict[str, list[Stamp]]:
    """Return the files a manifest lists, none of which may lead out of its folder."""
    root = manifest.parent.resolve()
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"].items()
        return {
            name: [Stamp(entry["size"], entry["sha256"])]
            for name, entry in listed
            if (root / name).resolve().is_relative_to(root)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
