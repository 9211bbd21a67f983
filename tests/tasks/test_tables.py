"""Scores of rows of a table: what they promise for single rows, ties, clumps and unknown values."""

from __future__ import annotations

import numpy as np

from tessella.tasks.detect.tables import NormalScores, Surprise, TableScores, Tails, make_up_rows


def mixed(count: int, seed: int = 0) -> np.ndarray:
    """Rows with a normal, a heavy-tailed, a discrete, a constant and a binary column."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 5))
    x[:, 1] = np.exp(2 * x[:, 1])
    x[:, 2], x[:, 3], x[:, 4] = np.round(x[:, 2]), 1.0, x[:, 0] > 0
    return x


def test_a_rows_scores_are_its_own() -> None:
    scores, fresh = TableScores(mixed(300), seed=0), mixed(40, 1)
    together = scores(fresh)
    for row in range(40):
        alone = scores(fresh[row : row + 1])
        assert all(alone[name][0] == together[name][row] for name in together)


def test_reference_rows_do_not_count_themselves() -> None:
    """So they score as fresh rows of the same distribution do: KS distance of 2 x 1,000 scores, p > 1e-3."""
    from scipy.stats import ks_2samp

    x = mixed(1000)
    scores = TableScores(x, seed=0)
    own, other = scores(x), scores(mixed(1000, 1))
    for name in own:
        assert ks_2samp(own[name], other[name]).pvalue > 1e-3


def test_a_clump_is_trimmed_and_a_tail_is_not() -> None:
    x = np.random.default_rng(0).normal(size=(500, 4))
    clump = np.random.default_rng(1).normal(6, 0.2, (40, 4))
    scores = TableScores(np.concatenate([x, clump]), seed=0)
    assert not scores.kept[500:].any()
    assert scores.kept[:500].mean() > 0.9
    farthest = np.argsort(np.linalg.norm(x, axis=1))[-10:]
    assert scores.kept[farthest].mean() > 0.7


def test_surprise_is_the_log_of_the_tail_share_and_keeps_the_order_beyond() -> None:
    reference = np.random.default_rng(0).exponential(size=10_000)
    surprise = Surprise(reference)
    at = np.array([0.5, 1.0, 3.0, 10.0, 30.0])
    assert np.allclose(surprise(at), at, rtol=0.15)  # -log P(score >= s) = s of an exponential
    assert (np.diff(surprise(np.linspace(0, 50, 1000))) >= 0).all()


def test_ranks_keep_ties_and_go_on_beyond_the_range() -> None:
    view = NormalScores(np.array([[0.0], [0.0], [1.0], [1.0], [1.0], [2.0]]))
    seen = view(np.array([[0.0], [1.0], [2.0], [4.0], [-2.0]]))[:, 0]
    assert np.isclose(seen[1], 0.2104, atol=1e-3)  # mid-rank 3.5 of 6
    assert seen[3] > seen[2] > seen[1] > seen[0] > seen[4]
    assert Tails(np.arange(100.0)[:, None])(np.array([[50.0], [99.0], [200.0]])).argsort().tolist() == [0, 1, 2]


def test_permuted_rows_keep_each_columns_distribution() -> None:
    """The mean of each column moves by less than 5 standard errors."""
    x = mixed(4000)
    permuted = make_up_rows(x, np.random.default_rng(0))["permuted"]
    assert (np.abs(permuted.mean(0) - x.mean(0)) <= 5 * x.std(0) / np.sqrt(4000)).all()
    assert abs(np.corrcoef(permuted[:, 0], permuted[:, 4])[0, 1]) < abs(np.corrcoef(x[:, 0], x[:, 4])[0, 1])
