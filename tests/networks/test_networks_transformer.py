"""The transformers' trunk: who sees whom, steps with a cache against whole sequences, dropout, positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expect import raises
from tessella.core.rng import Noise
from tessella.networks import transformer
from tessella.networks.transformer import BLOCK, CodeEmbedding, GridEmbedding, IncrementalTransformer, Transformer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sight(trunk: Transformer, positions: int, rough: bool) -> Tensor:
    """`[P, P]`, the size of the gradient of each position's output by each position's input."""
    x = torch.randn(1, positions, trunk.width, requires_grad=True)
    y = trunk(x) * torch.randn(trunk.width)
    return torch.stack(
        [torch.autograd.grad(y[0, p].sum(), x, retain_graph=True)[0][0].norm(dim=-1) for p in range(positions)]
    )


@pytest.mark.parametrize("rough", [False, True])
def test_causal_positions_see_themselves_and_those_before(rough: bool) -> None:
    seen = sight(Transformer((2, 3), 8, 2, causal=True), 6, rough)
    assert (seen.triu(1) == 0).all()
    assert (seen[torch.ones(6, 6).tril().bool()] > 1e-6).all()


@pytest.mark.parametrize("rough", [False, True])
def test_other_positions_see_all(rough: bool) -> None:
    assert (sight(Transformer((2, 3), 8, 2, causal=False), 6, rough) > 1e-6).all()


@pytest.mark.parametrize("causal", [False, True])
def test_plain_products_are_the_fused_kernel(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 3, 40, 16, dtype=torch.bfloat16)
    plain = transformer._attention(q, k, v, causal).float()
    monkeypatch.setattr(transformer, "SHORT", 0)
    fused = transformer._attention(q, k, v, causal).float()
    exact = transformer._attention(q.float(), k.float(), v.float(), causal)
    assert (plain - exact).abs().mean() < 2 * (fused - exact).abs().mean()
    torch.testing.assert_close(plain, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("width", "heads"), [(4, 1), (64, 1), (96, 2), (100, 5), (256, 4)])
def test_heads_have_64_channels_at_most(width: int, heads: int) -> None:
    assert Transformer((2, 2), width, 1, causal=True).blocks[0].heads == heads


def test_width_is_a_multiple_of_four() -> None:
    with raises("bad-width"):
        Transformer((2, 2), 67, 1, causal=True)


def test_attention_knows_how_far_apart_positions_are_and_no_more() -> None:
    block = Transformer((4, 5), 16, 1, causal=False).blocks[0]
    turns = transformer._turns((4, 5), 16)
    q, k = torch.randn(2, 16)
    scores = (transformer._turned(q, turns) @ transformer._turned(k, turns).T).view(4, 5, 4, 5)
    assert block.heads == 1
    torch.testing.assert_close(scores[2, 3, 1, 1], scores[3, 4, 2, 2])
    torch.testing.assert_close(scores[0, 2, 3, 0], scores[0, 4, 3, 2])
    torch.testing.assert_close(scores[0, 0, 0, 0], q @ k)
    others = torch.stack([scores[1, 1, 1, 1], scores[1, 1, 1, 2], scores[1, 1, 2, 1], scores[1, 2, 1, 1]])
    assert torch.pdist(others[:, None]).min() > 1e-2


@pytest.mark.parametrize("positions", [1, 5, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("width", [24, 96])
def test_cached_steps_are_the_whole_sequence(positions: int, width: int) -> None:
    trunk = Transformer((1, positions), width, 2, causal=True).eval()
    x = torch.randn(3, positions, width)
    decoder = IncrementalTransformer(trunk, x, torch.zeros(width))
    with torch.no_grad():
        steps = torch.stack([decoder.step() for _ in range(positions)], 1)
        torch.testing.assert_close(steps, trunk(x), rtol=1e-4, atol=1e-5)


def test_cached_steps_in_the_precision_of_autocast() -> None:
    trunk = Transformer((3, 3), 64, 2, causal=True).eval()
    x = torch.randn(2, 9, 64)
    with torch.no_grad():
        exact = trunk(x)
        with torch.autocast("cpu", torch.bfloat16):
            decoder = IncrementalTransformer(trunk, x, torch.zeros(64))
            steps = torch.stack([decoder.step() for _ in range(9)], 1)
            whole = trunk(x)
    assert all(layer.kv.dtype == layer.qkv.dtype == torch.bfloat16 for layer in decoder._layers)
    assert steps.dtype == whole.dtype == torch.float32
    slack = 3 * (whole - exact).abs().mean()
    assert 0 < (steps - exact).abs().mean() < slack


def test_dropout_is_the_noise_s_and_only_in_training() -> None:
    trunk = Transformer((1, 5), 16, 2, causal=True, dropout=0.3)
    x = torch.randn(4, 5, 16)
    before = torch.get_rng_state()
    one, again, other = (trunk(x, Noise(0, step)) for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    plain = trunk(x)
    assert torch.equal(plain, trunk.eval()(x, Noise(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_keeps_the_mean() -> None:
    trunk = Transformer((1, 7), 4, 4, causal=True, dropout=0.25)
    kept = trunk._keep(Noise(0), torch.zeros(1000, 7, 4))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    # A share of 36 000 tosses, off by 4.5 standard deviations: one false alarm in 150 000 seeds.
    assert kept.numel() == 36_000
    assert abs(kept.mean().item() - 1) < 4.5 * (0.25 / 0.75 / 36_000) ** 0.5


def test_codes_of_a_position_are_summed() -> None:
    embed = CodeEmbedding(2, 5, 3)
    codes = torch.randint(0, 5, (4, 2, 7))
    first, second = embed.tables.weight.split(5)
    torch.testing.assert_close(embed(codes), first[codes[:, 0]] + second[codes[:, 1]])


def test_positions_differ_by_row_and_by_column() -> None:
    vectors = GridEmbedding((3, 4), 6)(None, None)
    assert vectors.shape == (1, 12, 6)
    grid = vectors.view(3, 4, 6)
    torch.testing.assert_close(grid[1, 2] - grid[1, 0], grid[2, 2] - grid[2, 0])
    assert torch.pdist(vectors[0]).min() > 1e-3


def test_context_reaches_the_positions_around_it() -> None:
    given = GridEmbedding((7, 8), 6, context_channels=2)
    context = torch.randn(1, 2, 7, 8, requires_grad=True)
    given(None, context).view(7, 8, 6)[3, 4].sum().backward()
    assert context.grad is not None
    reached = context.grad[0].abs().sum(0) > 0
    expected = torch.zeros(7, 8, dtype=torch.bool)
    expected[1:6, 2:7] = True
    assert torch.equal(reached, expected)


def test_missing_and_needless_conditions_are_refused() -> None:
    plain, seeing = GridEmbedding((2, 2), 4), GridEmbedding((2, 2), 4, context_channels=3, classes=2)
    label, context = torch.tensor([0]), torch.zeros(1, 3, 2, 2)
    with raises("unconditional"):
        plain(label, None)
    with raises("no-context"):
        plain(None, context)
    with raises("needs-labels"):
        seeing(None, context)
    with raises("needs-context"):
        seeing(label, None)
