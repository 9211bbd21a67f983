"""The search for nearest codes equals brute force, at the edges of its blocks too, and never stores N x K numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tessella.bottlenecks import EMAQuantizer
from tessella.bottlenecks import nearest as module
from tessella.bottlenecks.nearest import nearest_codes, per_code
from tessella.core.rng import Noise

SIZES = [  # N, G, K, D
    (0, 1, 4, 3),
    (0, 3, 4, 3),
    (1, 1, 1, 1),
    (1, 2, 5, 3),
    (2, 1, 1, 4),
    (7, 1, 2, 1),
    (31, 1, 33, 8),
    (32, 1, 32, 8),
    (33, 3, 31, 5),
    (64, 1, 16, 64),
    (65, 2, 129, 2),
    (257, 1, 100, 3),
]


def whole(*shape: int) -> Tensor:
    """Small whole numbers: their scores are exact in float32, whatever the order of summing."""
    return torch.randint(-4, 5, shape).float()


def check(z: Tensor, table: Tensor) -> None:
    """The codes' distances are the least, exactly. All codes are different vectors or ties, so codes may differ."""
    codes = nearest_codes(z, table)
    assert codes.shape == z.shape[:2]
    assert codes.dtype == torch.int64
    distances = (z[:, :, None].double() - table.double()).square().sum(3)
    chosen = distances.gather(2, codes[..., None])[..., 0]
    assert torch.equal(chosen, distances.amin(2) if len(z) else chosen)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_brute_force(size: tuple[int, ...]) -> None:
    n, groups, count, dims = size
    check(whole(n, groups, dims), whole(groups, count, dims))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("block", "span"), [(1, 16), (64, 8), (100, 7), (1000, 32)])
def test_edges_of_blocks(
    size: tuple[int, ...], threads: int, block: int, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "SPAN", span)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    n, groups, count, dims = size
    check(whole(n, groups, dims), whole(groups, count, dims))


def test_equals_brute_force_up_to_rounding() -> None:
    z, table = torch.randn(500, 2, 32), torch.randn(2, 3000, 32)
    distances = torch.cdist(z.transpose(0, 1).double(), table.double())
    chosen = distances.gather(2, nearest_codes(z, table).T[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.amin(2), rtol=1e-6, atol=0)


def test_strided_vectors() -> None:
    """Rows and columns of a larger tensor, as a head gives them."""
    z = whole(6, 20, 12)[::2, :, 3:9].flatten(0, 1).unflatten(1, (2, 3))
    check(z, whole(2, 10, 3))
    check(whole(5, 3, 7).permute(2, 0, 1), whole(5, 9, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_codes_are_in_range_whatever_is_asked(bad: float) -> None:
    z, table = torch.randn(6, 1, 4), torch.randn(1, 5, 4)
    clean = nearest_codes(z, table)
    z[2], z[4, 0, 1] = bad, bad
    codes = nearest_codes(z, table)
    assert codes.min() >= 0
    assert codes.max() < 5
    keep = torch.tensor([0, 1, 3, 5])
    assert torch.equal(codes[keep], clean[keep])


def test_per_code() -> None:
    z, codes = whole(50, 3, 4), torch.randint(0, 6, (50, 3))
    count, total = per_code(z, codes, 7)
    for group in range(3):
        for code in range(7):
            rows = z[codes[:, group] == code, group]
            assert count[group, code] == len(rows)
            assert torch.equal(total[group, code], rows.sum(0))


class Largest(TorchDispatchMode):
    """Of the tensors that any operation gives, the most numbers in one."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_never_all_scores_at_once() -> None:
    quantizer = EMAQuantizer(codebook_size=2048).build((8, 64, 64))
    features = torch.randn(1, 8, 64, 64, requires_grad=True)
    with Largest() as seen:
        passage = quantizer.train()(features, Noise(0))
        (passage.z.sum() + passage.penalty.sum()).backward()
    assert seen.numbers <= module.BLOCK * torch.get_num_threads() < 4096 * 2048 // 4


@pytest.mark.skipif(not (torch.cuda.is_available() and module.TRITON), reason="needs a CUDA device and triton")
@pytest.mark.parametrize("size", [*SIZES, (1000, 1, 3000, 200)], ids=str)
def test_fused(size: tuple[int, ...]) -> None:
    n, groups, count, dims = size
    z, table = whole(n, groups, dims), whole(groups, count, dims)
    codes = nearest_codes(z.cuda(), table.cuda()).cpu()
    distances = (z[:, :, None] - table).square().sum(3)
    chosen = distances.gather(2, codes[..., None])[..., 0]
    assert torch.equal(chosen, distances.amin(2) if n else chosen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_a_device() -> None:
    z, table = torch.randn(2**16, 1, 32, device="cuda"), torch.randn(1, 2**13, 32, device="cuda")
    nearest_codes(z[:10], table)
    before = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    nearest_codes(z, table)
    assert torch.cuda.max_memory_allocated() - before < 4 * 2**16 * 2**13 // 64
