import pytest
import torch

from recsys.evaluation.bootstrap import Comparison, Draws, Sampled, resampled_aucs, resampled_means
from recsys.evaluation.ctr import auc


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compared(sampled: Sampled, num: int, draws: Draws) -> Comparison:
    """The first `num` columns against the others."""
    return sampled.compared("m", slice(0, num), slice(num, None), draws)


def compare_means(a: list[torch.Tensor], b: list[torch.Tensor], draws: Draws) -> Comparison:
    return compared(Sampled.means(torch.stack([*a, *b], dim=1), draws), len(a), draws)


def compare_aucs(labels: torch.Tensor, a: torch.Tensor, b: torch.Tensor, draws: Draws) -> Comparison:
    columns, clusters = torch.stack([a, b], dim=1), torch.arange(len(labels)) // 10
    return compared(Sampled.aucs(labels, columns, draws, clusters=clusters), 1, draws)


def counts_of(draws: Draws, num_clusters: int) -> torch.Tensor:
    return torch.cat(list(draws.counts(num_clusters)))


def test_every_draw_draws_as_many_clusters_as_there_are() -> None:
    counts = counts_of(Draws(seed=3, num_draws=50), 40)
    assert counts.shape == (50, 40)
    assert bool((counts.sum(1) == 40).all())
    assert torch.equal(counts, counts_of(Draws(seed=3, num_draws=50), 40))
    assert not torch.equal(counts, counts_of(Draws(seed=4, num_draws=50), 40))
    assert counts_of(Draws(seed=0, num_draws=400), 40).var() == pytest.approx(1 - 1 / 40, abs=0.05)


def test_resampled_means_equal_a_loop() -> None:
    draws = Draws(seed=0, num_draws=30)
    values, weights = noise(60, 2), noise(60, seed=1).abs()
    clusters = torch.arange(60) % 7 * 1000 - 5
    samples = resampled_means(values, draws, clusters=clusters, weights=weights)
    for counts, sample in zip(counts_of(draws, 7), samples, strict=True):
        rows = torch.cat([(clusters == c * 1000 - 5).nonzero()[:, 0].repeat(int(counts[c])) for c in range(7)])
        expected = (values[rows] * weights[rows, None]).sum(0) / weights[rows].sum()
        assert torch.allclose(sample.float(), expected, atol=1e-5)


def test_resampled_aucs_equal_the_auc_of_repeated_rows() -> None:
    draws = Draws(seed=0, num_draws=30)
    labels = (noise(120) > 0.5).float()
    scores = (noise(120, 2, seed=1) * 3).round()  # many ties
    weights = torch.arange(120) % 3 + 1
    clusters = torch.arange(120) % 11
    samples = resampled_aucs(labels, scores, draws, clusters=clusters, weights=weights)
    for counts, sample in zip(counts_of(draws, 11), samples, strict=True):
        rows = torch.arange(120).repeat_interleave(counts[clusters].long() * weights)
        expected = [auc(labels[rows], scores[rows, column]) for column in range(2)]
        assert sample.tolist() == pytest.approx(expected, abs=1e-12)


def test_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = noise(2000)
    draws = Draws(seed=0)
    samples = resampled_means(values[:, None], draws)[:, 0]
    interval = draws.interval(float(values.mean()), samples)
    expected = 1.96 * float(values.std()) / 2000**0.5
    assert interval.high - interval.value == pytest.approx(expected, rel=0.15)
    assert interval.value - interval.low == pytest.approx(expected, rel=0.15)


def test_clustered_interval_is_wider_when_rows_of_a_user_agree() -> None:
    values = noise(50).repeat_interleave(40)
    clusters = torch.arange(50).repeat_interleave(40)
    draws = Draws(seed=0, num_draws=300)
    plain, clustered = (resampled_means(values[:, None], draws, clusters=c).std() for c in (None, clusters))
    assert float(clustered / plain) == pytest.approx(40**0.5, rel=0.25)


def test_paired_comparison_sees_what_plain_intervals_do_not() -> None:
    skill = noise(500)
    a, b = skill + 0.05 + noise(500, seed=1) * 0.1, skill
    draws = Draws(seed=0)
    assert compare_means([a], [b], draws).above
    assert compare_means([b], [a], draws).below
    spread = resampled_means(skill[:, None], draws).std()
    assert spread > 0.04  # of the means themselves: nearly the difference


def test_equal_models_are_not_told_apart() -> None:
    labels = (noise(3000) > 0.3).float()
    a, b = labels + noise(3000, seed=1) * 2, labels + noise(3000, seed=2) * 2
    comparison = compare_aucs(labels, a, b, Draws(seed=0, num_draws=200))
    assert not comparison.above
    assert not comparison.below
    same = compare_aucs(labels, a, a, Draws(seed=0, num_draws=100))
    assert (same.difference.low, same.difference.high) == (0.0, 0.0)


def test_better_ranker_is_above_and_both_numbers_are_printed() -> None:
    labels = (noise(3000) > 0.3).float()
    a, b = labels + noise(3000, seed=1), labels + noise(3000, seed=2) * 2
    comparison = compare_aucs(labels, a, b, Draws(seed=0, num_draws=200))
    assert comparison.above
    assert (comparison.a, comparison.b) == pytest.approx((auc(labels, a), auc(labels, b)))
    assert f"{comparison.a:.4f} against {comparison.b:.4f}" in str(comparison)
    assert str(comparison).endswith("above")


def test_interval_covers_the_training_seeds() -> None:
    skill = noise(400)
    seeds = [skill + offset for offset in (0.5, -0.5, 0.1)]  # one lucky seed
    draws = Draws(seed=0)
    assert compare_means(seeds[:1], [skill], draws).above
    several = compare_means(seeds, [skill], draws)
    assert not several.above
    assert several.a - several.b == pytest.approx(0.1 / 3, abs=1e-5)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        values = noise(80, seed=seed)
        draws = Draws(seed=seed, num_draws=200, confidence=0.9)
        interval = draws.interval(float(values.mean()), resampled_means(values[:, None], draws)[:, 0])
        hits += interval.low <= 0 <= interval.high
    assert 165 <= hits <= 193  # binomial(200, .9) within three standard deviations, and a little below


def test_draws_without_both_classes_are_refused() -> None:
    labels = torch.tensor([1.0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"of 100 draws of 4 clusters hold rows of one class alone"):
        resampled_aucs(labels, torch.ones(4, 1), Draws(seed=0, num_draws=100))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="num_draws must be at least 20, got 1"):
        Draws(seed=0, num_draws=1)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        Draws(seed=0, confidence=95)
    with pytest.raises(ValueError, match=r"clusters must be \[3\], one per row, got \[2\]"):
        Sampled.means(torch.ones(3, 1), Draws(seed=0), clusters=torch.arange(2))
    with pytest.raises(ValueError, match="no rows"):
        Sampled.means(torch.ones(0, 1), Draws(seed=0))
