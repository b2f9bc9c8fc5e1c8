"""Check that the lengths of the language-model build can hold a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model_card import Profile

TEXT_TOKENS = 24
"""Tokens reserved for text beside the images: a chat template takes about twenty, and a question
must fit as well. Published builds are as tight (video of four steps: 484 of 512)."""

CHUNK_STEP = 64
"""Prefill lengths of published builds are multiples of this."""


def check_prompt_budget(profile: Profile, rows: int) -> None:
    """Refuse lengths that contradict each other or are too short for a prompt's images.

    Args:
        profile: The lengths, and how often the vision graph runs for one prompt.
        rows: Tokens that one run of the vision graph returns.

    Raises:
        BudgetError: The message has the numbers, the hint the option that helps.
    """
    _check_histories(profile)
    if profile.max_prompt > profile.kv_cache_len:
        raise BudgetError(
            f"a prompt of up to {profile.max_prompt} tokens does not fit "
            f"{profile.kv_cache_len} cache slots\n  {_lengths(profile)}",
            hint=f"use --kv-cache-len {profile.max_prompt} or more, or shorter prompts",
        )
    needed = profile.images * rows + TEXT_TOKENS
    if needed > profile.max_prompt:
        raise BudgetError(
            f"a prompt needs {needed} tokens, but holds {profile.max_prompt}\n"
            f"  images: {profile.images} of {rows} tokens each "
            f"({profile.height}x{profile.width} px), and {TEXT_TOKENS} for text\n"
            f"  {_lengths(profile)}",
            hint=_room_for(profile, needed),
        )


def _check_histories(profile: Profile) -> None:
    chunk, histories = profile.prefill_len, profile.last_kv_cache_len
    if chunk < 1 or profile.kv_cache_len < 1:
        raise BudgetError(
            f"lengths begin at 1\n  {_lengths(profile)}",
            hint="correct --prefill-len or --kv-cache-len",
        )
    odd = [length for length in histories if length < 1 or length % chunk]
    if odd:
        raise BudgetError(
            f"history lengths {odd} are not multiples of the chunk of {chunk} tokens\n"
            f"  {_lengths(profile)}",
            hint=f"use --last-kv-cache-len {chunk}, {2 * chunk} and so on",
        )
    if list(histories) != sorted(set(histories)):
        raise BudgetError(
            f"history lengths do not ascend\n  {_lengths(profile)}",
            hint=f"use --last-kv-cache-len in the order {_listed(sorted(set(histories)))}",
        )


def _room_for(profile: Profile, needed: int) -> str:
    """Describe the single changes that make room for `needed` tokens."""
    chunk = profile.prefill_len
    ways = []
    if not profile.last_kv_cache_len:
        wider = _round_up(needed, CHUNK_STEP)
        ways.append(f"--prefill-len {wider}{_with_cache(profile, wider)}")
    longest = _round_up(needed, chunk)
    ways.append(f"--last-kv-cache-len up to {longest - chunk}{_with_cache(profile, longest)}")
    rows = (profile.max_prompt - TEXT_TOKENS) // profile.images
    if rows > 0:
        ways.append(f"a size of at most {rows} tokens an image")
    return f"use {', or '.join(ways)}"


def _with_cache(profile: Profile, prompt: int) -> str:
    """Return the cache option that a prompt of this length also needs, if any."""
    return f" with --kv-cache-len {prompt}" if prompt > profile.kv_cache_len else ""


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _lengths(profile: Profile) -> str:
    histories = _listed(profile.last_kv_cache_len) or "none"
    return (
        f"prefill_len {profile.prefill_len}, histories {histories}, "
        f"kv_cache_len {profile.kv_cache_len}"
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
