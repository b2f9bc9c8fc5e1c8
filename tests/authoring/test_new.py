"""`axcore plugins new`: what it derives, what it says it could not, and that nothing gets in."""

from __future__ import annotations

import ast
import json
import resource
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import AxcoreError, CheckpointError, UnsupportedModel, UsageError
from axcore.authoring import package
from axcore.authoring.chat import find_chat, written
from axcore.authoring.package import EXAMPLE, new_plugin
from axcore.authoring.tower import FEATURES, Tower

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Publish

# A tower as it is found for the example; finding it takes seconds and is tried where it is used.
FOUND = Tower(
    architecture="LlavaForConditionalGeneration",
    blocks="model.vision_tower.encoder.layers",
    skipped=1,
    unused=("model.vision_tower.encoder.layers.2.",),
    shape=(1, 3, 224, 224),
    rows=196,
    features=FEATURES.format(further=""),
    tiny={"vision_config": {"num_hidden_layers": 3}},
    prefixes={"model.vision_tower.": ("model.vision_tower.", "vision_tower.")},
    text_prefixes=("model.language_model.", "lm_head."),
)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the search of the tower, where a test is about something else."""
    monkeypatch.setattr(package, "find_tower", lambda config, side: FOUND)


def sources(folder: Path) -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text()) for path in folder.rglob("*.py")}


def ruff(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "."]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.usefixtures("found")
def test_what_is_generated_is_clean(tmp_path: Path, published: Publish) -> None:
    """Whole, and where something is missing. Oracle: ruff with its own defaults."""
    assert not new_plugin("foovl", None, tmp_path).todo
    config = published(
        {"text_config": {"model_type": "stablelm"}}, chat_template=None, tokenizer_config="{}"
    )
    assert new_plugin("barvl", config, tmp_path, "bar/Bar-VL").todo.keys() == {"prompt", "language"}
    for arguments in (("check",), ("format", "--check")):
        done = ruff(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_could_not_be_derived_is_a_failing_test(
    tmp_path: Path, published: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower, the chat template and the language model. Oracle: pytest's own report."""

    def missing(config: dict[str, Any], side: int) -> Tower:
        raise UnsupportedModel('the tower was not "found"\n  it hides')

    monkeypatch.setattr(package, "find_tower", missing)
    config = published(
        {"text_config": {"model_type": "stablelm"}},
        chat_template="{{ messages | length }}",
    )
    made = new_plugin("foovl", config, tmp_path, "foo/Foo-VL")
    assert made.todo.keys() == {"vision", "prompt", "language"}
    assert "stablelm" in made.todo["language"]
    assert "TODO(author)" in (made.folder / "vision.py").read_text()
    assert "\n  it hides" in ast.literal_eval(
        next(
            node.value
            for node in sources(made.folder)["vision.py"].body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REASON"
        )
    )
    tests = made.folder / "tests" / "test_foovl.py"
    text = tests.read_text().replace("from axcore.testing import check_family\n", "")
    names: dict[str, Any] = {}
    exec(compile(text, "test", "exec"), names)
    for topic, reason in made.todo.items():
        with pytest.raises(AssertionError) as failure:
            names[f"test_{topic}_is_written"]()
        assert str(failure.value) == reason


# Hostile input -----------------------------------------------------------------------------------

EVIL = "\"\"\"\n'''\n$name ${name} {{ }} \\ \x00 #\nraise SystemExit(3)\n\ud800\u2028é"


def evil(text: str) -> dict[str, Any]:
    """Return a config with a text as a value, and as a name, wherever it is used."""
    return {
        text: text,
        "image_token_index": 151646,
        "text_config": {text: {"hidden_size": 5}, "rope_type": text},
        "vision_config": {"model_type": text},
    }


@pytest.mark.usefixtures("found")
def test_values_stay_values(tmp_path: Path) -> None:
    """Whatever is written in the files. Oracle: the tree of each generated source without them."""
    folder, text = tmp_path, EVIL
    shutil.copytree(EXAMPLE.parent, folder / "plain")
    shutil.copytree(EXAMPLE.parent, folder / "evil")
    config = {**json.loads(EXAMPLE.read_text()), **evil(text)}
    (folder / "evil" / "config.json").write_text(json.dumps(config))
    tokens = {"eos_token": text, "added_tokens_decoder": {"151646": {"content": text}}}
    (folder / "evil" / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "evil" / "chat_template.jinja").write_text(f"{{% raw %}}{text}".replace("\ud800", ""))
    plain, made = (
        new_plugin("foovl", folder / name / "config.json", folder / name / "out")
        for name in ("plain", "evil")
    )
    for path in (made.folder / name for name in ("__init__.py", "prompt.py", "vision.py")):
        assert shape(path) == shape(plain.folder / path.name)
    assert not list(made.folder.rglob("*.pyc"))


@given(
    st.recursive(
        st.one_of(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
        lambda inner: st.dictionaries(st.text(), inner) | st.lists(st.text()).map(tuple),
        max_leaves=8,
    )
)
def test_a_literal_is_its_value(value: Any) -> None:
    """Of whatever JSON holds. Oracle: `ast.literal_eval`."""
    assert ast.literal_eval(package._literal(value)) == value


def shape(path: Path) -> list[str]:
    """Return what a source does: its statements, without the literals."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Name("LITERAL")

        def visit_Dict(self, node: ast.Dict) -> ast.AST:
            try:
                ast.literal_eval(node)
            except ValueError:
                return self.generic_visit(node)
            return ast.Name("LITERAL")

    return [ast.dump(Blank().visit(node)) for node in ast.parse(path.read_text()).body]


@pytest.mark.parametrize(
    "name", ["", "Foo", "1foo", "foo-vl", "foo vl", "../foo", "class", "a" * 99, "foo\n", 'f"']
)
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    """They become modules. Oracle: nothing is written."""
    with pytest.raises(UsageError, match="is no name of a family"):
        new_plugin(name, None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("repo", ["foo", "foo/", "a/b/c", 'foo/b"', "foo/$x", "../x", "foo/b\n"])
def test_repositories_are_checked(tmp_path: Path, repo: str) -> None:
    """They become names of models and folders. Oracle: nothing is written."""
    with pytest.raises(UsageError, match="is no repository"):
        new_plugin("foovl", None, tmp_path, repo)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ['X"; import os; "']}, "names no architecture"),
        ({"architectures": None}, "names no architecture"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "vision_config.num_hidden_layers"),
        ({"text_config": {"hidden_size": 10**12}}, "text_config.hidden_size"),
    ],
    ids=str,
)
def test_hostile_configs_are_refused(
    tmp_path: Path, published: Publish, changes: dict[str, Any], message: str
) -> None:
    """Before a class is made of them. Oracle: the message; nothing is written."""
    with pytest.raises(AxcoreError, match=message):
        new_plugin("foovl", published(changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "[" * 100_000])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    """Oracle: the message names the file."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        new_plugin("foovl", tmp_path / "config.json", tmp_path)


# Chat templates ----------------------------------------------------------------------------------

CHATML = EXAMPLE.with_name("chat_template.jinja").read_text()


def test_what_a_template_writes_is_found() -> None:
    """Between messages, for an image, at the end. Oracle: the template, read by eye."""
    chat = find_chat(CHATML, {})
    assert chat.image == "<image>"
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]}]
    expected = "<|im_start|>user\n<image>why?<|im_end|>\n<|im_start|>assistant\n"
    assert written(chat, said) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}", ""),
        ("{{ 'x' * 10**10 }}", ""),
        ("{{ ''.__class__.__mro__ }}", ""),
        ("{{ messages | length }}", "leaves out the message of the user"),
        (CHATML + "{{ messages | length }}", "does more than write fixed text"),
        (CHATML.replace("part['text']", "part['text'] | upper | length"), "leaves out"),
        ("{% if", "cannot be rendered"),
    ],
)
def test_templates_that_do_more_are_refused(template: str, message: str) -> None:
    """They loop, fill memory, reach for Python, or change what was said. Oracle: the message."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(UnsupportedModel, match=f"the chat template: .*{message}"):
        find_chat(template, {})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 10
