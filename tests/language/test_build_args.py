"""Build arguments from a profile, and the prompt budget."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import BudgetError, LlmBuildArgs
from axcore.language import check_prompt_budget
from axcore.language.build_args import TEXT_TOKENS
from axcore.model_card import Profile


def profile(prefill: int, cache: int, histories: tuple[int, ...] = (), images: int = 1) -> Profile:
    return Profile(448, 448, prefill, cache, histories, images)


def refusal(profile: Profile, rows: int) -> BudgetError:
    with pytest.raises(BudgetError) as caught:
        check_prompt_budget(profile, rows)
    return caught.value


def test_arguments_take_the_lengths_of_the_profile() -> None:
    """Oracle: the profile; precisions and workers as in published builds."""
    args = LlmBuildArgs.of(profile(128, 2047, (128, 256)), check_level=1)
    assert args == LlmBuildArgs(
        prefill_len=128, kv_cache_len=2047, last_kv_cache_len=(128, 256), check_level=1
    )
    assert (args.hidden_state_type, args.weight_type, args.parallel) == ("bf16", "s8", 8)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        (profile(320, 1023), 256),
        (profile(512, 1023, images=4), 121),
        (profile(128, 2047, tuple(range(128, 1153, 128))), 256),
        (profile(64, 64), 40),
    ],
)
def test_published_lengths_hold_their_images(lengths: Profile, rows: int) -> None:
    """Oracle: builds that exist; for the last, full to the token, the sum."""
    check_prompt_budget(lengths, rows)


def test_a_prompt_without_room_for_an_image_says_what_would_do() -> None:
    """Oracle: the arithmetic by hand: 256 + 24 tokens against 128, and one token too many."""
    assert "needs 65 tokens, but holds 64" in refusal(profile(64, 128), 41).message
    error = refusal(profile(128, 1023), 256)
    assert "needs 280 tokens, but holds 128" in error.message
    assert "1 of 256 tokens each (448x448 px), and 24 for text" in error.message
    assert "--prefill-len 320" in error.hint
    assert "--last-kv-cache-len up to 256" in error.hint
    assert "at most 104 tokens an image" in error.hint
    assert "--kv-cache-len" not in error.hint.replace("--last-kv-cache-len", "")


def test_a_longer_prompt_may_need_a_larger_cache() -> None:
    """Oracle: the arithmetic by hand: 2 x 256 + 24 = 536 tokens, 576 in steps of 64."""
    error = refusal(profile(128, 511, (128,), images=2), 256)
    assert "--last-kv-cache-len up to 512 with --kv-cache-len 640" in error.hint
    error = refusal(profile(320, 511, images=2), 256)
    assert "--prefill-len 576 with --kv-cache-len 576" in error.hint


@pytest.mark.parametrize(
    ("lengths", "fact", "remedy"),
    [
        (profile(320, 319), "320 tokens does not fit 319 cache slots", "--kv-cache-len 320"),
        (profile(128, 500, (128, 384)), "512 tokens does not fit 500", "--kv-cache-len 512"),
        (
            profile(128, 2047, (128, 200)),
            "[200] are not multiples of the chunk of 128",
            "128, 256 ",
        ),
        (profile(128, 2047, (0, 128)), "[0] are not multiples", "128, 256"),
        (profile(128, 2047, (256, 128)), "do not ascend", "order 128, 256"),
        (profile(128, 2047, (128, 128)), "do not ascend", "order 128"),
        (profile(0, 1023), "begin at 1", "--prefill-len"),
        (profile(128, 0), "begin at 1", "--kv-cache-len"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(
    lengths: Profile, fact: str, remedy: str
) -> None:
    """Oracle: the layer contract: whole chunks of history, a cache that holds the prompt."""
    error = refusal(lengths, 1)
    assert fact in error.message
    assert f"prefill_len {lengths.prefill_len}" in error.message
    assert remedy in error.hint


@given(
    prefill=st.integers(1, 640),
    chunks=st.integers(0, 8),
    cache=st.integers(1, 4096),
    images=st.integers(1, 8),
    rows=st.integers(1, 1024),
)
def test_following_the_remedy_works(
    prefill: int, chunks: int, cache: int, images: int, rows: int
) -> None:
    """Whatever is refused is accepted once the first remedy is followed, and what is accepted
    has room. Oracle: the check itself, and the sum.
    """
    histories = tuple(prefill * (index + 1) for index in range(chunks))
    lengths = profile(prefill, cache, histories, images)
    for _ in range(2):  # the cache first, then the images
        try:
            check_prompt_budget(lengths, rows)
        except BudgetError as error:
            lengths = mended(lengths, error.hint.partition(", or ")[0])
    check_prompt_budget(lengths, rows)
    assert images * rows + TEXT_TOKENS <= lengths.max_prompt <= lengths.kv_cache_len


def mended(lengths: Profile, hint: str) -> Profile:
    """Do what `hint` says."""
    if found := re.search(r"--prefill-len (\d+)", hint):
        lengths = replace(lengths, prefill_len=int(found[1]))
    if found := re.search(r"--last-kv-cache-len up to (\d+)", hint):
        chunk = lengths.prefill_len
        histories = tuple(range(chunk, int(found[1]) + 1, chunk))
        lengths = replace(lengths, last_kv_cache_len=histories)
    if found := re.search(r"--kv-cache-len (\d+)", hint):
        lengths = replace(lengths, kv_cache_len=int(found[1]))
    return lengths
