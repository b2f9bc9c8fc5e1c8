"""Download the files of a repository that a conversion needs, and no others."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from ..errors import AxcoreError, DownloadError
from ..progress import Progress, Silent, Task
from ..request import Source
from .assets import ASSETS
from .shards import INDEX, read_index, sole_shard

Report = Callable[[float], None]
"""Takes the bytes of a file that are there by now."""

LISTING_TIMEOUT_S = 30
_BRIEF = 300  # characters of a message of others
_NAME_BYTES = 255  # the longest name of Linux
_FULL = {errno.ENOSPC, errno.EDQUOT}
ELSEWHERE = (
    "give `--checkpoint` a local folder, set HF_ENDPOINT to a mirror, or try another `--source`"
)


def fetch(
    repo_id: str,
    *,
    needed: Callable[[str], bool] | None = None,
    source: Source = "huggingface",
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a repository's settings and the shards that are needed into the hub's cache.

    Files already in the cache are not downloaded again, and interrupted downloads are resumed.
    HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and the stored token are honoured. If the hub cannot be
    reached, the files in the cache are used.

    Args:
        repo_id: ``owner/name``.
        needed: Whether the tensor of a key on disk is needed; None needs all of them. Shards
            without a needed tensor are not downloaded.
        revision: Branch, tag or commit; None for the default branch.

    Returns:
        The folder to open as a checkpoint. It is part of the cache: do not change it.

    Raises:
        DownloadError: A file could not be downloaded (the hint says what may help).
        CheckpointError: The repository has no usable weights.
    """
    progress, hub = progress or Silent(), _hub(repo_id, source, revision)
    with _explained(repo_id):
        folder, sizes = _settings(hub, repo_id, progress)
        shards = _needed_shards(folder, sizes, repo_id, needed)
        _transfer(hub, shards, sizes, f"weights of {repo_id}", progress)
    return folder


def fetch_settings(
    repo_id: str,
    *,
    source: Source = "huggingface",
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download what `fetch` does, but no weights; return the folder.

    Raises:
        DownloadError: A file could not be downloaded (the hint says what may help).
    """
    with _explained(repo_id):
        hub = _hub(repo_id, source, revision)
        return _settings(hub, repo_id, progress or Silent())[0]


def _hub(repo_id: str, source: Source, revision: str | None) -> _Hub:
    kind = _ModelScope if source == "modelscope" else _HuggingFace
    return kind(repo_id, revision)


def _settings(hub: _Hub, repo_id: str, progress: Progress) -> tuple[Path, dict[str, int]]:
    """Download the small files; return their folder, and the size of every file there is."""
    sizes = _plain(hub.sizes())
    if "config.json" not in sizes:
        raise DownloadError(
            f"`{repo_id}` has no `config.json`, so it holds no model\n"
            f"  found: {', '.join(sorted(sizes)[:5]) or 'nothing'}",
            hint="check the repository's name",
        )
    # No code, and no pickles.
    names = [name for name in sizes if name in ASSETS or name == INDEX]
    return _transfer(hub, names, sizes, f"settings of {repo_id}", progress), sizes


def _plain(listed: Mapping[Any, Any]) -> dict[str, int]:
    """Return the files whose names are plain, with sizes that can be: a hub may list anything."""
    return {
        name: max(0, size) if isinstance(size, int) else 0
        for name, size in listed.items()
        if isinstance(name, str) and name.isprintable() and not {"/", "\\"} & set(name)
        and name not in ("", ".", "..") and len(name.encode()) <= _NAME_BYTES
    }  # fmt: skip


class _Hub(Protocol):
    def sizes(self) -> Mapping[str, Any]:
        """Return the path of every file in the repository and its size in bytes."""

    def get(self, name: str, report: Report) -> Path:
        """Download one file, reporting its bytes as they arrive, and return its path."""


@dataclass
class _HuggingFace:
    _repo_id: str
    _revision: str | None
    _commit: str | None = None

    def sizes(self) -> Mapping[str, Any]:
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(
                self._repo_id,
                revision=self._revision,
                timeout=LISTING_TIMEOUT_S,
                files_metadata=True,
            )
        except Exception as error:
            if _is_final(error):
                raise
            return self._cached_sizes(error)
        self._commit = info.sha
        return {file.rfilename: file.size for file in info.siblings or ()}

    def get(self, name: str, report: Report) -> Path:
        from huggingface_hub import hf_hub_download

        # By the name of the revision, so that the cache records its commit for work offline.
        revision = self._revision if name == "config.json" else self._commit
        bar = _reporting(report)
        return Path(hf_hub_download(self._repo_id, name, revision=revision, tqdm_class=bar))

    def _cached_sizes(self, unreachable: Exception) -> Mapping[str, Any]:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self._repo_id, "config.json", revision=self._revision)
        if not isinstance(config, str):
            raise DownloadError(
                f"`{self._repo_id}` is not in the cache, and the hub cannot be reached\n"
                f"  reason: {_brief(unreachable)}",
                hint=f"check the network and that HF_HUB_OFFLINE is not set; or {ELSEWHERE}",
            ) from unreachable
        folder = Path(config).parent
        self._revision = self._commit = folder.name
        return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


class _ModelScope:
    def __init__(self, repo_id: str, revision: str | None) -> None:
        self._repo_id = repo_id
        self._revision = {"revision": revision} if revision else {}

    def sizes(self) -> Mapping[str, Any]:
        try:
            from modelscope.hub.api import HubApi
        except ImportError as error:
            raise DownloadError(
                "downloads from ModelScope need the package `modelscope`, which is not installed",
                hint="pip install 'axcore[modelscope]'",
            ) from error
        files = HubApi().get_model_files(self._repo_id, recursive=False, **self._revision)
        return {file["Path"]: file["Size"] for file in files}

    def get(self, name: str, report: Report) -> Path:
        del report  # the package shows its own bar and offers no other
        from modelscope.hub.file_download import model_file_download

        return Path(model_file_download(self._repo_id, name, **self._revision))


def _needed_shards(
    folder: Path, names: Iterable[str], repo_id: str, needed: Callable[[str], bool] | None
) -> list[str]:
    names = set(names)
    if INDEX not in names:
        return [sole_shard(names, repo_id)]
    index = read_index(folder / INDEX)
    shards = [name for name, keys in index.items() if needed is None or any(map(needed, keys))]
    if absent := sorted(set(shards) - names):
        raise DownloadError(
            f"`{repo_id}` offers {len(shards) - len(absent)} of the {len(shards)} shards needed\n"
            f"  absent: {', '.join(absent[:3])}",
            hint=f"when offline, connect once to download them; else {ELSEWHERE}",
        )
    return sorted(shards)


def _transfer(
    hub: _Hub, names: Iterable[str], sizes: Mapping[str, int], label: str, progress: Progress
) -> Path:
    """Download files one by one and return the folder of the last.

    Not huggingface_hub's `snapshot_download`: it downloads in threads, and Ctrl-C waits for the
    files that are under way, which may be gigabytes.
    """
    names = list(names)
    folder = Path()
    with progress.task(label, sum(sizes[name] for name in names), "B") as task:
        for name in names:
            report = _counting(task, sizes[name])
            folder = hub.get(name, report).parent
            report(sizes[name])  # all of it, where the cache had the file
    return folder


def _counting(task: Task, size: int) -> Report:
    """Return a report that advances `task` by each byte of a file once."""
    most = 0

    def report(done: float) -> None:
        nonlocal most
        before, most = most, max(most, min(int(done), size))
        task.advance(most - before)

    return report


def _reporting(report: Report) -> type[Any]:
    """Return a progress-bar class for huggingface_hub that shows nothing and reports bytes."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})

        # Of chunked storage there are two bars, bytes received and bytes written: both report,
        # and the one that is ahead counts.
        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report(self.n)

    return Bar


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except AxcoreError:
        raise
    except Exception as error:  # the libraries of the two hubs have no common base class
        fact, remedy = _explain(error)
        raise DownloadError(f"`{repo_id}` cannot be downloaded: {fact}", hint=remedy) from error


def _explain(error: Exception) -> tuple[str, str]:
    """Return what went wrong and what may help."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _explain(error.__cause__)  # the cause says why the hub did not answer
    if isinstance(error, errors.GatedRepoError):
        return (
            "access must be granted first",
            "accept the licence on the repository's page, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "the hub knows no such repository, or does not show it to you",
            "check the spelling; for a private one `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision", "name a branch, tag or commit that the repository has"
    if isinstance(error, errors.HFValidationError):
        return _brief(error), "name it as `owner/name`"
    if _of_disk(error):
        fact = f"cannot write {error.filename}: {error.strerror}"
        if error.errno in _FULL:
            return fact, "make room, or set HF_HOME to a folder on another disk"
        return fact, "set HF_HOME (MODELSCOPE_CACHE) to a folder that you may write to"
    return _brief(error), f"check the network and the free disk space; or {ELSEWHERE}"


def _is_final(error: Exception) -> bool:
    """Whether the hub has refused the request, or the disk: the cache is of no use then."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
    return refused or isinstance(error, HFValidationError) or _of_disk(error)


def _of_disk(error: Exception) -> TypeGuard[OSError]:
    # What a network raises names no file.
    return isinstance(error, OSError) and bool(error.filename and error.strerror)


def _brief(error: Exception) -> str:
    return next(filter(None, str(error).splitlines()), type(error).__name__)[:_BRIEF]
