"""How far two ways of computing the same thing in float32 may be apart."""

import torch

EPS = torch.finfo(torch.float32).eps

# A sum of n float32 terms in another order differs by about sqrt(n) roundings of its magnitude. The models of the
# tests sum up at most 4,096 terms in a row (two layers of width 32 to 96, some hundred tokens).
ROUNDING = 64 * EPS


def assert_rounds_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Tensors by name, such as the gradients of a model: all sums of the same magnitude, the largest one's."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=ROUNDING * largest, rtol=0, msg=name)
