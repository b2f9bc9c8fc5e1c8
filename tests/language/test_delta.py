"""The gated delta rule for a chunk is the one for a token, again and again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from axcore.language.decoder.convolution import tokens_of
from axcore.language.decoder.delta import delta_rule, unit_lower_inverse


def token_by_token(
    query: Tensor, key: Tensor, value: Tensor, fading: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule as it is defined, in float64."""
    seen = []
    for index in range(query.shape[2]):
        memory = memory * fading[..., index, None, None].exp()
        held = key[..., index, None, :] @ memory
        missing = (value[..., index, None, :] - held) * strength[..., index, None, None]
        memory = memory + key[..., index, None, :].mT @ missing
        seen.append(query[..., index, None, :] @ memory)
    return torch.cat(seen, -2), memory


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("count", [1, 2, 37, 64])
def test_a_chunk_is_its_tokens(count: int, alike: bool) -> None:
    """Also where all keys are nearly one, as of a plain picture, and nothing fades.

    There a power series would lose all digits. Oracle: the definition, in float64.
    """
    generator = torch.Generator().manual_seed(count)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, 2, *shape, generator=generator)

    query, key, value = draw(count, 4), draw(count, 4), draw(count, 6)
    if alike:
        key = key[:, :, :1] + key * 1e-3
    key = torch.nn.functional.normalize(key, dim=-1)
    strength = torch.sigmoid(draw(count) + 9 * alike)
    fading = draw(count).abs() * (0 if alike else -0.1)
    given = (query, key, value, fading, strength, draw(4, 6))
    expected = token_by_token(*(one.double() for one in given))
    for made, right in zip(delta_rule(*given, 64), expected, strict=True):
        torch.testing.assert_close(made, right.float(), atol=1e-4, rtol=1e-4)


def test_a_longer_chunk_than_was_asked_for_is_refused() -> None:
    """A matrix larger than its levels would not be inverted. Oracle: the bound."""
    system = torch.rand(9, 9)
    number = torch.arange(9)
    inverse = unit_lower_inverse(system, number, 16)
    unit = torch.eye(9) + system.tril(-1)
    torch.testing.assert_close(inverse @ unit, torch.eye(9), atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError):
        unit_lower_inverse(system, number, 8)


def test_tokens_are_told_from_padding_by_the_diagonal() -> None:
    """Behind any history. Oracle: a mask by hand, two tokens and two of padding."""
    mask = torch.full((1, 4, 7), -65536.0)
    mask[0, 0, :4] = mask[0, 1, :5] = 0
    assert tokens_of(mask).tolist() == [[1, 1, 0, 0]]
