import numpy as np
import pytest
from dtrap.protocol.statistics import Interval, binomial_interval, mean_interval, paired_difference
from scipy import integrate, special, stats


def test_interval_of_a_hand_computed_example():
    # values 1..5: mean 3, standard deviation sqrt(2.5), t(0.975; 4) = 2.7764451 from a printed table
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.count == 5
    assert interval.half_width == pytest.approx(2.7764451 * np.sqrt(2.5) / np.sqrt(5), rel=1e-7)


@pytest.mark.parametrize("count", [2, 7, 400])
def test_t_density_over_the_interval_is_95_percent(count):
    values = np.random.default_rng(count).normal(50, 6, count)
    interval = mean_interval(values)
    degrees = count - 1
    error = np.sqrt(np.sum((values - values.mean()) ** 2) / degrees / count)
    log_scale = special.gammaln((degrees + 1) / 2) - special.gammaln(degrees / 2)

    def density(t):
        exponent = -(degrees + 1) / 2 * np.log1p(t**2 / degrees)
        return np.exp(log_scale + exponent) / np.sqrt(degrees * np.pi)

    mass, _ = integrate.quad(density, -interval.half_width / error, interval.half_width / error)
    assert mass == pytest.approx(0.95, abs=1e-7)
    assert interval.mean == pytest.approx(values.mean())


def test_the_interval_covers_the_truth_in_95_percent_of_cases():
    draws = np.random.default_rng(0).normal(10, 3, (4000, 6))
    covered = [abs(interval.mean - 10) <= interval.half_width for interval in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_one_value_has_no_interval_and_none_is_an_error():
    assert mean_interval([42.0]) == Interval(42.0, None, 1)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


@pytest.mark.parametrize(("right", "images"), [(7, 10), (0, 10), (10, 10), (1, 1), (412, 1000)])
def test_the_ends_of_the_exact_binomial_interval_leave_two_and_a_half_percent(right, images):
    found = binomial_interval(right, images)
    assert (found.mean, found.count, found.images) == (100 * right / images, 1, images)
    above = stats.binom.sf(right - 1, images, found.low / 100)  # P(X >= right)
    below = stats.binom.cdf(right, images, found.high / 100)
    assert above == pytest.approx(0.025 if right > 0 else 1.0, abs=1e-6)
    assert below == pytest.approx(0.025 if right < images else 1.0, abs=1e-6)


def test_identical_values_have_no_interval_and_two_or_three_are_too_few():
    same = mean_interval([0.1 + 0.2] * 3)
    assert (same.identical, same.too_few, same.low) == (True, False, None)
    assert [mean_interval(range(count)).too_few for count in (1, 2, 3, 4)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (mean_interval([50.0, 60.0, 70.0]), "60.0 ± 24.8 (95 %, Student's t over 3, too few)"),
        (binomial_interval(7, 10), "70.0 (95 % 34.8 to 93.3, exact binomial, 10 test images)"),
        (mean_interval([50.0, 50.0]), "50.0 (identical in 2)"),
        (mean_interval([50.0]), "50.0 (1 value)"),
    ],
)
def test_a_printed_interval_says_what_it_is(interval, text):
    assert str(interval) == text


def test_paired_difference_uses_the_common_episodes_only():
    first = {0: 50.0, 1: 60.0, 2: 70.0, 9: 0.0}
    second = {2: 69.0, 1: 57.0, 0: 49.0, 5: 100.0}
    assert paired_difference(first, second) == mean_interval([1.0, 3.0, 1.0])


def test_paired_difference_is_narrower_than_its_parts_where_episodes_vary():
    generator = np.random.default_rng(1)
    difficulty = generator.normal(50, 10, 100)
    first = dict(enumerate(difficulty + 1))
    second = dict(enumerate(difficulty + generator.normal(0, 1, 100)))
    assert paired_difference(first, second).half_width < mean_interval(first.values()).half_width / 5


def test_paired_difference_without_a_common_episode_is_an_error():
    with pytest.raises(ValueError, match="common episode"):
        paired_difference({0: 1.0}, {1: 1.0})
