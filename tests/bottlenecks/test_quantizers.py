"""What every quantiser promises, by its entry in the catalogue; and what each of them computes."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from expect import raises
from tessella.bottlenecks import FSQ, LFQ, EMAQuantizer, ResidualQuantizer, SimVQ, VectorQuantizer, levels_for
from tessella.bottlenecks.codebooks import AveragedCodebook, LearnedCodebook, cosine, k_means
from tessella.bottlenecks.nearest import nearest_codes
from tessella.bottlenecks.quantizers import CodebookQuantizer, rotated, straight_through
from tessella.core.contracts import Quantizer
from tessella.core.distributions import PointMass
from tessella.core.rng import Noise
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import entries, find

SHAPES = [(6,), (6, 1, 1), (6, 3, 5)]
BATCH = 20
QUANTIZERS = [pytest.param(entry.load(), id=entry.name) for entry in entries("quantizer")]
WITH_CODEBOOK = [pytest.param(find("quantizer", n).load(), id=n) for n in ("vq", "ema", "simvq", "residual")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(make, shape: tuple[int, ...] = (6,), **options) -> Quantizer:
    """A quantiser that has seen a batch, so that its codebook has started."""
    quantizer = make(**{"codebook_size": 16, **options}).build(shape)
    quantizer.train()(torch.randn(BATCH, *shape), Noise(0))
    return quantizer.eval()


def bare(quantizer: CodebookQuantizer) -> CodebookQuantizer:
    """Without its head, so that z is the features."""
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return quantizer


# What all promise


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("codes", [1, 3])
def test_contract(make, shape: tuple[int, ...], codes: int) -> None:
    quantizer = made(make, shape, codes_per_position=codes)
    assert isinstance(quantizer, Quantizer)
    assert quantizer.codebook_size == 16
    assert quantizer.code_shape == (codes, *shape[1:])
    assert quantizer.latent_shape[1:] == shape[1:]
    for training in (True, False):
        passage = quantizer.train(training)(torch.randn(BATCH, *shape), Noise(1))
        posterior = passage.posterior
        assert isinstance(posterior, PointMass)
        assert posterior.batch_shape == (BATCH,)
        assert posterior.event_shape == quantizer.code_shape
        assert posterior.value.dtype == torch.int64
        assert 0 <= posterior.value.min() <= posterior.value.max() < 16
        assert passage.z.shape == (BATCH, *quantizer.latent_shape)
        assert passage.z.dtype == torch.float32
        if passage.penalty is not None:
            assert passage.penalty.shape == (BATCH,)
            assert passage.penalty.dtype == torch.float32


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("codes", [1, 3])
def test_lookup_gives_what_forward_gave(make, shape: tuple[int, ...], codes: int) -> None:
    quantizer = made(make, shape, codes_per_position=codes)
    passage = quantizer(torch.randn(BATCH, *shape), None)
    assert torch.equal(quantizer.lookup(passage.posterior.value), passage.z)


@pytest.mark.parametrize("make", QUANTIZERS)
def test_every_code_stands_for_another_vector(make) -> None:
    quantizer = made(make, codes_per_position=1)
    vectors = quantizer.lookup(torch.arange(16)[:, None])
    distances = torch.cdist(vectors, vectors) + torch.eye(16)
    assert distances.min() > 1e-3


@pytest.mark.parametrize("make", QUANTIZERS)
def test_larger_grids(make) -> None:
    """A position's code depends on its features alone, wherever it is and whatever is around it."""
    quantizer = made(make, (6, 2, 2), codes_per_position=2)
    features = torch.randn(3, 6, 7, 4)
    passage = quantizer(features, None)
    codes = passage.posterior.value
    assert codes.shape == (3, 2, 7, 4)
    assert torch.equal(quantizer.lookup(codes), passage.z)
    part = quantizer(features[:, :, 2:4, 1:3], None)
    assert torch.equal(part.posterior.value, codes[:, :, 2:4, 1:3])
    assert torch.equal(part.z, passage.z[:, :, 2:4, 1:3])


@pytest.mark.parametrize("make", QUANTIZERS)
def test_penalties_are_of_the_example(make) -> None:
    """Each example's penalty is its own sum over positions: the same in any batch, but for the batch's entropy."""
    quantizer = made(make, (6, 3, 5), **({"entropy": 0.0} if make is LFQ else {}))
    features = torch.randn(4, 6, 3, 5)
    penalty = quantizer(features, None).penalty
    if penalty is None:
        assert make is FSQ
        return
    for i in range(4):
        torch.testing.assert_close(quantizer(features[i : i + 1], None).penalty, penalty[i : i + 1])
    halves = quantizer(features[:, :, :1], None).penalty + quantizer(features[:, :, 1:], None).penalty
    torch.testing.assert_close(halves, penalty)


@pytest.mark.parametrize("make", QUANTIZERS)
def test_evaluation_changes_nothing(make) -> None:
    quantizer = made(make)
    before = copy.deepcopy(quantizer.state_dict())
    features = torch.randn(BATCH, 6)
    first, second = (quantizer(features, noise) for noise in (Noise(1), None))
    assert torch.equal(first.z, second.z)
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("make", QUANTIZERS)
def test_state_is_all_there_is(make) -> None:
    """A quantiser loaded from another's state goes on as the other would."""
    one, other = made(make, codes_per_position=2), make(codebook_size=16, codes_per_position=2).build((6,))
    other.load_state_dict(one.state_dict())
    for step in range(3):
        features = torch.randn(BATCH, 6)
        here, there = (q.train()(features, Noise(0, step)) for q in (one, other))
        assert torch.equal(here.posterior.value, there.posterior.value)
        assert torch.equal(here.z, there.z)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("make", QUANTIZERS)
def test_same_noise_same_training(make) -> None:
    first, second = (copy.deepcopy(made(make)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    torch.manual_seed(1)
    features = torch.randn(BATCH, 6)
    here = first.train()(features, Noise(5, 1))
    torch.manual_seed(2)
    there = second.train()(features, Noise(5, 1))
    assert torch.equal(here.z, there.z)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("make", QUANTIZERS)
def test_gradients_reach_all(make) -> None:
    quantizer = made(make, (6, 3, 5), codes_per_position=2).train()
    features = torch.randn(BATCH, 6, 3, 5, requires_grad=True)
    passage = quantizer(features, Noise(0))
    loss = passage.z.square().sum() + (0 if passage.penalty is None else passage.penalty.sum())
    loss.backward()
    tensors = {"features": features, **dict(quantizer.named_parameters())}
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


@pytest.mark.parametrize("make", QUANTIZERS)
def test_gradients_are_finite_where_features_are_extreme(make) -> None:
    quantizer = made(make).train()
    features = torch.tensor([0.0, 1e-30, 1e3, -1e3, 1e6])[:, None].repeat(1, 6).requires_grad_()
    passage = quantizer(features, Noise(0))
    (passage.z.square().sum() + (0 if passage.penalty is None else passage.penalty.sum())).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("make", QUANTIZERS)
def test_float32_inside_autocast(make) -> None:
    quantizer = made(make, (6, 3, 5), codes_per_position=2)
    other = copy.deepcopy(quantizer)
    features = torch.randn(BATCH, 6, 3, 5).bfloat16()
    for training in (True, False):
        plain = quantizer.train(training)(features.float(), Noise(0))
        with torch.autocast("cpu", torch.bfloat16):
            cast = other.train(training)(features, Noise(0))
            looked_up = other.lookup(cast.posterior.value)
        assert cast.z.dtype == looked_up.dtype == torch.float32
        assert torch.equal(plain.z, cast.z)
        assert plain.penalty is None or torch.equal(plain.penalty, cast.penalty)
    assert torch.equal(looked_up, cast.z)


@pytest.mark.parametrize("make", QUANTIZERS)
def test_no_examples(make) -> None:
    quantizer = made(make, (6, 3, 5))
    passage = quantizer(torch.zeros(0, 6, 3, 5), None)
    assert passage.z.shape == (0, *quantizer.latent_shape)
    assert passage.posterior.value.shape == (0, *quantizer.code_shape)


@pytest.mark.parametrize("make", QUANTIZERS)
def test_codes_come_into_use(make) -> None:
    """An autoencoder whose features start almost all alike learns to tell the data apart, and to draw it."""
    data = torch.randn(256, 2) @ torch.randn(2, 8)
    encoder, decoder = nn.Linear(8, 6), nn.LazyLinear(8)
    quantizer = make(codebook_size=16, codes_per_position=1).build((6,))
    with torch.no_grad():
        quantizer.head.weight.mul_(0.01)
    decoder(torch.zeros(1, *quantizer.latent_shape))
    parameters = [*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for step in range(120):
        passage = quantizer.train()(encoder(data), Noise(0, step))
        loss = (decoder(passage.z) - data).square().sum(1)
        losses.append(float(loss.detach().mean()))
        optimizer.zero_grad()
        (loss + (0 if passage.penalty is None else passage.penalty)).mean().backward()
        optimizer.step()
    used = quantizer.eval()(encoder(data), None).posterior.value.unique().numel()
    assert used >= 8, used
    assert losses[-1] < 0.4 * losses[0], (losses[0], losses[-1])


@pytest.mark.slow
@pytest.mark.parametrize("make", QUANTIZERS)
def test_compiled_says_the_same(make) -> None:
    plain = made(make, (6, 2, 2))
    inner = copy.deepcopy(plain)
    compiled = torch.compile(inner)
    for step, training in enumerate((True, True, False)):
        one = torch.randn(BATCH, 6, 2, 2, requires_grad=True)
        two = one.detach().clone().requires_grad_()
        for quantizer, features in ((plain.train(training), one), (compiled, two)):
            inner.train(training)
            passage = quantizer(features, Noise(0, step))
            (passage.z.square().sum() + (0 if passage.penalty is None else passage.penalty.sum())).backward()
        torch.testing.assert_close(one.grad, two.grad)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, inner.state_dict()[name])


# Gradients through codebooks


@pytest.mark.parametrize("make", WITH_CODEBOOK)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codes_are_of_the_nearest_vectors(make, distance: str) -> None:
    """The first code of each group, that is: of the others of residual quantisation there is a test below."""
    quantizer = bare(
        made(make, (10,), codes_per_position=2 if make is not ResidualQuantizer else 1, code_dim=5, distance=distance)
    )
    width = quantizer.latent_shape[0]
    features = torch.randn(BATCH, width)
    codes = quantizer(features, None).posterior.value
    for group, table in enumerate(quantizer.books[0].table()):
        part = features.unflatten(1, (-1, 5))[:, group]
        if distance == "euclidean":
            assert torch.equal(codes[:, group], torch.cdist(part, table).argmin(1))
        else:
            assert torch.equal(codes[:, group], torch.cosine_similarity(part[:, None], table, dim=2).argmax(1))
            torch.testing.assert_close(table.norm(dim=1), torch.full((16,), math.sqrt(5)))


@pytest.mark.parametrize("make", WITH_CODEBOOK)
def test_straight_through_is_the_identity(make) -> None:
    quantizer = bare(made(make, codes_per_position=1, code_dim=6))
    features = torch.randn(BATCH, 6, requires_grad=True)
    weights = torch.randn(BATCH, 6)
    (quantizer(features, None).z * weights).sum().backward()
    assert torch.equal(features.grad, weights)


@pytest.mark.parametrize("commitment", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("make", [VectorQuantizer, EMAQuantizer])
def test_commitment_is_the_weight_of_the_encoders_term(make, commitment: float) -> None:
    """d penalty / d z = 2 commitment (z - e); d penalty / d e = 2 sum (e - z), whatever the commitment (eq. 3)."""
    quantizer = bare(made(make, code_dim=6, commitment=commitment))
    features = torch.randn(BATCH, 6, requires_grad=True)
    passage = quantizer(features, None)
    z, e = features.detach(), passage.z.detach()
    passage.penalty.sum().backward()
    torch.testing.assert_close(features.grad, 2 * commitment * (z - e))
    square = (z - e).square().sum(1)
    if make is VectorQuantizer:
        torch.testing.assert_close(passage.penalty, (1 + commitment) * square)
        expected = torch.zeros(16, 6).index_add_(0, passage.posterior.value[:, 0], 2 * (e - z))
        torch.testing.assert_close(quantizer.books[0].vectors.grad[0], expected)
    else:
        torch.testing.assert_close(passage.penalty, commitment * square)


def test_decoder_does_not_teach_the_codebook() -> None:
    quantizer = made(VectorQuantizer)
    quantizer(torch.randn(BATCH, 6), None).z.sum().backward()
    assert quantizer.books[0].vectors.grad is None


def test_rotation_takes_z_to_its_vector() -> None:
    """The gradient's map is the transpose of a rotation times |e| / |z| that takes z to e."""
    for z, e in [(torch.randn(4), torch.randn(4)) for _ in range(5)]:
        rows = [torch.autograd.functional.vjp(lambda x, e=e: rotated(x, e), z, axis)[1] for axis in torch.eye(4)]
        jacobian, scale = torch.stack(rows), e.norm() / z.norm()
        torch.testing.assert_close(jacobian @ z, e)
        torch.testing.assert_close(jacobian @ jacobian.T, scale**2 * torch.eye(4), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.linalg.det(jacobian), scale**4, atol=1e-5, rtol=1e-4)
        assert torch.equal(rotated(z, e), e)


@pytest.mark.parametrize("make", WITH_CODEBOOK)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_options_compose(make, distance: str) -> None:
    """Rotation changes the gradient and nothing else; so does every option with every other."""
    plain = made(make, (6, 2, 2), codes_per_position=2, code_dim=3, distance=distance)
    turned = make(
        codebook_size=16, codes_per_position=2, code_dim=3, distance=distance, gradient_estimator="rotation"
    ).build((6, 2, 2))
    turned.load_state_dict(plain.state_dict())
    features = torch.randn(BATCH, 6, 2, 2)
    gradients, passages = [], []
    for quantizer in (plain, turned.eval()):
        x = features.clone().requires_grad_()
        passage = quantizer(x, None)
        passage.z.square().sum().backward()
        gradients.append(x.grad)
        passages.append(passage)
    assert torch.equal(passages[0].z, passages[1].z)
    assert torch.equal(passages[0].penalty, passages[1].penalty)
    assert gradients[1].isfinite().all()
    assert not torch.allclose(gradients[0], gradients[1])
    assert torch.equal(turned.lookup(passages[1].posterior.value), passages[1].z)


# Averages


def test_averages_follow_the_paper() -> None:
    """Appendix A.1, written out for one code at a time."""
    book = AveragedCodebook(1, 4, 3, decay=0.9, revive=0.0, epsilon=1e-5)
    z = torch.randn(40, 1, 3)
    book.start(z, Noise(0))
    count, total = book.count.clone()[0], book.total.clone()[0]
    for step in range(90):
        z = torch.randn(30, 1, 3)
        codes = nearest_codes(z, book.table())
        book.learn(z, codes, Noise(0, step))
        decay = min(0.9, (1 + step) / (10 + step))  # at first the averages are short
        for k in range(4):
            mine = z[codes[:, 0] == k, 0]
            count[k] = decay * count[k] + (1 - decay) * len(mine)
            total[k] = decay * total[k] + (1 - decay) * mine.sum(0)
        torch.testing.assert_close(book.count[0], count)
        torch.testing.assert_close(book.total[0], total)
        smooth = (count + 1e-5) / (count.sum() + 4e-5) * count.sum()
        torch.testing.assert_close(book.vectors[0], total / smooth[:, None])


def test_k_means_finds_what_is_there() -> None:
    centres = 10 * torch.eye(5)
    z = (centres.repeat(20, 1) + 0.1 * torch.randn(100, 5))[:, None]
    best = min((k_means(z, 5, Noise(seed)) for seed in range(20)), key=lambda found: found[1].var())
    means, count = best
    assert torch.equal(count, torch.full((1, 5), 20.0))
    assert torch.cdist(means[0], centres).amin(0).max() < 0.2
    codes = nearest_codes(z, means)[:, 0]
    for k in range(5):
        torch.testing.assert_close(means[0, k], z[codes == k, 0].mean(0))


def test_k_means_with_fewer_vectors_than_codes() -> None:
    z = torch.randn(10, 2, 3)
    means, count = k_means(z, 25, Noise(0))
    assert means.isfinite().all()
    assert torch.equal(count.sum(1), torch.full((2,), 10.0))
    for group in range(2):
        assert torch.cdist(means[group], means[group]).add(torch.eye(25)).min() > 0


def test_start_takes_the_first_batch_only() -> None:
    quantizer = EMAQuantizer(codebook_size=4, decay=1.0, revive=0.0).build((6,))
    assert not quantizer.books[0].started
    quantizer.train()(torch.randn(BATCH, 6), Noise(0))
    before = quantizer.books[0].vectors.clone()
    quantizer(5 + torch.randn(BATCH, 6), Noise(0, 1))
    torch.testing.assert_close(quantizer.books[0].vectors, before)


@pytest.mark.parametrize("noise", [None, Noise(3)], ids=["fixed", "noise"])
def test_dead_codes_take_vectors_of_the_batch(noise: Noise | None) -> None:
    quantizer = bare(EMAQuantizer(codebook_size=8, code_dim=2, decay=0.5).build((2,)))
    quantizer.train()(torch.randn(50, 2), noise)
    far = 100 + torch.randn(50, 2)
    for _ in range(10):
        quantizer(far, noise)
    codes = quantizer.eval()(far, None).posterior.value
    assert codes.unique().numel() == 8
    assert torch.cdist(quantizer.books[0].vectors[0], far).amin(1).max() < 2


def test_revived_code_is_a_vector_of_its_group() -> None:
    book = AveragedCodebook(2, 3, 2, decay=0.5, epsilon=0.0)
    z = torch.cat([torch.randn(30, 1, 2), 50 + torch.randn(30, 1, 2)], 1)
    book.start(z, Noise(0))
    with torch.no_grad():
        book.count[:, 1] = 0
        book.total[:, 1] = 0
    codes = torch.zeros(30, 2, dtype=torch.int64)
    book.learn(z, codes, Noise(0))
    for group in range(2):
        # not `cdist`, whose matrix product loses what is small beside the vectors' length
        assert (book.vectors[group, 1] - z[:, group]).abs().amax(1).min() < 1e-4
        assert book.count[group, 1] > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("make", WITH_CODEBOOK)
def test_bad_features_do_not_poison(make, bad: float) -> None:
    fresh = make(codebook_size=8, code_dim=3).build((6,)).train()
    features = torch.randn(BATCH, 6)
    poison = features.clone()
    poison[3, 2] = bad
    state = copy.deepcopy(fresh.state_dict())
    passage = fresh(poison, Noise(0))
    assert not passage.penalty.isfinite().all()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    fresh(features, Noise(0, 1))
    state = copy.deepcopy(fresh.state_dict())
    fresh(poison, Noise(0, 2))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_gradient_taught_codebook_starts_by_k_means() -> None:
    quantizer = bare(VectorQuantizer(codebook_size=4, code_dim=3).build((3,)))
    z = 7 + torch.randn(30, 3)
    quantizer.train()(z, Noise(1))
    expected, _ = k_means(z[:, None], 4, Noise(1).split("codebook 0").split("start"))
    assert torch.equal(quantizer.books[0].vectors, expected)
    assert isinstance(quantizer.books[0], LearnedCodebook)


def test_mapped_codebook_starts_with_the_second_moments_of_the_batch() -> None:
    quantizer = bare(SimVQ(codebook_size=20000, code_dim=3).build((3,)))
    z = torch.randn(500, 3) @ torch.randn(3, 3) + torch.tensor([2.0, 0.0, -1.0])
    quantizer.train()(z, Noise(0))
    table = quantizer.books[0].table()[0]
    torch.testing.assert_close(table.T @ table / len(table), z.T @ z / len(z), rtol=0.05, atol=0.05)
    assert not quantizer.books[0].frozen.requires_grad


# Several processes


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, 2, 2, generator=generator) + (0 if step < 2 else 5) for step in range(count)]


def trained(make, distance: str, rows: slice, rank: int, world: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    quantizer = make(codebook_size=8, codes_per_position=2, code_dim=3, distance=distance).build((6, 2, 2)).train()
    if make in (EMAQuantizer, ResidualQuantizer):
        for book in quantizer.books:
            book.decay, book.revive = 0.5, 0.3
    for step, features in enumerate(batches(6)):
        quantizer(features[rows], Noise(0, step, rank=rank, world=world))
    return quantizer.state_dict()


CASES = [
    (name, distance) for name in ("vq", "ema", "simvq", "residual") for distance in ("euclidean", "cosine")
]  # all in one start of the two processes


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(0, 10) if rank == 0 else slice(10, 16)
    states = [trained(find("quantizer", name).load(), distance, rows, rank, 2) for name, distance in CASES]
    torch.save(states, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif("fork" not in mp.get_all_start_methods(), reason="needs fork")
def test_two_processes_keep_the_codebook_of_one(tmp_path: Path) -> None:
    """k-means, averages and revived codes: the same on both, and as of one process that has the joined batch."""
    mp.start_processes(process, (str(tmp_path),), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, first, second in zip(CASES, *states, strict=True):
        alone = trained(find("quantizer", case[0]).load(), case[1], slice(None), 0, 1)
        for name, tensor in alone.items():
            assert torch.equal(first[name], second[name]), (case, name)
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{case} {name}")


def test_the_two_processes_above_have_codes_to_revive() -> None:
    """So that what is compared there is not empty."""
    z = [b.movedim(1, -1).reshape(-1, 2, 3) for b in batches(6)]
    book = AveragedCodebook(2, 8, 3, decay=0.5, revive=0.3)
    book.start(z[0], Noise(0))
    never = copy.deepcopy(book)
    never.revive = 0.0
    for step, rows in enumerate(z):
        for each in (book, never):
            each.learn(rows, nearest_codes(rows, each.table()), Noise(0, step))
    assert not torch.allclose(book.vectors, never.vectors)


# Residual quantisation


def test_residual_stages_quantise_what_is_left() -> None:
    quantizer = bare(ResidualQuantizer(codebook_size=16, codes_per_position=3, code_dim=6).build((6,)))
    quantizer.train()(torch.randn(500, 6), Noise(0))
    z = torch.randn(BATCH, 6)
    passage = quantizer.eval()(z, None)
    left, penalty = z, torch.zeros(BATCH)
    for stage, book in enumerate(quantizer.books):
        table = book.table()[0]
        codes = torch.cdist(left, table).argmin(1)
        assert torch.equal(passage.posterior.value[:, stage], codes)
        left = left - table[codes]
        penalty += 0.25 * left.square().sum(1)
    torch.testing.assert_close(passage.z, z - left)
    torch.testing.assert_close(passage.penalty, penalty)


def test_each_residual_stage_helps() -> None:
    z = torch.randn(500, 6)
    errors = []
    for stages in (1, 2, 3, 4):
        quantizer = bare(ResidualQuantizer(codebook_size=16, codes_per_position=stages, code_dim=6).build((6,)))
        for step in range(5):
            passage = quantizer.train()(z, Noise(0, step))
        errors.append(float((quantizer.eval()(z, None).z - z).square().sum(1).mean()))
    assert all(b < 0.7 * a for a, b in itertools.pairwise(errors)), errors
    assert passage.posterior.value.shape == (500, 4)


def test_residual_has_four_stages_unless_told() -> None:
    assert ResidualQuantizer().build((6,)).code_shape == (4,)


# FSQ


@pytest.mark.parametrize(
    ("size", "levels"),
    [(2, (2,)), (16, (4, 4)), (240, (8, 6, 5)), (256, (8, 8, 4)), (512, (8, 8, 8)), (1000, (8, 5, 5, 5))],
)
def test_levels(size: int, levels: tuple[int, ...]) -> None:
    assert levels_for(size) == levels


@pytest.mark.parametrize("power", range(1, 17))
def test_powers_of_two_have_levels(power: int) -> None:
    levels = levels_for(2**power)
    assert math.prod(levels) == 2**power
    assert power == 1 or min(levels) >= 4


@pytest.mark.parametrize(("size", "near"), [(17, "16"), (1021, "1024"), (1, "2")])
def test_sizes_without_levels_are_answered_by_the_nearest(size: int, near: str) -> None:
    with raises("bad-codebook-size"):
        FSQ(codebook_size=size).build((6,))


def test_fsq_by_hand() -> None:
    quantizer = FSQ(levels=(3, 4)).build((2,))
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    values = torch.tensor([[-9.0, -9.0], [0.0, 9.0], [9.0, 0.01], [0.4, -0.01]])
    passage = quantizer(values, None)
    expected = torch.tensor([[-1.0, -1.0], [0.0, 1.0], [1.0, 1 / 3], [0.0, -1 / 3]])
    torch.testing.assert_close(passage.z, expected)
    assert passage.posterior.value[:, 0].tolist() == [0, 1 + 3 * 3, 2 + 3 * 2, 1 + 3 * 1]
    assert quantizer.codebook_size == 12
    assert passage.penalty is None


def test_fsq_gradient_is_that_of_the_bound() -> None:
    quantizer = FSQ(levels=(5, 8)).build((2,))
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    features = torch.randn(BATCH, 2, requires_grad=True)
    quantizer(features, None).z.sum().backward()
    torch.testing.assert_close(features.grad, 1 - features.detach().tanh().square())


def test_fsq_uses_all_codes_of_wide_features() -> None:
    quantizer = FSQ(levels=(8, 5, 4)).build((3,))
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    codes = quantizer(torch.randn(5000, 3), None).posterior.value
    assert codes.unique().numel() == 160


# LFQ


def test_lfq_codes_are_signs() -> None:
    quantizer = LFQ(codebook_size=8).build((3,))
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    z = torch.randn(BATCH, 3)
    passage = quantizer(z, None)
    assert torch.equal(passage.z, z.sign())
    assert torch.equal(passage.posterior.value[:, 0], ((z > 0).long() * torch.tensor([1, 2, 4])).sum(1))


def test_lfq_penalty_by_brute_force() -> None:
    """The entropy of q(code | z), a softmax over all K codes of minus the squared distances, is that of its bits."""
    z = torch.randn(BATCH, 3)
    quantizer = LFQ(codebook_size=8, commitment=0.5, entropy=0.2).build((3,))
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    every = quantizer.lookup(torch.arange(8)[:, None])
    q = torch.softmax(-torch.cdist(z, every).square(), 1)
    entropy = -(q * q.log()).sum(1)
    bits = (q @ ((every + 1) / 2)).mean(0)
    of_mean = -(bits * bits.log() + (1 - bits) * (1 - bits).log()).sum()
    expected = 0.5 * (z - z.sign()).square().sum(1) + 0.2 * (entropy - of_mean)
    torch.testing.assert_close(quantizer(z, None).penalty, expected)


def test_lfq_gradient_is_passed_straight_through() -> None:
    quantizer = LFQ(codebook_size=8).build((3,))
    quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    features = torch.randn(BATCH, 3, requires_grad=True)
    weights = torch.randn(BATCH, 3)
    (quantizer(features, None).z * weights).sum().backward()
    assert torch.equal(features.grad, weights)


# Mistakes


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (VectorQuantizer, {"codebook_size": 0}, "codebook size must be at least 1, not 0"),
        (EMAQuantizer, {"codes_per_position": 0}, "codes per position must be at least 1, not 0"),
        (ResidualQuantizer, {"codes_per_position": 0}, "codes per position must be at least 1, not 0"),
        (SimVQ, {"code_dim": 0}, "code dim must be at least 1, not 0"),
        (EMAQuantizer, {"distance": "manhattan"}, "distance is 'manhattan', not 'euclidean' or 'cosine'"),
        (
            EMAQuantizer,
            {"gradient_estimator": "none"},
            "gradient estimator is 'none', not 'straight-through' or 'rotation'",
        ),
        (FSQ, {"levels": (8, 5), "codebook_size": 41}, r"levels \(8, 5\) give 40 codes, not 41"),
        (FSQ, {"levels": (8, 1)}, "levels must be at least 2"),
        (FSQ, {"codes_per_position": 0}, "codes per position must be at least 1"),
        (LFQ, {"codebook_size": 1000}, "LFQ needs a codebook_size that is a power of two: use 1024"),
    ],
)
def test_mistakes_are_named(make, options: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make(**options).build((6,))


def test_helpers_keep_values_exactly() -> None:
    z, e = torch.randn(9, 4), 1000 * torch.randn(9, 4)
    assert torch.equal(straight_through(z, e), e)
    torch.testing.assert_close(cosine(z).norm(dim=1), torch.full((9,), 2.0))
