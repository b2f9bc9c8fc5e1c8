"""Only what is needed is fetched, and every failure is one clear error.

The hub is a stand-in on 127.0.0.1 that speaks as much of its protocol as a download takes;
huggingface_hub itself is the real one, in a process of its own, since it reads its environment
when imported. The package `modelscope` is a stand-in too.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save

from axcore.checkpoint import Checkpoint
from axcore.checkpoint.hub import _counting, _plain, _reporting
from axcore.testing import Recorder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]
CLIENT = """
import json, sys
from axcore.checkpoint import fetch
from axcore.errors import AxcoreError
from axcore.testing import Recorder

repo, prefix, source, revision = json.loads(sys.argv[1])
recorder = Recorder()
needed = None if prefix is None else lambda key: key.startswith(prefix)
try:
    folder = fetch(repo, needed=needed, source=source, revision=revision, progress=recorder)
    total, done = sum(recorder.totals.values()), sum(recorder.done.values())
    print(json.dumps({"folder": str(folder), "total": total, "done": done}))
except AxcoreError as error:
    kind = type(error).__name__
    print(json.dumps({"error": kind, "message": error.message, "hint": error.hint}))
"""


def repository() -> dict[str, bytes]:
    """A sharded checkpoint with everything a repository may hold besides."""
    shards = {
        "model-1.safetensors": {"model.norm.weight": torch.ones(300_000)},
        "model-2.safetensors": {"visual.proj.weight": torch.zeros(300, 1000)},
    }
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    return {
        "config.json": b'{"architectures": ["Toy"]}',
        "tokenizer.json": b"{}",
        "merges.txt": b"a b",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        **{name: save(tensors) for name, tensors in shards.items()},
        "pytorch_model.bin": b"a pickle",
        "consolidated.pth": b"a pickle",
        "flax_model.msgpack": b"more weights",
        "modeling_toy.py": b"raise SystemExit('executed')",
        "onnx/config.json": b"{}",
    }


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=repository)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    breaks_once: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> set[str]:
        return {name for method, name, _ in self.asked if method == "GET" and name != "listing"}

    def listing(self) -> bytes:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
        return json.dumps({"id": "x/toy", "sha": COMMIT, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = urlsplit(self.path).path
        name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
        name = name or "listing"
        wanted = self.headers.get("Range")
        self.hub.asked.append((self.command, name, wanted))
        if not path.startswith(("/x/toy/", "/api/models/x/toy")):
            return self.refuse(404, "RepoNotFound")
        if name in self.hub.refusals:
            return self.refuse(*self.hub.refusals[name])
        body = self.hub.listing() if name == "listing" else self.hub.files[name]
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if with_body and name in self.hub.breaks_once:
            self.hub.breaks_once.remove(name)
            self.wfile.write(body[: len(body) // 2])  # and the connection closes
        elif with_body:
            self.wfile.write(body[start:])
        return None

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *parts: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    handler = type("ThisHandler", (Handler,), {"hub": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@dataclass
class Client:
    """Runs `fetch` in a process of its own."""

    home: Path
    endpoint: str

    def fetch(
        self,
        repo: str = "x/toy",
        prefix: str | None = None,
        source: str = "huggingface",
        revision: str | None = None,
        **environment: str,
    ) -> dict[str, Any]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODELSCOPE"))}
        settings = {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, json.dumps([repo, prefix, source, revision])],
            env=inherited | settings | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(tmp_path / "home", hub.url)


def test_only_data_in_inspectable_formats_is_fetched(hub: Hub, client: Client) -> None:
    """All shards and settings, no pickle, no code, no subfolder; oracle: the server's log."""
    result = client.fetch()
    wanted = {name for name in hub.files if name.endswith((".json", ".txt", ".safetensors"))}
    assert hub.fetched() == wanted - {"onnx/config.json"}
    assert result["done"] == result["total"] == sum(len(hub.files[name]) for name in hub.fetched())
    with Checkpoint.open(Path(result["folder"])) as checkpoint:
        assert torch.equal(checkpoint.tensor("model.norm.weight"), torch.ones(300_000))


def test_a_vision_run_fetches_the_vision_shard_alone(hub: Hub, client: Client) -> None:
    """The other shard is never asked for; the next run adds it and repeats nothing."""
    first = client.fetch(prefix="visual.")
    assert "model-2.safetensors" in hub.fetched()
    assert not any(name == "model-1.safetensors" for _, name, _ in hub.asked)
    hub.asked.clear()
    second = client.fetch()
    assert hub.fetched() == {"model-1.safetensors"}
    assert second["folder"] == first["folder"]
    assert second["done"] == second["total"] > first["total"]


def test_settings_alone_are_fetched(hub: Hub, client: Client) -> None:
    """As for a package that is derived from them. Oracle: the server's log."""
    code = "from axcore.checkpoint.hub import fetch_settings; print(fetch_settings('x/toy'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HOME": str(client.home), "HF_ENDPOINT": hub.url,
                          "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = {name for name in hub.files if name.endswith((".json", ".txt"))}
    assert hub.fetched() == wanted - {"onnx/config.json"}
    assert (Path(done.stdout.strip()) / "config.json").read_bytes() == hub.files["config.json"]


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, client: Client) -> None:
    """The server cuts a shard in the middle; oracle: the range asked for, the bytes on disk."""
    name = "model-2.safetensors"
    # huggingface_hub keeps what arrived in steps of 10 MB, so half of it must be more.
    hub.files[name] = save({"visual.proj.weight": torch.zeros(24_000_000, dtype=torch.uint8)})
    hub.breaks_once.add(name)
    result = client.fetch(prefix="visual.")
    asked = [span for method, asked, span in hub.asked if (method, asked) == ("GET", name)]
    assert asked[0] is None
    assert asked[1] is not None
    assert 0 < int(asked[1].removeprefix("bytes=").rstrip("-")) <= len(hub.files[name]) // 2
    assert (Path(result["folder"]) / name).read_bytes() == hub.files[name]
    assert result["done"] == result["total"]


def test_offline_the_cache_serves_and_nothing_is_asked(hub: Hub, client: Client) -> None:
    """Same folder, no request; what the cache lacks is named."""
    first = client.fetch(prefix="visual.")
    hub.asked.clear()
    assert client.fetch(prefix="visual.", HF_HUB_OFFLINE="1")["folder"] == first["folder"]
    lacking = client.fetch(HF_HUB_OFFLINE="1")
    assert hub.asked == []
    assert lacking["error"] == "DownloadError"
    assert "absent: model-1.safetensors" in lacking["message"]


def test_an_unreachable_hub_is_replaced_by_the_cache(hub: Hub, client: Client) -> None:
    """Nobody listens at the port: the cache serves, and without one the error says why."""
    first = client.fetch()
    nobody = "http://127.0.0.1:9"
    assert client.fetch(HF_ENDPOINT=nobody)["folder"] == first["folder"]
    failed = client.fetch("x/other", HF_ENDPOINT=nobody)
    assert failed["error"] == "DownloadError"
    assert "cannot be reached" in failed["message"]
    assert "reason: " in failed["message"]
    assert "HF_ENDPOINT" in failed["hint"]


@pytest.mark.parametrize(
    ("refusals", "call", "message", "hint"),
    [
        ({}, {"repo": "x/unknown"}, "no such repository", "spelling"),
        ({}, {"repo": "x/unknown", "HF_HUB_OFFLINE": "1"}, "not in the cache", "HF_HUB_OFFLINE"),
        ({}, {"repo": "no/such/name"}, "no/such/name", "owner/name"),
        ({"listing": (401, "RepoNotFound")}, {}, "no such repository", "hf auth login"),
        ({"listing": (404, "RevisionNotFound")}, {"revision": "v9"}, "no such revision", "branch"),
        ({"listing": (503, "")}, {}, "503", "network"),
        ({"config.json": (403, "GatedRepo")}, {}, "access must be granted", "licence"),
        ({"model-1.safetensors": (403, "")}, {}, "403", "disk space"),
    ],
)
def test_a_failure_is_one_error_with_a_remedy(
    hub: Hub,
    client: Client,
    refusals: dict[str, tuple[int, str]],
    call: dict[str, str],
    message: str,
    hint: str,
) -> None:
    """Unknown, private, gated, offline, failing; oracle: the server's answer."""
    hub.refusals |= refusals
    result = client.fetch(**call)
    assert result["error"] == "DownloadError"
    assert message in result["message"]
    assert call.get("repo", "x/toy") in result["message"]
    assert hint in result["hint"]


@pytest.mark.parametrize(
    ("kept", "kind", "message"),
    [
        ({"config.json", "pytorch_model.bin"}, "CheckpointError", "pickles (pytorch_model.bin)"),
        ({"modeling_toy.py"}, "DownloadError", "no `config.json`"),
    ],
)
def test_a_repository_without_usable_weights_is_refused(
    hub: Hub, client: Client, kept: set[str], kind: str, message: str
) -> None:
    """Only pickles, or no model at all: refused without fetching them."""
    hub.files = {name: data for name, data in hub.files.items() if name in kept}
    result = client.fetch()
    assert result["error"] == kind
    assert message in result["message"]
    assert hub.fetched() <= {"config.json"}


def test_chunked_storage_reports_each_byte_once() -> None:
    """huggingface_hub shows two bars then, received and written bytes; oracle: the file's size."""
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    recorder = Recorder()
    with recorder.task("x", 100) as task:
        bar = _reporting(_counting(task, 100))
        with reporting.XetDownloadProgressReporter(
            reconstruction_desc="x", total=100, log_level=30, tqdm_class=bar
        ) as reporter:
            for done in (40, 70, 100):
                reporter.update_progress(Report(done, done + 10))
                assert done <= recorder.done["x"] <= done + 10
    assert recorder.done == {"x": 100}


@dataclass
class Report:
    """As much of hf_xet's progress report as the reporter reads."""

    total_bytes_completed: int
    total_transfer_bytes_completed: int
    total_bytes: int = 100
    total_bytes_completion_rate: float = 1.0
    total_transfer_bytes_completion_rate: float = 1.0


# ModelScope --------------------------------------------------------------------------------------

MODELSCOPE = {
    "__init__.py": "",
    "hub/__init__.py": "",
    "hub/api.py": """
import os
class HubApi:
    def get_model_files(self, model_id, revision="master", recursive=True):
        assert (model_id, revision, recursive) == ("x/toy", "v1", False)
        there = sorted(os.scandir(os.environ["STAND_IN"]), key=lambda entry: entry.name)
        return [{"Path": entry.name, "Size": entry.stat().st_size} for entry in there]
""",
    "hub/file_download.py": """
import os, shutil
def model_file_download(model_id, file_path, revision="master"):
    assert (model_id, revision) == ("x/toy", "v1")
    os.makedirs(os.environ["CACHE"], exist_ok=True)
    return shutil.copy(os.path.join(os.environ["STAND_IN"], file_path), os.environ["CACHE"])
""",
}


def test_modelscope_gives_the_same_choice_of_files(client: Client, tmp_path: Path) -> None:
    """Settings and the vision shard through a stand-in package; oracle: the folder it filled."""
    for name, text in MODELSCOPE.items():
        path = tmp_path / "modelscope" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "repository").mkdir()
    for name, data in repository().items():
        if "/" not in name:
            (tmp_path / "repository" / name).write_bytes(data)
    result = client.fetch(
        prefix="visual.",
        source="modelscope",
        revision="v1",
        PYTHONPATH=f"{ROOT}:{tmp_path}",
        STAND_IN=str(tmp_path / "repository"),
        CACHE=str(tmp_path / "cache"),
    )
    assert result["folder"] == str(tmp_path / "cache")
    assert result["done"] == result["total"]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "model.safetensors.index.json",
        "model-2.safetensors",
    }


def test_modelscope_that_is_not_installed_says_how_to_get_it(
    client: Client, tmp_path: Path
) -> None:
    """The package is optional; a stand-in that cannot be imported makes it absent everywhere."""
    (tmp_path / "modelscope.py").write_text("raise ImportError('not installed')")
    result = client.fetch(source="modelscope", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert result["error"] == "DownloadError"
    assert result["hint"] == "pip install 'axcore[modelscope]'"


@pytest.mark.parametrize(
    ("place", "fact", "remedy"),
    [
        ("/proc/nowhere", "No such file or directory", "HF_HOME"),
        ("FILE", "Not a directory", "HF_HOME"),
    ],
)
def test_a_cache_that_takes_no_file_is_named(
    client: Client, tmp_path: Path, place: str, fact: str, remedy: str
) -> None:
    """HOME or HF_HOME where nothing can be written. Before, the network was blamed.

    Oracle: the system's words.
    """
    (tmp_path / "file").touch()
    where = str(tmp_path / "file" / "x") if place == "FILE" else place
    result = client.fetch(HF_HOME=where)
    assert result["error"] == "DownloadError"
    assert f"{where}" in result["message"]
    assert fact in result["message"]
    assert remedy in result["hint"]


def test_names_of_a_listing_are_plain() -> None:
    """A hub may list anything. Oracle: the two names that a folder can have."""
    listed = {
        "config.json": 3, "a.txt": None, "../x.json": 1, "/etc/x.json": 1, "..": 1, ".": 1, "": 1,
        "a\\b.json": 1, "\x1b[2J.json": 1, "x" * 300: 1, 7: 1, "\ud800.json": 1, "n.json": -5,
    }  # fmt: skip
    assert _plain(listed) == {"config.json": 3, "a.txt": 0, "n.json": 0}
