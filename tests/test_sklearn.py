"""The estimators keep scikit-learn's contract, and do what they are for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_methods_subset_invariance, parametrize_with_checks

from tessella.sklearn import LatentOutlierDetector, LatentTransformer

STEPS = 20


@pytest.mark.slow
@parametrize_with_checks(
    [LatentOutlierDetector(max_steps=STEPS, random_state=0), LatentTransformer(max_steps=STEPS, random_state=0)]
)
def test_keeps_the_contract(estimator, check) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [LatentOutlierDetector(), LatentTransformer()], ids=lambda of: type(of).__name__)
def test_a_rows_numbers_do_not_depend_on_its_neighbours_with_default_options(estimator) -> None:
    """All of scikit-learn's checks with default options take a quarter of an hour: benchmarks/conformance.py."""
    check_methods_subset_invariance(type(estimator).__name__, estimator)


def band(n: int, seed: int = 0) -> np.ndarray:
    """Points near a line."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, 1)) * [3.0, -2.0, 1.0] + generator.normal(0, 0.1, (n, 3))


def bars(n: int, seed: int = 0) -> np.ndarray:
    """Pictures of bytes `[n, 8, 8]`: one bright column each."""
    generator = np.random.default_rng(seed)
    x = np.zeros((n, 8, 8), np.uint8)
    x[np.arange(n), :, generator.integers(0, 8, n)] = generator.integers(180, 256, (n, 1))
    return x


def test_outliers_are_those_that_break_the_pattern() -> None:
    detector = LatentOutlierDetector(
        contamination=0.05, max_steps=300, model_options={"width": 32, "depth": 1}, random_state=0
    ).fit(band(400))
    assert np.mean(detector.predict(band(400)) == -1) == pytest.approx(0.05, abs=0.005)
    fresh = band(200, 1)
    broken = np.stack([column[::-1] if i == 0 else column for i, column in enumerate(band(200, 2).T)], 1)
    # every column of the broken ones is distributed as it should be
    scores = np.concatenate([detector.score_samples(fresh), detector.score_samples(broken)])
    assert roc_auc_score(np.arange(400) < 200, scores) > 0.9
    assert np.array_equal(detector.decision_function(fresh), detector.score_samples(fresh) - detector.offset_)


def gross(count: int, seed: int) -> np.ndarray:
    """Outliers anywhere, most of them far away."""
    return np.random.default_rng(seed).normal(0, 15, (count, 3))


def clump(count: int, seed: int) -> np.ndarray:
    """Outliers that are close to each other."""
    return np.random.default_rng(seed).normal([12.0, 9.0, 6.0], 0.3, (count, 3))


@pytest.mark.parametrize(("outliers", "share"), [(gross, 0.1), (clump, 0.05)])
def test_outliers_in_training_change_little(outliers, share: float) -> None:
    x, fresh, others = band(400), band(200, 1), outliers(200, 4)
    mixed = np.concatenate([x, outliers(int(share * 400), 3)])
    without, within = (LatentOutlierDetector(max_steps=50, random_state=0).fit(rows) for rows in (x, mixed))
    assert spearmanr(without.score_samples(fresh), within.score_samples(fresh)).statistic > 0.9
    found = np.concatenate([within.score_samples(fresh), within.score_samples(others)])
    assert roc_auc_score(np.arange(400) < 200, found) > 0.98


def test_the_local_scores_are_chosen_by_made_up_anomalies_and_reported() -> None:
    """Values that span many powers of ten are compared by ranks."""
    x = np.exp(
        3 * np.random.default_rng(0).normal(size=(600, 1)) + 0.1 * np.random.default_rng(1).normal(size=(600, 4))
    )
    choice = LatentOutlierDetector(max_steps=5, random_state=0).fit(x).choice_
    assert choice.local == ("rank-neighbours",)
    assert choice.rows > 100
    assert set(choice.figures) == {"global", "neighbours", "rank-neighbours", "bound"}
    assert set(choice.figures["bound"]) == {"permuted", "scaled", "resampled"}


def test_a_model_without_a_bound_has_a_distortion() -> None:
    x = band(100)
    detector = LatentOutlierDetector("ae", max_steps=5, random_state=0).fit(x)
    assert set(detector.choice_.figures) == {"global", "neighbours", "rank-neighbours"}
    assert np.isfinite(detector.set_params(criterion="distortion").fit(x).score_samples(x)).all()


def test_the_training_stops_when_the_validation_bound_stops_falling() -> None:
    assert LatentOutlierDetector(max_steps=4000, random_state=0).fit(band(60)).n_iter_ < 4000


def test_pictures_are_taken_as_pictures_or_as_rows() -> None:
    x = bars(64)
    detector = LatentOutlierDetector(
        criterion="complexity-corrected",
        max_steps=20,
        image_shape=(8, 8),
        model_options={"width": 8, "depth": 1},
        random_state=0,
    ).fit(x)
    assert detector.model_.model.schema.shape == (1, 8, 8)
    assert detector.model_.model.schema.values.name == "uint8"
    as_rows = detector.score_samples(x.reshape(64, -1))
    assert np.array_equal(detector.score_samples(x), as_rows)
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
    bound = clone(detector).set_params(criterion="bound").fit(x)
    assert bound.score_samples(x).mean() > bound.score_samples(noise).mean() + 50
    with pytest.raises(ValueError, match="image_shape"):
        detector.score_samples(x[:, :7])
    with pytest.raises(ValueError, match="pictures of"):
        detector.score_samples(x.reshape(64, -1)[:, :60])
    with pytest.raises(ValueError, match="give uint8"):
        detector.score_samples(x.astype(float))


def test_colour_pictures_of_real_values() -> None:
    x = np.random.default_rng(0).normal(size=(20, 8, 6, 3))
    options = {"width": 8, "depth": 1, "latent_dim": 2}
    made = LatentTransformer(max_steps=4, image_shape=(8, 6, 3), model_options=options, random_state=0)
    z = made.fit_transform(x)
    assert made.model_.model.schema.shape == (3, 8, 6)
    assert z.shape == (20, len(made.get_feature_names_out()))
    assert np.array_equal(z, made.transform(x.reshape(20, -1)))


def test_latents_and_codes_are_features() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    x = generator.normal(size=(300, 6)) + 4 * labels[:, None]
    pipeline = make_pipeline(
        LatentTransformer(max_steps=150, random_state=0), StandardScaler(), LogisticRegression()
    ).fit(x, labels)
    assert pipeline.score(x, labels) > 0.95
    codes = LatentTransformer(
        "vqvae", max_steps=20, model_options={"codes_per_position": 3, "codebook_size": 8}, random_state=0
    ).fit(x)
    found = codes.transform(x)
    assert found.dtype == np.int64
    assert found.shape[1] == len(codes.get_feature_names_out())
    assert found.min() >= 0
    assert found.max() < 8
    assert list(codes.get_feature_names_out()[:2]) == ["code0", "code1"]


def test_a_seed_makes_it_repeatable_and_leaves_the_world_alone() -> None:
    import torch

    x = band(50)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = (
        LatentOutlierDetector(max_steps=5, random_state=s).fit(x).score_samples(x) for s in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_pickle_holds_plain_arrays_and_gives_the_same() -> None:
    detector = LatentOutlierDetector(max_steps=5, random_state=0).fit(band(50))
    kept = pickle.dumps(detector)
    assert b"torch" not in kept
    assert np.array_equal(pickle.loads(kept).score_samples(band(9)), detector.score_samples(band(9)))


@pytest.mark.parametrize("n", [2, 3, 20])
@pytest.mark.parametrize("features", [1, 4])
def test_tiny_and_constant_data_are_taken(n: int, features: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, features))
    x[:, 0] = 5.0
    detector = LatentOutlierDetector(max_steps=3, random_state=0).fit(x)
    assert np.isfinite(detector.score_samples(x)).all()
    other = x[:1] + np.eye(features)[0]  # breaks what was constant
    assert detector.score_samples(other) < detector.score_samples(x[:1])


def test_equal_rows_have_one_score() -> None:
    scores = (
        LatentOutlierDetector(max_steps=3, random_state=0)
        .fit(np.full((80, 3), 7.0))
        .score_samples(np.full((5, 3), 7.0))
    )
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"contamination": 0.0}, "contamination"),
        ({"contamination": 0.6}, "contamination"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 2.5}, "max_steps"),
        ({"criterion": "magic"}, "no score"),
        ({"model": "magic"}, "no model"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(Exception, match=says):
        LatentOutlierDetector(**{"max_steps": 2, **options}).fit(band(20))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = band(20)
    detector = LatentOutlierDetector(max_steps=2, random_state=0).fit(x)
    x[3, 1] = bad
    for call in (detector.fit, detector.predict):
        with pytest.raises(ValueError, match=r"NaN|infinity|too large"):
            call(x)
