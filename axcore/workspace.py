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
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from .bundle import CHECKSUMS, MANIFEST
from .display import printable
from .errors import BundleError, ContractError
from .files import (
    Checksums,
    Content,
    appearing,
    clear_leftovers,
    explained_full_disk,
    lock,
    owner_of,
    sha256,
    sign,
    sync,
    write_atomic,
)
from .foreign import inside, read_json
from .limits import RECORD_BYTES
from .plain import parse, shown
from .step import PUBLISHED, STATE, Step, check_state, check_step_name, published, walk

_RECORD, _LAST, _LOCK, _NOTED = "step.json", "last.json", "lock", "publishing"

Make = Callable[[Path], Mapping[str, Any] | None]
"""Writes files into the folder that it is given, and returns metrics."""


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
            BundleError: It holds something else, or links in its state; nothing was changed.
        """
        _check_folder(self.out, self._model)
        check_state(self.out)

    def is_current(self, identity: str) -> bool:
        """Say whether the published bundle was made from `identity` and is complete."""
        try:
            last = read_json(self._series / _LAST, RECORD_BYTES)
            current = last == self._published(identity)
        except (OSError, ValueError):
            return False
        listed = _Listed.of(self.out).files if current else {}
        # All of them are looked at: a record of checksums is kept of what was read.
        whole = [self._checksums.holds(self._place(name), listed[name]) for name in listed]
        self._checksums.save()  # a bundle that was copied is read in full, but only once
        return bool(whole) and all(whole)

    def remember(self, identity: str) -> None:
        """Record what the published bundle was made from, for `is_current`."""
        with explained_full_disk(self.out, "finished steps"):
            write_atomic(self._series / _LAST, json.dumps(self._published(identity)))

    def _published(self, identity: str) -> dict[str, str]:
        return {"identity": identity, "manifest": sha256(self.out / MANIFEST)}

    @contextmanager
    def locked(self) -> Iterator[Workspace]:
        """Lock the folder for this process, and remove what killed ones left in it.

        Raises:
            BundleError: The folder holds something else, cannot be written, or another process
                works in it.
        """
        self.check()
        with explained_full_disk(self.out):
            self.state.mkdir(parents=True, exist_ok=True)
            held = lock(self.state / _LOCK)
        if held is None:
            raise BundleError(
                f"another axcore process is working in {self.out}"
                f"\n  process id: {owner_of(self.state / _LOCK)}",
                hint="wait for it to end, or choose another folder with -o",
            )
        try:
            with explained_full_disk(self.out):
                sign(held)
                for folder in (self.out, self.state, *filter(Path.is_dir, walk(self.state))):
                    clear_leftovers(folder)
            yield self
        finally:
            self._checksums.save()
            os.close(held)

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Make,
        metrics: type[Any] | None = None,
    ) -> Step:
        """Return the step `name`, doing its work unless it was done from equal inputs.

        Args:
            name: Fit for a folder name.
            inputs: Everything that the result depends on, JSON-like. A `Path` in it stands for the
                content of that file.
            make: Writes files into the folder that it is given and returns metrics.
            metrics: A dataclass of what `make` returns; a record that does not fit is not used.

        Raises:
            ContractError: `name` is not fit, `make` left what is no file, or another step writes a
                file of the same name.
        """
        try:
            check_step_name(name)
            if name in {step.name for step in self.steps}:
                raise ValueError(f"{shown(name)} is taken")
        except ValueError as error:
            raise ContractError(f"a step cannot have that name: {error}") from error
        key = digest(inputs, self._described)
        self._checksums.save()  # hashing a checkpoint takes minutes, and `make` may fail
        step = self._finished(name, key, metrics) or self._make(name, key, make)
        self._check_owners(step)
        self.steps.append(step)
        return step

    def path(self, step: Step, name: str) -> Path:
        """Return where a file of a finished step lies now."""
        staged = self._folder(step.name, step.key) / name
        return staged if staged.exists() else self._place(name)

    def put(self, step: Step) -> dict[str, str]:
        """Move the files of a finished step into place, and remove those that it no longer makes.

        Returns:
            Name of every file that was not as a step had left it, to the name it is kept under.
        """
        record = self._record(step.name)
        older = Step.load(record)
        # Noted before the first move, so that the run after a crash knows which files are ours.
        # The name has the key, because the next run may have another request and note its own.
        noted = self._series / _NOTED / f"{step.name}.{step.key[:16]}.json"
        with explained_full_disk(self.out, "finished steps"):
            write_atomic(noted, step.dump())
            kept = dict(self._move(step))
            kept |= self._remove({*older.files} - self._current() if older else set())
            for folder in {self._place(name).parent for name in step.files}:
                sync(folder)  # the files are there before the record vouches for them
            record.parent.mkdir(exist_ok=True)
            noted.replace(record)
            sync(record.parent)
        return kept

    def publish(self, manifest: str | None = None) -> dict[str, str]:
        """Put the files of all steps into place, and remove files of steps that are gone.

        Args:
            manifest: Text of the bundle's manifest, written last; None leaves it alone.

        Returns:
            As `put` does.
        """
        before = {*_Listed.of(self.out).files} if manifest is not None else set[str]()
        kept = {name: aside for step in self.steps for name, aside in self.put(step).items()}
        with explained_full_disk(self.out, "finished steps"):
            kept |= self._remove((before | self._written().keys()) - self._current())
            for name in {step.name for step in self._records()} - {s.name for s in self.steps}:
                self._record(name).unlink(missing_ok=True)
            if manifest is not None:
                write_atomic(self.out / MANIFEST, manifest)
        for finished in ("steps", _NOTED):
            shutil.rmtree(self._series / finished, ignore_errors=True)
        return kept

    def _current(self) -> set[str]:
        return {name for step in self.steps for name in step.files}

    def _check_owners(self, step: Step) -> None:
        """Refuse a step that writes what another step of the bundle has written."""
        others = {series: published(series) for series in self.state.glob("*/")}
        others[self._series] = [other for other in self.steps if other.name != step.name]
        for series, steps in others.items():
            for other in steps:
                if both := sorted(step.files.keys() & other.files.keys()):
                    raise ContractError(
                        f"two steps write {both[0]}: `{other.name}` of {series.name} and"
                        f" `{step.name}` of {self._series.name}",
                        hint="whoever writes the steps has to give the file another name",
                    )

    def _written(self) -> dict[str, list[Content]]:
        """Map the name of every file of this series to the contents that runs wrote there."""
        written: dict[str, list[Content]] = {}
        noted = map(Step.load, (self._series / _NOTED).glob("*.json"))
        for step in chain(self._records(), filter(None, noted)):
            for name, content in step.files.items():
                written.setdefault(name, []).append(content)
        return written

    def _remove(self, obsolete: set[str]) -> dict[str, str]:
        """Remove files that runs wrote; what somebody changed since is set aside."""
        written, listed, kept = self._written(), _Listed.of(self.out).files, {}
        for name in obsolete:
            ours = [*written.get(name, ()), *([listed[name]] if name in listed else [])]
            if self._is_changed(path := self._place(name), ours):
                kept[name] = self._set_aside(path)
            elif path.is_file() or path.is_symlink():
                path.unlink()
        for folder in sorted({self._place(name).parent for name in obsolete} - {self.out}):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return kept

    def _finished(self, name: str, key: str, metrics: type[Any] | None) -> Step | None:
        for record in (self._folder(name, key) / _RECORD, self._record(name)):
            step = Step.load(record)
            if step is None or (step.name, step.key) != (name, key) or not self._is_whole(step):
                continue
            try:
                parse(metrics or Mapping, step.metrics)
            except ValueError:
                continue
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
        with (
            explained_full_disk(self.out, "finished steps"),
            appearing(final, durable=True) as temporary,
        ):
            temporary.mkdir()
            started = time.perf_counter()
            metrics = make(temporary) or {}
            contents = self._checksums.of_all(_files_below(temporary, name))
            files = {str(path.relative_to(temporary)): c for path, c in contents.items()}
            step = Step(name, key, files, metrics, round(time.perf_counter() - started, 3))
            (temporary / _RECORD).write_text(step.dump(), encoding="utf-8")
        self._checksums.rename(temporary, final)
        return step

    def _move(self, step: Step) -> Iterator[tuple[str, str]]:
        folder = self._folder(step.name, step.key)
        listed, written = _Listed.of(self.out).files, self._written()
        for name, content in step.files.items():
            source, target = folder / name, self._place(name)
            if not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            ours = [content, *written.get(name, ()), *([listed[name]] if name in listed else [])]
            if self._is_changed(target, ours):
                yield name, self._set_aside(target)
            self._checksums.move(source, target)

    def _is_changed(self, target: Path, ours: Sequence[Content]) -> bool:
        """Say whether `target` is a file that holds nothing that a run wrote there."""
        return target.is_file() and not any(self._checksums.holds(target, each) for each in ours)

    def _set_aside(self, path: Path) -> str:
        """Rename a file to the first free of ``<name>.orig``, ``<name>.orig.1`` and so on."""
        names = chain([f"{path.name}.orig"], (f"{path.name}.orig.{n}" for n in count(1)))
        kept = next(path.with_name(name) for name in names if not (path.parent / name).exists())
        self._checksums.move(path, kept)
        return str(kept.relative_to(self.out))

    def _place(self, name: str) -> Path:
        """Return where a file lies in the bundle, which must be below it.

        Raises:
            BundleError: A link leads elsewhere, or a file is in the place of a folder.
        """
        try:
            path = inside(self.out, name)
        except ValueError as error:
            raise BundleError(
                f"{self.out}: {error}", hint="remove the link; nothing was changed behind it"
            ) from error
        for parent in path.parents:
            if parent == self.out:
                break
            if parent.exists() and not parent.is_dir():
                raise BundleError(
                    f"{parent} is a file where a folder is needed", hint="rename it, and run again"
                )
        return path

    def _described(self, value: Any) -> Any:
        return asdict(self._checksums.of(value)) if isinstance(value, Path) else str(value)

    def _records(self) -> list[Step]:
        return published(self._series)

    def _record(self, name: str) -> Path:
        return self._series / PUBLISHED / f"{name}.json"

    def _folder(self, name: str, key: str) -> Path:
        return self._series / "steps" / name / key[:16]


@dataclass(frozen=True)
class _Model:
    id: str


@dataclass(frozen=True)
class _Listed:
    """As much of a manifest as says which files of the folder are the bundle's."""

    model: _Model
    files: Mapping[str, Content]

    @classmethod
    def of(cls, folder: Path) -> _Listed:
        """Read it; one that is missing or damaged lists nothing, nor does a name that leads out."""
        try:
            read = parse(cls, read_json(folder / MANIFEST, RECORD_BYTES))
        except (OSError, ValueError):
            return cls(_Model(""), {})
        return cls(read.model, {n: c for n, c in read.files.items() if _is_inside(folder, n)})


def _is_inside(folder: Path, name: str) -> bool:
    try:
        return inside(folder, name).parts[len(folder.parts)] != STATE
    except ValueError:
        return False


def _check_folder(out: Path, model: str) -> None:
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BundleError(f"{existing} is a file, not a folder", hint="choose a folder with -o")
    with explained_full_disk(out):
        if not out.exists() or not any(out.iterdir()):
            return
    if not (out / STATE).is_dir() and not (out / MANIFEST).is_file():
        names = ", ".join(sorted(path.name for path in out.iterdir())[:3])
        raise BundleError(
            f"{out} holds something else: {names}",
            hint="choose a new or empty folder with -o; nothing was changed",
        )
    holds = _Listed.of(out).model.id
    if holds not in ("", model):
        raise BundleError(
            f"{out} holds a bundle of `{printable(holds)}`, not of `{model}`",
            hint="choose another folder with -o; nothing was changed",
        )


def _files_below(folder: Path, step: str) -> list[Path]:
    """Return the files that a step has made.

    Raises:
        ContractError: It made a link or something else that is no file.
    """
    found = sorted(walk(folder))
    for path in found:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ContractError(
                f"step `{step}` left {path.relative_to(folder)}, a link or no regular file",
                hint="whoever writes the step has to copy what it refers to",
            )
    return [path for path in found if path.is_file()]
