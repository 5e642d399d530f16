"""A deeper model starts where a shallower one ended."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mast3r.initialization import deepen_from
from tests.network_goldens import tiny_mast3r


def views() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [{"img": torch.randn(1, 3, 32, 32, generator=generator)} for _ in range(2)]


def test_a_deepened_model_starts_as_the_same_function_and_learns_everywhere() -> None:
    shallow, deep = tiny_mast3r(enc_depth=2, dec_depth=1), tiny_mast3r(enc_depth=5, dec_depth=2)
    deepen_from(deep, shallow)
    for expected, found in zip(shallow(*views()), deep(*views())):
        assert torch.equal(found["desc"], expected["desc"])
    torch.stack([side["desc"].flatten()[::7].mean() for side in deep(*views())]).sum().backward()
    last_layers = [p for name, p in deep.enc_blocks.named_parameters() if name.endswith("mlp.fc2.weight")]
    assert len(last_layers) == 5
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in last_layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"enc_depth": 1}, "at least 2 layers in enc_blocks"), ({"output_mode": "pts3d+desc6"}, "depth only")],
)
def test_models_that_differ_in_more_than_depth_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepen_from(tiny_mast3r(**{"enc_depth": 4, "dec_depth": 2, **change}), tiny_mast3r(enc_depth=2, dec_depth=1))
