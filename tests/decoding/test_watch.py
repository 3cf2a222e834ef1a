"""What waits for the device, by the ops that a step launches."""

import pytest
import torch

from rgtg.decoding.cuda_graphs import Watch
from tests.fake_cuda import CARD, fake_cuda

WAITS = {
    "item": lambda x: x[0].item(),
    "a truth value": lambda x: bool(x[0] > 0),
    "where": lambda x: torch.where(x > 0),
    "a mask": lambda x: x[x > 0],
    "values at a mask": lambda x: torch.zeros(8).masked_fill(x > 9, 1.0).index_put_((x > 9,), x[:0]),
    "nonzero": lambda x: x.nonzero(),
    "argwhere": lambda x: x.argwhere(),
    "allclose": lambda x: torch.allclose(x, x),
    "equal": lambda x: x.equal(x),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.full((8,), 2)),
}
GOES_ON = {
    "a number at a mask": lambda x: x.index_put_((x > 9,), torch.tensor(1.0)),
    "where with both": lambda x: torch.where(x > 0, x, 0.0),
    "places": lambda x: x[torch.tensor([1, 2])],
    "values at places": lambda x: x.index_put_((torch.tensor([1, 2]),), x[2:4].clone()),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.view(1, 1, 4, 2)] * 3),
    "linear": lambda x: torch.nn.functional.linear(x, x.view(1, 8)),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", [*WAITS, *GOES_ON])
def test_what_waits_for_a_value_is_seen(name, inference):
    """Also inside an op that arrives whole in inference mode."""
    with torch.inference_mode(inference), torch.no_grad():
        x = torch.arange(8.0)
        with Watch() as watch:
            (WAITS | GOES_ON)[name](x)
    assert bool(watch.asked) == (name in WAITS)


@pytest.mark.parametrize("inference", [True, False])
def test_what_crosses_between_host_and_device_is_seen(inference):
    crossings = {
        "a list": lambda x: torch.tensor([1.0, 2.0], device=CARD),
        "a number": lambda x: torch.tensor(1.0, device=CARD),
        "to the host": lambda x: x.cpu(),
        "to the device": lambda x: torch.zeros(2).to(CARD),
        "a copy": lambda x: x.copy_(torch.zeros(2)),
        "places": lambda x: x[torch.zeros(2, dtype=torch.long)],
    }
    stays = {"scalars": lambda x: ((x + 1) * 2.0).long() & 3, "filled": lambda x: torch.zeros(2, device=CARD)}
    with fake_cuda(), torch.inference_mode(inference), torch.no_grad():
        for name, do in (crossings | stays).items():
            x = torch.zeros(2, device=CARD)
            with Watch() as watch:
                do(x)
            assert bool(watch.asked) == (name in crossings), name
