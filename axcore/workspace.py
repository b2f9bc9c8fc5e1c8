"""Resumable steps in a bundle folder: keyed by their inputs, reused while unchanged, published.

A step writes into a folder of its own below ``OUT/.axcore``; that folder gets its final name when
the step is done. Publishing moves the files of finished steps into OUT. So a file appears in OUT
only when the step that makes it has succeeded, and a run that dies anywhere leaves its finished
steps for the next one. Conversions and builds are series of such steps.
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

from .bundle import CHECKSUMS, MANIFEST, STATE
from .errors import BundleError
from .files import Checksums, Content, appearing, explained_full_disk, sha256, write_atomic

_RECORD, _LAST = "step.json", "last.json"
_KEEP_BYTES = 1 << 20  # a changed file up to this size may be a user's edit

Make = Callable[[Path], Mapping[str, Any] | None]
"""Writes files into the folder that it is given, and returns metrics."""


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        name: Its name.
        key: Digest of everything that the result depends on.
        files: Path below OUT to content.
        metrics: What it measured; reproducible.
        seconds: How long it took.
        reused: Whether an earlier run did the work.
    """

    name: str
    key: str
    files: Mapping[str, Content]
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
            files = {name: Content(**content) for name, content in raw.pop("files").items()}
            return cls(**{**raw, "files": files, "reused": True})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def digest(value: object, default: Callable[[Any], Any] = str) -> str:
    """Return the SHA-256 of a JSON-like value; `default` converts what JSON does not have."""
    text = json.dumps(value, sort_keys=True, default=default)
    return hashlib.sha256(text.encode()).hexdigest()


class Workspace:
    """The output folder of a series of steps, locked while it is used.

    Args:
        out: The folder; made when absent.
        model: Id of the model; a folder that holds a bundle of another one is refused.
        series: Names the steps that belong together, such as ``convert``. Publishing removes what
            earlier runs of the same series left, never the files of another series.
    """

    def __init__(self, out: Path, model: str, series: str = "convert") -> None:
        self.out, self._model = out, model
        self.state = out / STATE
        self.steps: list[Step] = []
        self._series = self.state / series
        self._checksums = Checksums(out / CHECKSUMS)

    def check(self) -> None:
        """Refuse a folder that holds anything but a bundle of this model.

        Raises:
            BundleError: It holds something else; nothing was changed.
        """
        _check_folder(self.out, self._model)

    def is_current(self, identity: str) -> bool:
        """Say whether the published bundle was made from `identity` and is complete."""
        try:
            last = json.loads((self._series / _LAST).read_text(encoding="utf-8"))
            published = self._published(identity)
        except (OSError, ValueError):
            return False
        steps = self._records()
        current = bool(last == published and steps and all(map(self._is_whole, steps)))
        self._checksums.save()  # a bundle that was copied is read in full, but only once
        return current

    def remember(self, identity: str) -> None:
        """Record what the published bundle was made from, for `is_current`."""
        write_atomic(self._series / _LAST, json.dumps(self._published(identity)))

    def _published(self, identity: str) -> dict[str, str]:
        return {"identity": identity, "manifest": sha256(self.out / MANIFEST)}

    @contextmanager
    def locked(self) -> Iterator[Workspace]:
        """Lock the folder for this process.

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
            process = owner.read_text().strip() if owner.exists() else "unknown"
            raise BundleError(
                f"another axcore process is working in {self.out}\n  process id: {process}",
                hint="wait for it to end, or choose another folder with -o",
            ) from error
        try:
            with explained_full_disk(self.out):
                owner.write_text(str(os.getpid()))
            yield self
        finally:
            self._checksums.save()
            owner.unlink(missing_ok=True)
            lock.release()

    def run(self, name: str, inputs: Mapping[str, Any], make: Make) -> Step:
        """Return the step `name`, doing its work unless it was done from equal inputs.

        Args:
            name: Fit for a folder name.
            inputs: Everything that the result depends on, JSON-like. A `Path` in it stands for the
                content of that file.
            make: Writes files into the folder that it is given and returns metrics.
        """
        key = digest(inputs, self._described)
        self._checksums.save()  # hashing a checkpoint takes minutes, and `make` may fail
        step = self._finished(name, key) or self._make(name, key, make)
        self.steps.append(step)
        return step

    def path(self, step: Step, name: str) -> Path:
        """Return where a file of a finished step lies now."""
        staged = self._folder(step.name, step.key) / name
        return staged if staged.exists() else self.out / name

    def put(self, step: Step) -> list[str]:
        """Move the files of a finished step into place, and remove those that it no longer makes.

        Returns:
            Names of small files that a user had edited; each is kept as ``<name>.orig``.
        """
        record = self._record(step.name)
        older = Step.load(record)
        # Noted before the first move, so that the run after a crash knows which files are ours.
        # The name has the key, because the next run may have another request and note its own.
        noted = self._series / "publishing" / f"{step.name}.{step.key[:16]}.json"
        with explained_full_disk(self.out, "finished steps"):
            write_atomic(noted, step.dump())
            kept = list(self._move(step))
            self._remove(set(older.files) - self._current() if older else set())
            record.parent.mkdir(exist_ok=True)
            noted.replace(record)
        return kept

    def publish(self, manifest: str | None = None) -> list[str]:
        """Put the files of all steps into place, and remove files of steps that are gone.

        Args:
            manifest: Text of the bundle's manifest, written last; None leaves it alone.

        Returns:
            As `put` does.
        """
        before = _listed_files(self.out / MANIFEST) if manifest is not None else {}
        kept = [name for step in self.steps for name in self.put(step)]
        self._remove((before.keys() | self._written().keys()) - self._current())
        for name in {record.name for record in self._records()} - {s.name for s in self.steps}:
            self._record(name).unlink(missing_ok=True)
        if manifest is not None:
            with explained_full_disk(self.out, "finished steps"):
                write_atomic(self.out / MANIFEST, manifest)
        for finished in ("steps", "publishing"):
            shutil.rmtree(self._series / finished, ignore_errors=True)
        return kept

    def _current(self) -> set[str]:
        return {name for step in self.steps for name in step.files}

    def _written(self) -> dict[str, list[Content]]:
        """Map the name of every file of this series to the contents that runs wrote there."""
        written: dict[str, list[Content]] = {}
        for path in self._series.glob("publish*/*.json"):
            record = Step.load(path)
            for name, content in record.files.items() if record else ():
                written.setdefault(name, []).append(content)
        return written

    def _remove(self, obsolete: set[str]) -> None:
        for name in obsolete:
            (self.out / name).unlink(missing_ok=True)
        for folder in sorted({(self.out / name).parent for name in obsolete} - {self.out}):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _finished(self, name: str, key: str) -> Step | None:
        for record in (self._folder(name, key) / _RECORD, self._record(name)):
            step = Step.load(record)
            if step is not None and step.key == key and self._is_whole(step):
                return step
        return None

    def _is_whole(self, step: Step) -> bool:
        return all(
            self._checksums.holds(self.path(step, name), content)
            for name, content in step.files.items()
        )

    def _make(self, name: str, key: str, make: Make) -> Step:
        final = self._folder(name, key)
        shutil.rmtree(final.parent, ignore_errors=True)
        with explained_full_disk(self.out, "finished steps"), appearing(final) as temporary:
            temporary.mkdir()
            started = time.perf_counter()
            metrics = make(temporary) or {}
            contents = self._checksums.of_all(_files_below(temporary))
            files = {str(path.relative_to(temporary)): c for path, c in contents.items()}
            step = Step(name, key, files, metrics, round(time.perf_counter() - started, 3))
            (temporary / _RECORD).write_text(step.dump(), encoding="utf-8")
        self._checksums.rename(temporary, final)
        return step

    def _move(self, step: Step) -> Iterator[str]:
        folder = self._folder(step.name, step.key)
        listed, written = _listed_files(self.out / MANIFEST), self._written()
        for name, content in step.files.items():
            source, target = folder / name, self.out / name
            if not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            ours = [content, *written.get(name, ()), *([listed[name]] if name in listed else [])]
            if self._is_changed(target, ours):
                target.replace(target.with_name(f"{target.name}.orig"))
                yield name
            self._checksums.move(source, target)

    def _is_changed(self, target: Path, ours: Sequence[Content]) -> bool:
        """Say whether `target` was edited by a user, and is small enough to keep a copy of."""
        if not target.is_file() or target.stat().st_size > _KEEP_BYTES:
            return False
        return not any(self._checksums.holds(target, content) for content in ours)

    def _described(self, value: Any) -> Any:
        return asdict(self._checksums.of(value)) if isinstance(value, Path) else str(value)

    def _records(self) -> list[Step]:
        records = (Step.load(path) for path in sorted((self._series / "published").glob("*.json")))
        return [record for record in records if record is not None]

    def _record(self, name: str) -> Path:
        return self._series / "published" / f"{name}.json"

    def _folder(self, name: str, key: str) -> Path:
        return self._series / "steps" / name / key[:16]


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


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _listed_files(manifest: Path) -> dict[str, Content]:
    """Return the files a manifest lists, none of which may lead out of its folder."""
    root = manifest.parent.resolve()
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"].items()
        return {
            name: Content(entry["size"], entry["sha256"])
            for name, entry in listed
            if (root / name).resolve().is_relative_to(root)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
