"""Options that only some models, toolchains or backends have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axcore import Choice, UsageError
from axcore.choices import resolve

DECLARED = {
    "shade": Choice(("dark", "light", "no"), "how bright"),
    "switch": Choice(("no", "yes"), "on or off"),
    "version": Choice((), "anything"),
}
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "shade": st.sampled_from(DECLARED["shade"].values),
        "switch": st.sampled_from(DECLARED["switch"].values),
        "version": st.text(),
    },
)


@given(GIVEN)
def test_what_was_given_stands_and_the_rest_has_its_default(given_: dict[str, str]) -> None:
    """The first value, or no entry where values are free. Oracle: the declaration, by hand."""
    defaults = {"shade": "dark", "switch": "no"}
    assert resolve("`toy`", DECLARED, given_) == {**defaults, **given_}


def test_an_option_that_is_not_there() -> None:
    """The message names who lacks it, the hint what there is."""
    with pytest.raises(UsageError, match="`toy` has no option --colour") as caught:
        resolve("`toy`", DECLARED, {"colour": "red"})
    assert caught.value.hint == "its options: --shade, --switch, --version"
    with pytest.raises(UsageError) as caught:
        resolve("`toy`", {}, {"colour": "red"})
    assert caught.value.hint == "its options: none"


@given(st.text().filter(lambda value: value not in DECLARED["shade"].values))
def test_a_value_that_is_not_offered(value: str) -> None:
    """The message quotes it, the hint lists those that are and says what they do."""
    with pytest.raises(UsageError) as caught:
        resolve("`toy`", DECLARED, {"shade": value})
    assert caught.value.message == f"--shade {value} is not offered"
    assert caught.value.hint == "choose from dark, light, no: how bright"
