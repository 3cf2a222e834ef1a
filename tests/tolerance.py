"""How far two ways of computing the same thing in float32 may be apart."""

import pytest
import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps

# A sum of n float32 terms in another order differs by about sqrt(n) roundings of its magnitude. The models of the
# tests sum up at most 4,096 terms in a row (two layers of width 32 to 96, some hundred tokens).
ROUNDING = 64 * EPS


def alike(expected: float | list[float], terms: float = 1):
    """What `expected` may become, rewards or log-probabilities that each are the sum of `terms` outputs of a model.

    States are normalized to one before the last layer, so what it sums is of that magnitude even where the sum is not.
    """
    values = expected if isinstance(expected, list) else [expected]
    return pytest.approx(expected, rel=0, abs=terms * ROUNDING * max([1.0, *map(abs, values)]))


def assert_alike(found: Tensor, expected: Tensor, terms: float = 1) -> None:
    """The same of a tensor of outputs."""
    bound = terms * ROUNDING * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found.to(expected.dtype), expected, atol=bound, rtol=0)


def assert_rounds_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Tensors by name, such as the gradients of a model: all sums of the same magnitude, the largest one's."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=ROUNDING * largest, rtol=0, msg=name)
