"""Regular expressions of tokenizers: those that are published pass, those that hang do not."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from axcore.language.patterns import check_pattern

SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NO_HAN = r"&&[^\p{Han}]]"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def cased(upper: str, lower: str, suffix: str) -> str:
    """Words by case, as GPT-4o cuts them."""
    begin = r"[^\r\n\p{L}\p{N}]?"
    return f"{begin}{upper}*{lower}+{suffix}|{begin}{upper}+{lower}*{suffix}"


# As their tokenizer.json or tiktoken pattern has it.
PUBLISHED = {
    "GPT-2, SmolLM2, StarCoder": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+",
    "Qwen2, Qwen2.5, Qwen3, InternVL, MiniCPM-o": LLAMA.replace("{1,3}", "") + SPACES,
    "Qwen3.5": rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + SPACES,
    "Llama 3, GLM-4, LFM2, SmolLM3": LLAMA + SPACES,
    "GPT-4, Phi-4, Bailing": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "GPT-4o, Llama 4": cased(UPPER, LOWER, SUFFIX + "?") + r"|\p{N}{1,3}" + REST,
    "Mistral (tekken)": cased(UPPER, LOWER, "") + r"|\p{N}" + REST,
    "Kimi": r"[\p{Han}]+|"
    + cased(UPPER[:-1] + NO_HAN, LOWER[:-1] + NO_HAN, SUFFIX + "?")
    + r"|\p{N}{1,3}"
    + REST.replace("/", ""),
    "DeepSeek-V3, numbers": r"\p{N}{1,3}",
    "DeepSeek-V3, Han": "[一-龥぀-ゟ゠-ヿ]+",  # noqa: RUF001
    "DeepSeek-V3": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "DeepSeek LLM": r"\s?[!-/:-~！-／：-～‘-‟　-。]+",  # noqa: RUF001
    "DeepSeek LLM, end": r"\s+$",
    "Falcon": r"[\p{P}\$\+<=>\^~\|`]+",
    "Bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
    "Jais 2": LLAMA + r"|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)"
    r"|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    "Aya": r"\d{1,3}(?=(?:\d{3})*\b)",
    "SuperBPE": r"(?=(\d{3})+(?!\d))",
    "Chameleon": "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    "Chameleon, spaces": r"([\t\n]|    |  )",
    "CLIP": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "T5, DeBERTa": " {2,}",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_pass(name: str) -> None:
    """Oracle: the published tokenizers; the library can read each."""
    check_pattern(PUBLISHED[name])
    Split(Regex(PUBLISHED[name]), "isolated")


WAYS = "too many ways|repeats without end|itself repeated"
HANGING = [
    "(a+)+$",
    "(a*)*b",
    "(a|a)*$",
    "(a|ab)*c",
    "(?i:(a|A)+)b",
    "(|a)+b",
    "(?:)*",
    "a**b",
    "a{1,3}{1,1000}{1,1000}b",
    "(.*)(.*)(.*)x",
    r"[\s\S]*[\s\S]*[^\s\S]",
    r"\w*\w*!",
    "(?=a*a*b)x",
    "(?<=a*a*b)x",
    "(?>(a|b|ab)*c)",
    "a?" * 30 + "a" * 30,
    "(a?){30}a{30}",
    "(a|a|a|a)" * 20 + "b",
    "((a{1,100}){1,100}){1,100}b",
    "((a{100}){100}){100}b",
    "((?:){1000}){1000}",
]


@pytest.mark.parametrize("pattern", HANGING)
def test_patterns_that_hang_are_refused(pattern: str) -> None:
    """Oracle: the reason."""
    with pytest.raises(ValueError, match=WAYS):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        r"(?<x>a)\k<x>",
        r"\g<0>",
        r"\Q(a+)+\E",
        r"\X*",
        r"\R",
        "(?~a)",
        "(?x)(a +)+",
        "(?#c)",
        "(?(1)a|b)",
        "(?P<x>a)",
        "[]a]+",
        "[a",
        "(a",
        "a)",
        "*a",
        "a{5,2}",
        "a{9999}",
        "\\",
        "(" * 99,
        "[" * 9999,
        "a" * 9999,
    ],
)
def test_what_no_tokenizer_needs_is_refused(pattern: str) -> None:
    """Oracle: that it is."""
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern)


def atoms() -> st.SearchStrategy[str]:
    simple = st.sampled_from(
        ["a", "b", ".", r"\s", "[ab]", "[^a]", r"\p{L}", r"\b", "$", "(?=a)", "(?!b)", "[[ab]c]"]
    )
    quantifier = st.sampled_from(
        ["", "", "*", "+", "?", "*?", "++", "{2}", "{1,3}", "{,4}", "{2,}", "{0,60}", "{1,2}+"]
    )

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(st.builds(str.__add__, inner, quantifier), min_size=1, max_size=4)
        return st.builds(
            lambda kind, parts, join: f"({kind}{join.join(parts)})",
            st.sampled_from(["", "?:", "?>", "?i:"]),
            several,
            st.sampled_from(["", "|"]),
        )

    return st.recursive(simple, grown, max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(pattern=st.builds("".join, st.lists(atoms(), min_size=1, max_size=4)))
def test_what_passes_ends_soon(pattern: str) -> None:
    """Texts that fail at their end make an engine try all ways.

    Oracle: Oniguruma, which gives up after 10 million ways to match at one place.
    """
    try:
        check_pattern(pattern)
    except ValueError:
        return
    try:
        split = Split(Regex(pattern), "isolated")
    except Exception:  # no pattern to Oniguruma, which raises nothing narrower
        return
    for text in ("a" * 400 + "\0", "ab" * 200 + "\0", " a" * 200 + "!"):
        split.pre_tokenize_str(text)


def test_python_agrees_on_what_a_pattern_is() -> None:
    """Oracle: Python's own engine reads those that have no properties and no nested classes."""
    for name, pattern in PUBLISHED.items():
        if r"\p" not in pattern and "[^(" not in pattern:
            assert re.compile(pattern), name


HANG = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
Split(Regex(r"[\\s\\S]*[\\s\\S]*[^\\s\\S]b"), "isolated").pre_tokenize_str("ab " * 1200)
"""


def test_what_is_refused_does_hang() -> None:
    """The library itself cannot be interrupted in one of them, whatever the text.

    Oracle: a child process that the system ends when its second is over.
    """
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, check=False)
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
