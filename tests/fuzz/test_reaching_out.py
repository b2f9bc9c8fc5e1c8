"""What reading a stranger's checkpoint or bundle does besides: nothing.

Each runs in a process of its own under an audit hook, which hears of every file that is opened, of
processes, connections and imports, whichever library causes them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import axcore
from axcore.bundle import STATE

from ..built import IMAGE
from ..bundles import IMAGES, MODEL, change_json, environment, list_again

ROOT = Path(axcore.__file__).parents[1]

# Arguments: what to do, the stranger's folder, where to write, and the cache.
CHILD = f"""
import sys
from pathlib import Path
from tests.fuzz.watch import watching

task, given, out, cache, picture = sys.argv[1], *map(Path, sys.argv[2:])
# A bundle keeps the checksums of its files with its state.
allowed = [out, cache] if task == "convert" else [out, cache, given / {STATE!r}]
with watching(*allowed, foreign=(given,)) as watch:
    import axcore
    if task == "convert":
        images = [Path({str(IMAGES)!r})]
        axcore.convert({MODEL!r}, out / "bundle", checkpoint=str(given), images=images)
    elif task == "package":
        axcore.package(given, out / "board", runtime="python")
    else:
        runner = axcore.load(given)
        parts = [{{"type": "image", "image": picture}}, {{"type": "text", "text": "what?"}}]
        prompt = runner.prepare([{{"role": "user", "content": parts}}])
        list(runner.answer(prompt, max_new_tokens=2))
print(*watch.seen, sep="\\n")
"""


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.trace),)


def make_hostile(folder: Path, trace: Path) -> None:
    """Lay into a checkpoint or bundle what others might run, follow or print."""
    code = f"import os\nos.mkdir({str(trace)!r})\n"
    classes = {"AutoConfig": "modeling_it.C", "AutoModel": "modeling_it.M"}
    for name in ("modeling_it.py", "__init__.py", "sitecustomize.py", "torch.py", "build.sh.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "training_args.bin", "scheduler.pt", "it.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(trace)))
    change_json(
        folder / "config.json",
        auto_map=classes,
        trust_remote_code=True,
        _name_or_path="https://127.0.0.1:9/it",
        custom_pipelines={"it": {"impl": "modeling_it.P", "pt": ["AutoModel"]}},
        tokenizer_file="/etc/passwd",
        base_model_name_or_path="../elsewhere",
    )
    change_json(folder / "preprocessor_config.json", auto_map={"AutoProcessor": "modeling_it.P"})
    template = "{{ cycler.__init__.__globals__.os.mkdir(" + repr(str(trace)) + ") }}"
    settings = {"auto_map": {"AutoTokenizer": ["modeling_it.T", None]}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "\x1b[31mred\n.json").write_text("{}")


def reached(task: str, given: Path, out: Path) -> list[str]:
    """Do something with a stranger's folder in a process of its own; return what it reached for."""
    out.mkdir()
    cache = Path(os.environ["AXCORE_CACHE"])
    cache.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, task, str(given), str(out), str(cache), str(IMAGE)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_converting_a_strangers_checkpoint_does_nothing_else(
    own_checkpoint: Path, tmp_path: Path
) -> None:
    """Code, pickles, templates, links and addresses lie in it. Oracle: Python's audit events.

    What a link leads to, in or out of the folder, is not copied into the bundle.
    """
    trace, secret = tmp_path / "trace", tmp_path / "secret.txt"
    secret.write_text("a secret")
    make_hostile(own_checkpoint, trace)
    (own_checkpoint / "notes.txt").symlink_to(secret)
    assert reached("convert", own_checkpoint, tmp_path / "out") == []
    assert not trace.exists()
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"a secret" in path.read_bytes()]


def test_running_and_packaging_a_strangers_bundle_does_nothing_else(
    own: Path, tmp_path: Path
) -> None:
    """The same things lie in a bundle, whose manifest vouches for them. Oracle: as above."""
    trace = tmp_path / "trace"
    make_hostile(own, trace)
    changed = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
    list_again(own, *changed, "chat_template.jinja", "modeling_it.py")
    for task in ("run", "package"):
        assert reached(task, own, tmp_path / task) == [], task
    assert not trace.exists()


def test_the_hook_hears_of_everything(tmp_path: Path) -> None:
    """A process that does all of it. Oracle: the list of what it does."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "evil.py").write_text("")
    code = """
import os, socket, subprocess, sys, pathlib
from tests.fuzz.watch import watching
here = pathlib.Path(sys.argv[1])
with watching(here / "out", foreign=(here / "in",)) as watch:
    (here / "w").write_text("")
    (here / "w").rename(here / "v")
    (here / "v").unlink()
    os.mkdir(here / "d")
    os.rmdir(here / "d")
    os.symlink("x", here / "l")
    os.truncate(os.open(here / "t", os.O_CREAT | os.O_RDWR), 0)
    subprocess.run(["true"])
    os.system("true")
    for call in (lambda: socket.create_connection(("127.0.0.1", 9)),):
        try: call()
        except OSError: pass
    sys.path.insert(0, str(here / "in"))
    import evil
print(*[line.split()[0] for line in watch.seen])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.system"}
    heard |= {"subprocess.Popen", "socket.connect", "exec"}
    assert heard <= set(done.stdout.split())
