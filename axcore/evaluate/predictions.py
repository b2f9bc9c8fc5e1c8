"""Prediction files: the JSON file of answers that each side of a comparison writes."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import explained_full_disk, write_atomic
from ..foreign import decode_json, read_bytes, reason
from ..limits import PREDICTIONS_BYTES
from ..plain import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LISTED = 5  # images named in one message
_SHOWN = 200  # characters of a setting
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: no character, and no text


@dataclass(frozen=True)
class Predictions:
    """The answers in one file.

    Attributes:
        path: Where they were read from.
        answers: Name of the image in the file to answer.
    """

    path: Path
    answers: Mapping[str, str]

    def by_base_name(self) -> dict[str, str]:
        """Return the answers under the last part of each image's path.

        Raises:
            UsageError: Two images share a base name.
        """
        _check_distinct(self.answers, str(self.path))
        return {Path(name).name: text for name, text in self.answers.items()}


class PredictionFile:
    """A prediction file that is written image by image and complete after each.

    Where the disk is full, methods raise BudgetError and leave the file as it was.

    The file is a flat, sorted JSON object of image to answer, as other tools write and read it.
    Answers that it has already are kept. Settings and errors are in a second file beside it, for
    ``captions.json`` in ``captions.json.run.json``::

        {"settings": {"prompt": "..."}, "errors": {"bad.jpg": "cannot be read as an image"}}

    Attributes:
        path: The file.
        answers: Image to answer.
        errors: Image to why there is no answer; an answer removes the entry.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a file, or create one.

        Args:
            settings: What the answers depend on, as JSON: prompt, model, sampling.

        Raises:
            UsageError: The file cannot be read, or its answers were given with other settings or
                with unknown ones.
            BundleError: The folder cannot be written to.
        """
        self.path = path
        self.answers = dict(read_predictions(path).answers) if path.exists() else {}
        self._run_path = path.with_name(f"{path.name}.run.json")
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.errors = self._resumed()
        self._write_run()

    def ask_about(self, images: Iterable[str]) -> None:
        """Drop the errors of all images but these: the others may no longer exist."""
        asked = set(images)
        self.errors = {name: why for name, why in self.errors.items() if name in asked}
        self._write_run()

    def record(self, image: str, answer: str) -> None:
        """Add an answer to the file."""
        self.answers[image] = answer
        self._write(self.path, self.answers)
        if self.errors.pop(image, None) is not None:
            self._write_run()

    def fail(self, image: str, reason: str) -> None:
        """Record why an image has no answer; it is tried again when the run is resumed."""
        self.errors[image] = reason
        self._write_run()

    def _resumed(self) -> dict[str, str]:
        """Return the errors of an earlier run, if it had the same settings."""
        if not self._run_path.exists():
            if not self.answers:
                return {}
            raise UsageError(
                f"{self.path} holds {len(self.answers)} answers, but there is no"
                f" {self._run_path.name} to say with which settings they were given",
                hint="choose another file with -o, or put that one back beside it to resume",
            )
        earlier = _json_object(self._run_path)
        settings, errors = earlier.get("settings"), earlier.get("errors")
        if not isinstance(settings, dict) or not isinstance(errors, dict):
            raise UsageError(
                f"{self._run_path} does not hold the settings and errors of an earlier run",
                hint="choose another file with -o",
            )
        if self.answers and settings != self._settings:
            raise UsageError(
                f"{self.path} holds {len(self.answers)} answers given under other settings\n"
                + "\n".join(_changes(settings, self._settings)),
                hint="choose another file with -o, or repeat the settings to resume",
            )
        return {str(image): str(reason) for image, reason in errors.items()}

    def _write_run(self) -> None:
        self._write(self._run_path, {"settings": self._settings, "errors": self.errors})

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        # File names that are no UTF-8 reach Python as lone surrogates; JSON spells those \udcff.
        text = text.encode("utf-8", "backslashreplace").decode()
        with explained_full_disk(path.parent):
            write_atomic(path, text)


def read_predictions(path: Path) -> Predictions:
    """Read a prediction file, of axcore or of another tool.

    Raises:
        UsageError: It is missing, larger than `PREDICTIONS_BYTES`, not a flat JSON object of image
            to text, or names an image twice.
    """
    answers = _json_object(path)
    for image, answer in answers.items():
        if not isinstance(answer, str) or _HALF.search(answer):
            what = type(answer).__name__
            raise UsageError(
                f"{path} gives {shown(image)} no text but"
                f" {'half a character' if isinstance(answer, str) else what}",
                hint="a prediction file is one JSON object from image to answer",
            )
    return Predictions(path, answers)


def keys_of(images: Sequence[str], *, base_names: bool) -> dict[str, str]:
    """Return the name that each image has in a prediction file, by the image's own name.

    That is its absolute path, however the folder was given. Symbolic links to folders are
    resolved; an image that is a link keeps its own name.

    Args:
        base_names: Use base names, as the reference side of a comparison does.

    Raises:
        UsageError: Two images would share an entry.
    """
    if not base_names:
        return {image: str(Path(image).parent.resolve() / Path(image).name) for image in images}
    _check_distinct(images, "the images")
    return {image: Path(image).name for image in images}


def sharing_a_base_name(images: Iterable[str]) -> list[str]:
    """Return the images that share the most common base name, sorted; none if all differ."""
    images = list(images)
    counts = Counter(Path(image).name for image in images)
    ((name, count),) = counts.most_common(1) or [("", 0)]
    return sorted(one for one in images if Path(one).name == name) if count > 1 else []


def match(sides: Sequence[Predictions], *, common: bool = False) -> dict[str, tuple[str, ...]]:
    """Pair the answers of several files by the base names of their images.

    Args:
        sides: One file or more.
        common: Ignore images that are not in all files, instead of refusing them.

    Returns:
        Base name, sorted, to one answer per side.

    Raises:
        UsageError: A base name is ambiguous, no image is in all files, or (unless `common`)
            some image is not.
    """
    named = [side.by_base_name() for side in sides]
    shared = set(named[0]).intersection(*named[1:])
    if not shared:
        raise UsageError(
            "no image is in " + ("all files" if len(sides) > 1 else "the file") + "\n"
            + "\n".join(f"  {side.path}: {_listed(names)}"
                        for side, names in zip(sides, named, strict=True)),
            hint="compare answers to the same images; they are matched by file name",
        )  # fmt: skip
    if not common:
        _check_matched(sides, named, shared)
    return {name: tuple(side[name] for side in named) for name in sorted(shared)}


def _check_matched(
    sides: Sequence[Predictions], named: Sequence[Mapping[str, str]], shared: set[str]
) -> None:
    facts = [
        f"  {side.path} has besides: {_listed(alone)}"
        for side, names in zip(sides, named, strict=True)
        if (alone := names.keys() - shared)
    ]
    if facts:
        raise UsageError(
            f"the files do not have the same images; {len(shared)} are in all\n" + "\n".join(facts),
            hint="finish the shorter file, or compare the common images alone with --common",
        )


def _check_distinct(images: Iterable[str], place: str) -> None:
    if sharing := sharing_a_base_name(images):
        raise UsageError(
            f"{len(sharing)} images share the base name `{Path(sharing[0]).name}`\n"
            f"  in {place}: {', '.join(sharing[:LISTED])}",
            hint="rename all but one: images are matched by base name",
        )


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for every setting that differs."""
    return [
        f"  {name[:_SHOWN]}: then {json.dumps(earlier.get(name))[:_SHOWN]},"
        f" now {json.dumps(now.get(name))[:_SHOWN]}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    ]


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} ({', '.join(names[:LISTED])}{more})" if names else "none"


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = decode_json(read_bytes(path, PREDICTIONS_BYTES), unique=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as JSON\n  {reason(error)}", hint="name a prediction file"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} is no JSON object but {type(content).__name__}",
            hint="a prediction file is one JSON object from image to answer",
        )
    return content
