import math

import numpy as np
import pytest
from scipy import special, stats

from reprolib.measure import ends as ends_of
from reprolib.measure import intervals, samples
from reprolib.measure.intervals import Interval

# --- how often the intervals hold the truth: every design of the book, as clusters x values in each

DESIGNS = [(5, 1), (8, 1), (10, 8), (10, 64), (20, 8), (24, 1), (32, 1), (32, 4), (64, 1), (100, 1), (200, 5), (8, 16)]
DESIGNS += [(80, 8)]
UNEQUAL = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 40])
SIZES = [np.full(clusters, float(each)) for clusters, each in DESIGNS] + [UNEQUAL.astype(float)]
CORRELATIONS = (0, 0.1, 0.3)  # of two values of one cluster
SETS = 3000  # simulated for each cell


def name(sizes):
    return f"{len(sizes)}x{sizes[0]:g}" if np.ptp(sizes) == 0 else "unequal"


def correlations(sizes):
    return CORRELATIONS if sizes.max() > 1 else (0,)


def counts(random, sizes, rate, correlation, sets=SETS):
    """Successes in each cluster, whose rates follow a beta distribution: [sets, clusters]."""
    rates = rate
    if correlation:
        total = (1 - correlation) / correlation
        rates = random.beta(rate * total, (1 - rate) * total, (sets, len(sizes)))
    return random.binomial(sizes.astype(int), rates, (sets, len(sizes))).astype(float)


def values(random, draw, sizes, correlation, sets=SETS):
    """Values with mean 0 and variance 1, cluster after cluster: [sets, n]."""
    shared = np.repeat(draw(random, (sets, len(sizes))), sizes.astype(int), axis=1) if correlation else 0.0
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * draw(random, (sets, int(sizes.sum())))


def totals(values, sizes):
    return np.add.reduceat(values, np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int), axis=1)


def held(ends, truth):
    return float(((ends[0] <= truth + 1e-9) & (truth - 1e-9 <= ends[1])).mean())


@pytest.mark.parametrize("sizes", SIZES, ids=name)
def test_shares_hold_the_truth(sizes):
    random = np.random.default_rng(0)
    for rate in (0.5, 0.8, 0.9, 0.98):
        for correlation in correlations(sizes):
            found = counts(random, sizes, rate, correlation)
            assert held(ends_of.korn_graubard(found, sizes, 0.95), rate) >= 0.93, (rate, correlation)
            assert held(ends_of.korn_graubard(found, sizes, 0.99), rate) >= 0.975, (rate, correlation)


SYMMETRIC = {
    "normal": lambda random, shape: random.normal(size=shape),
    "uniform": lambda random, shape: random.uniform(-(3**0.5), 3**0.5, shape),
    "Laplace": lambda random, shape: random.laplace(scale=0.5**0.5, size=shape),
}


@pytest.mark.parametrize("sizes", SIZES, ids=name)
def test_symmetric_means_hold_the_truth(sizes):
    random = np.random.default_rng(1)
    for law, draw in SYMMETRIC.items():
        for correlation in correlations(sizes):
            sums = totals(values(random, draw, sizes, correlation, sets=2000), sizes)
            variance, freedom = samples.variance_of_mean(sums, sizes), samples.degrees_of_freedom(sizes)
            mean = sums.sum(1) / sizes.sum()
            ends = ends_of.student_ends(mean, variance, freedom, 0.95)
            assert held(ends, 0.0) >= 0.93, (law, correlation)


@pytest.mark.parametrize("sizes", SIZES, ids=name)
def test_skewed_means_hold_the_truth_on_the_logarithmic_scale(sizes):
    random = np.random.default_rng(2)
    for correlation in correlations(sizes):
        lognormal = 1.5 * values(random, SYMMETRIC["normal"], sizes, correlation, sets=2000)
        waits = np.log(random.exponential(size=lognormal.shape)) - special.digamma(1)  # skewed the other way
        for logs in (lognormal, waits):
            sums = totals(logs, sizes)
            variance, freedom = samples.variance_of_mean(sums, sizes), samples.degrees_of_freedom(sizes)
            ends = ends_of.student_ends(sums.sum(1) / sizes.sum(), variance, freedom, 0.95)
            assert held(ends, 0.0) >= 0.90, correlation


@pytest.mark.parametrize("sizes", SIZES, ids=name)
def test_medians_hold_the_truth(sizes):
    random = np.random.default_rng(3)
    n = int(sizes.sum())
    for correlation in correlations(sizes):
        errors = np.exp(2 * values(random, SYMMETRIC["normal"], sizes, correlation, sets=1000))
        ranked = np.sort(errors, axis=1)
        lower = totals((errors <= ranked[:, [(n - 1) // 2]]).astype(float), sizes)
        rank = ends_of.left_out(samples.effective_size(lower, sizes, 0.95), n, 0.95)[:, None]
        padded = np.pad(ranked, ((0, 0), (1, 1)), constant_values=((0, 0), (-np.inf, np.inf)))
        ends = [np.take_along_axis(padded, place, 1)[:, 0] for place in (rank, n + 1 - rank)]
        assert held(ends, 1.0) >= 0.90, correlation


@pytest.mark.parametrize("sizes", SIZES, ids=name)
def test_differences_of_hits_hold_the_truth(sizes):
    random = np.random.default_rng(4)
    for only_a, only_b in ((0.3, 0.3), (0.9, 0.0), (0.98, 0.02), (0.05, 0.0), (0.02, 0.02), (0.6, 0.2)):
        for correlation in correlations(sizes):
            rates = np.array([only_a, only_b, 1 - only_a - only_b])
            if correlation:
                total = (1 - correlation) / correlation
                rates = random.gamma(np.maximum(rates * total, 1e-9), size=(1500, len(sizes), 3))
                rates /= rates.sum(2, keepdims=True)
            pairs = random.multinomial(sizes.astype(int), rates, (1500, len(sizes))).astype(float)
            both = [(pairs[..., i], sizes) for i in (0, 1)]
            ends = ends_of.recovered(*both, 0.95, paired=True)
            assert held(ends, only_a - only_b) >= 0.93, (only_a, only_b, correlation)


@pytest.mark.parametrize(("first", "second"), [((32, 1), (4, 8)), ((10, 8), (20, 8)), ((64, 1), (8, 1))])
def test_two_samples_hold_the_truth(first, second):
    random = np.random.default_rng(5)
    sizes = [np.full(clusters, float(each)) for clusters, each in (first, second)]
    for correlation in CORRELATIONS:
        for rates in ((0.9, 0.5), (0.98, 0.9), (0.1, 0.1)):
            both = [(counts(random, s, p, correlation * (s[0] > 1)), s) for s, p in zip(sizes, rates, strict=True)]
            ends = ends_of.recovered(*both, 0.95, paired=False)
            assert held(ends, rates[0] - rates[1]) >= 0.93, (rates, correlation)
    covered = 0
    for _ in range(1000):
        a, b = (values(random, SYMMETRIC["normal"], s, 0.3, sets=1)[0] for s in sizes)
        groups = [np.repeat(np.arange(len(s)), s.astype(int)) for s in sizes]
        found = intervals.mean_difference(3 * a, b, *groups)
        covered += found.low <= 0 <= found.high
    assert covered >= 930


@pytest.mark.parametrize(("clusters", "each"), [(10, 8), (32, 4)])
def test_shares_between_clusters_hold_the_truth(clusters, each):
    random = np.random.default_rng(6)
    sizes, groups, covered = np.full(clusters, float(each)), np.repeat(np.arange(clusters), each), []
    for rate, correlation in ((0.5, 0.3), (0.8, 0.5), (0.9, 0.1)):
        for row in counts(random, sizes, rate, correlation, sets=50).astype(int):
            hits = (np.arange(each) < row[:, None]).reshape(-1)
            found = intervals.between_share(hits, groups)
            covered.append(found.low <= correlation <= found.high)
    assert np.mean(covered) >= 0.93


def test_what_was_simulated_is_what_the_functions_do():
    random = np.random.default_rng(7)
    for sizes in SIZES:
        groups = np.repeat(np.arange(len(sizes)), sizes.astype(int))
        hits = random.random(len(groups)) < 0.8
        found = intervals.proportion(hits, groups)
        for level, ends in ((0.95, (found.low, found.high)), (0.99, (found.low99, found.high99))):
            expected = ends_of.korn_graubard(totals(hits[None].astype(float), sizes), sizes, level)
            assert ends == pytest.approx([float(end[0]) for end in expected])
        shuffled = random.permutation(len(groups))
        assert intervals.proportion(hits[shuffled], groups[shuffled]).low == pytest.approx(found.low)


# --- the interval itself


def test_an_interval_prints_its_ends():
    found = Interval(0.5, 0.25, 0.75, 8, "by hand")
    assert str(found) == "0.5 [0.25, 0.75]" and found.ends(100) == "[25, 75]" and found.width == 0.5
    assert (found.clusters, found.low99, found.high99, found.skewed) == (None, None, None, False)
    assert str(Interval(2.5, 2.5, 2.5, 1, "by hand")) == "2.5 (one value)"
    assert str(Interval(1.0, 0.5, math.inf, 9, "by hand")) == "1 [0.5, inf]"


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((0.6, 0.4), "low=0.6 and high=0.4: expected two numbers, low <= high"),
        ((math.nan, 0.4), "low=nan and high=0.4"),
        ((0.4, math.nan), "low=0.4 and high=nan"),
        ((0.4, 0.6, 8, "by hand", 8, 0.7, 0.3), "low99=0.7 and high99=0.3"),
        ((0.4, 0.6, 8, "by hand", 8, 0.3), "low99=0.3 and high99=None"),
    ],
)
def test_an_interval_refuses_ends_that_are_none(ends, message):
    low, high, *rest = ends
    with pytest.raises(ValueError, match=message):
        Interval(0.5, low, high, *(rest or (8, "by hand")))


# --- shares


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 64), (10, 20), (368, 368), (1, 1)])
def test_independent_trials_have_the_exact_interval(hits, n):
    found = intervals.proportion([1] * hits + [0] * (n - hits))
    for level, ends in ((0.95, (found.low, found.high)), (0.99, (found.low99, found.high99))):
        exact = stats.binomtest(hits, n).proportion_ci(level, method="exact")
        assert ends == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert (found.value, found.n, found.clusters, found.method) == (hits / n, n, n, "Clopper-Pearson")
    assert not found.skewed
    assert intervals.proportion([1] * hits + [0] * (n - hits), clusters=range(n)) == found


def test_clusters_that_differ_widen_the_interval():
    rates, networks = np.repeat([1, 1, 0, 1, 0, 1, 1, 1], 16), np.repeat(list("abcdefgh"), 16)
    alone, together = intervals.proportion(rates), intervals.proportion(rates, networks)
    assert together.value == alone.value == 0.75 and together.n == 128 and together.clusters == 8
    assert together.width > 3 * alone.width and together.method == "Korn-Graubard over 8 clusters"
    assert together.low99 < together.low and together.high99 > together.high


def test_all_successes_have_a_width_and_may_decide():
    networks = np.repeat(np.arange(32), 4)
    every, none = intervals.proportion([1] * 128, networks), intervals.proportion([0] * 128, networks)
    assert (every.value, every.high, every.high99) == (1, 1, 1) and 0.95 < every.low < 0.97
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1 - every.low)
    # a design effect of 1.3 = 1 + 0.1 (4 - 1), and t(127) against t(31)
    effective = 128 / 1.3 * (stats.t.ppf(0.975, 127) / stats.t.ppf(0.975, 31)) ** 2
    assert every.low == pytest.approx(0.025 ** (1 / effective))


def test_the_least_design_effect_is_of_the_cluster_that_a_trial_is_in():
    sizes = np.array([8] * 5 + [2] * 5)
    met = sizes[np.repeat(np.arange(10), sizes)]  # by each trial
    freedom = sizes.sum() ** 2 / (sizes**2).sum() - 1
    effective = 50 / (1 + 0.1 * (met.mean() - 1)) * (stats.t.ppf(0.975, 49) / stats.t.ppf(0.975, freedom)) ** 2
    every = intervals.proportion([1] * 50, np.repeat(np.arange(10), sizes))
    assert met.mean() == 6.8 and every.low == pytest.approx(0.025 ** (1 / effective))


def test_one_cluster_says_so():
    found = intervals.proportion([1] * 64 + [0] * 16, ["lenet"] * 80)
    assert found.clusters == 1 and found.method == "Clopper-Pearson on an effective n of 8.99, one network"
    assert found.width > 2 * intervals.proportion([1] * 64 + [0] * 16).width


def test_a_cluster_with_most_of_the_trials_does_not_pass_for_many():
    hits, networks = [1, 0] * 20 + [1] * 9, [0] * 40 + list(range(1, 10))
    even = intervals.proportion(hits[:-2], np.arange(47) % 10)  # as many clusters, of nearly one size
    assert intervals.proportion(hits, networks).width > 1.5 * even.width


def test_below_counts_nan_and_infinity_as_failures():
    found = intervals.below([1e-5, 2e-3, math.nan, math.inf], 1e-3)
    assert found.value == 0.25 and found.n == 4 and found.method == "Clopper-Pearson"
    assert intervals.below([1e-3], 1e-3).value == 0  # below, not at, the threshold
    networks = np.repeat([0, 1], 2)
    assert intervals.below([1e-5, 2e-3, 1e-4, 1], 1e-3, networks) == intervals.proportion([1, 0, 1, 0], networks)


def test_pooled_shares_are_trials_in_clusters():
    found = intervals.pooled(np.float32([1, 0.875, 0.5]), 8)
    hits = [1] * 8 + [1] * 7 + [0] + [1] * 4 + [0] * 4
    assert found == intervals.proportion(hits, np.repeat([0, 1, 2], 8)) and found.n == 24
    assert intervals.pooled([1.0] * 12, 8).width > 0


def test_chance_is_subtracted_without_narrowing_the_interval():
    hits, chance = [1] * 30, np.linspace(0.05, 0.15, 30)
    found, rate = intervals.over_chance(hits, chance), intervals.proportion(hits)
    assert found.value == pytest.approx(0.9) and found.width == pytest.approx(rate.width)
    assert found.low99 == pytest.approx(rate.low99 - 0.1) and found.method == "Clopper-Pearson, less chance"
    assert intervals.over_chance(hits, 0.1).low == pytest.approx(found.low)


# --- means


def test_a_mean_over_clusters_of_one_size_is_students_over_their_means():
    random = np.random.default_rng(0)
    values, networks = random.normal(size=40), np.repeat(np.arange(8), 5)
    found = intervals.mean(values, networks)
    means = values.reshape(8, 5).mean(1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.99)
    assert (found.low99, found.high99) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(values.mean()) and (found.n, found.clusters) == (40, 8)
    assert found.method == "cluster t over 8 clusters"
    alone = intervals.mean([0.1, 0.2, 0.3])
    assert alone.high == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, rel=1e-5) and alone.method == "t over 3 values"


def test_no_end_lies_beyond_the_range_of_a_bounded_measure():
    values = [0.9, 0.2, 0.95, 0.8, 0.1]
    free, bounded = intervals.mean(values), intervals.mean(values, within=(-1, 1))
    assert free.high > 1 and (bounded.high, bounded.high99) == (1, 1)
    assert (bounded.value, bounded.low, bounded.method) == (free.value, free.low, free.method)
    with pytest.raises(ValueError, match=r"values lie in .0.1, 0.95., beyond within=.0, 0.5."):
        intervals.mean(values, within=(0, 0.5))


def test_a_mean_without_variation_has_no_width_whatever_rounding_leaves():
    assert intervals.mean([0.1] * 8, [0, 0, 0, 1, 1, 2, 2, 2]).width == 0


def test_a_difference_is_paired():
    random = np.random.default_rng(0)
    hard = random.normal(size=200)
    a, b = hard + 1.0 + 0.1 * random.normal(size=200), hard
    found = intervals.difference(a, b)
    assert found.low < 1.0 < found.high and found.width < 0.1 and found.method == "paired t over 200 values"
    networks = np.repeat(np.arange(20), 10)
    clustered = intervals.difference(a, b, networks)
    assert (clustered.n, clustered.clusters) == (200, 20)
    assert clustered.low == pytest.approx(intervals.mean(a - b, networks).low)
    assert intervals.difference([1.5, 2.5], [1.0, 2.0]).width == 0  # nothing bounds what other pairs might do


def test_a_difference_of_hits_has_a_width_also_where_no_pair_differs():
    same = intervals.difference([1, 1, 0, 0], [1, 1, 0, 0])
    reach = stats.binomtest(0, 4).proportion_ci(method="exact").high
    assert same.value == 0 and (same.low, same.high) == pytest.approx((-reach, reach))
    always = intervals.difference([1.0] * 20, [0.0] * 20)
    least = stats.binomtest(20, 20).proportion_ci(method="exact").low
    assert always.value == always.high == 1 and always.low == pytest.approx(2 * least - 1)  # the rest might be -1
    never = intervals.difference([0.0] * 20, [1.0] * 20, clusters=np.repeat([0, 1, 2, 3], 5))
    assert never.low == -1 and never.high > -always.low and never.method == "paired hits, Korn-Graubard over 4 clusters"
    shares = intervals.difference([0.5, 0.75, 1.0], [0.5, 0.75, 1.0])  # no hits, but bounded like hits
    assert shares.high == pytest.approx(stats.binomtest(0, 3).proportion_ci(method="exact").high)


def test_the_difference_of_independent_means_is_welchs_over_clusters():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 0.5, 0.5])
    found = intervals.mean_difference(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(7 / 3 - 0.5) and (found.n, found.clusters) == (7, 3)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.method == "Welch's t over 3 and 4 clusters"
    # 8 images from each of 4 batches are four units, not 32
    random = np.random.default_rng(0)
    batches, single = random.normal(size=(4, 8)) + 3 * random.normal(size=(4, 1)), random.normal(size=32)
    found = intervals.mean_difference(single, batches.reshape(-1), None, np.repeat(np.arange(4), 8))
    expected = stats.ttest_ind(single, batches.mean(1), equal_var=False).confidence_interval(0.99)
    assert (found.low99, found.high99) == pytest.approx((expected.low, expected.high)) and found.clusters == 4


def test_two_shares_without_variation_have_a_width():
    same = intervals.mean_difference([1.0] * 20, [1.0] * 20)
    assert same.value == 0 and same.high == -same.low > 0.16
    apart = intervals.mean_difference([1.0] * 20, [0.0] * 30)
    assert (apart.value, apart.high) == (1, 1) and 0.7 < apart.low < 0.8
    assert apart.method == "two shares, Korn-Graubard over 20 and 30 clusters"


def test_the_median_counts_divergence_as_infinite():
    values = [1e-6] * 6 + [math.nan] * 2 + [math.inf] * 2
    found = intervals.median(values)
    assert found.value == found.low == 1e-6 and found.high == math.inf
    assert intervals.median([math.inf] * 8).value == math.inf
    assert found.method == "order statistics over 10 values" and not found.skewed


@pytest.mark.parametrize("n", [6, 8, 25, 100])
def test_the_median_of_independent_values_has_the_interval_of_the_sign_test(n):
    found = intervals.median(range(1, n + 1))
    rank = int(stats.binom.ppf(0.025, n, 0.5))  # the first count that is not too few
    assert (found.low, found.high) == (rank, n + 1 - rank)
    assert found.low99 < found.low or n == 8


def test_too_few_values_bound_no_median():
    found = intervals.median([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.value, found.low, found.high) == (3, -math.inf, math.inf)


def test_tied_values_are_put_on_the_side_that_tells_least():
    # 3 of 10 networks lie below the median, which all others equal: of its two sides only the lower one varies
    values, networks = np.repeat([0.0] * 3 + [1.0] * 7, 8), np.repeat(np.arange(10), 8)
    found, below = intervals.median(values, networks), intervals.proportion(values < 1, networks)
    assert found.value == 1 and below.low < 0.5 < below.high, "a median of 0 is not excluded"
    assert found.low == 0
    assert intervals.median(values).low == 1, "of independent values it is"


# --- skewed measures


def test_skewed_measures_are_judged_on_logarithms():
    random = np.random.default_rng(0)
    seconds, networks = random.lognormal(2.0, 1.0, 40), np.repeat(np.arange(8), 5)
    found, logs = intervals.log_mean(seconds, networks), intervals.mean(np.log(seconds), networks)
    assert found.skewed and found.method == "cluster t over 8 clusters, on logarithms"
    assert found.value == pytest.approx(stats.gmean(seconds)) and found.low99 == pytest.approx(math.exp(logs.low99))
    halves = intervals.log_ratio(seconds, 2 * seconds, networks)
    assert halves.value == pytest.approx(0.5) and halves.width == pytest.approx(0) and halves.skewed


def test_the_ratio_of_independent_geometric_means():
    random = np.random.default_rng(0)
    a, b = random.lognormal(1.0, 0.2, 200), random.lognormal(0.0, 0.2, 300)
    found = intervals.log_mean_ratio(a, b)
    expected = stats.ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(math.exp(expected.low)) and found.n == 500 and found.skewed
    assert found.low < math.e < found.high
    assert intervals.log_mean_ratio([1, math.e], [1, math.e]).method.startswith("Welch")  # logarithms 0 and 1: no hits


# --- between clusters


def test_the_share_of_variance_between_networks():
    networks = np.repeat(np.arange(8), 4)
    whole = intervals.between_share(np.repeat([1, 0] * 4, 4), networks)
    assert whole.value == whole.high == 1 and 0.5 < whole.low < 0.9
    nothing = intervals.between_share([1, 0, 1, 0] * 8, networks)
    assert nothing.value == nothing.low == 0 and nothing.high < 0.3
    unknown = intervals.between_share([1] * 32, networks)
    assert (unknown.value, unknown.low, unknown.high) == (0, 0, 1)  # no failure tells whether failures share networks
    assert whole.method == "beta-binomial likelihood over 8 clusters" and whole.clusters == 8


def test_the_share_of_variance_of_a_measure_has_the_f_interval():
    random = np.random.default_rng(0)
    values = random.normal(size=(20, 5)) + random.normal(size=(20, 1))
    found = intervals.between_share(values.reshape(-1), np.repeat(np.arange(20), 5))
    f = stats.f_oneway(*values).statistic
    assert found.value == pytest.approx((f - 1) / (f + 4)) and found.method == "F over 20 clusters"
    low = f / stats.f.ppf(0.975, 19, 80)
    assert found.low == pytest.approx((low - 1) / (low + 4)) and found.low < 0.5 < found.high
    assert intervals.between_share([1.5, 1.5, 2.5, 2.5], [0, 0, 1, 1]).value == 1


def test_the_share_of_variance_of_unequal_clusters_by_hand():
    # means 1 and 4, squares within of 2 + 6 over 6 degrees of freedom; Thomas and Hultquist's size is 2 / (1/2 + 1/6)
    found = intervals.between_share([0, 2, 3, 3, 3, 5, 5, 5], [0] * 2 + [1] * 6)
    f = 3 * 4.5 / (8 / 6)
    assert found.value == pytest.approx((f - 1) / (f + 2))


# --- how many trials


@pytest.mark.parametrize(("bound", "each", "n"), [(0.99, 1, 368), (0.9, 1, 36), (0.9, 8, 80), (0.5, 64, 192)])
def test_the_least_number_of_clean_trials(bound, each, n):
    assert intervals.trials_needed(bound, each) == n
    assert intervals.proportion([1] * n, np.arange(n) // each).low >= bound
    assert intervals.proportion([1] * (n - each), np.arange(n - each) // each).low < bound


def test_the_least_number_of_clusters_for_a_mean():
    assert intervals.clusters_needed(1.0, 0.5) == 18
    for sd in (0.1, 0.3, 1.0, 1.5, 2.0, 7.0):
        g = intervals.clusters_needed(sd, 1.0)
        margins = [stats.t.ppf(0.975, n - 1) * sd / n**0.5 for n in (g, g - 1) if n > 1]
        assert margins[0] <= 1.0 and all(margin > 1.0 for margin in margins[1:]), sd


# --- bad input


ONE = "all values belong to one cluster, and an interval needs at least two of them"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.proportion([]), r"hits has shape \(0,\), no values in a row: expected \[n\] with n >= 1"),
        (lambda: intervals.proportion([[1, 0]]), r"hits has shape \(1, 2\)"),
        (lambda: intervals.proportion([0.5, 1]), "hits must be 0 or 1, true or false"),
        (lambda: intervals.proportion([1, math.nan]), "hits must be 0 or 1, true or false"),
        (lambda: intervals.proportion([1, 0], [0]), "clusters has 1 entries for 2 values: expected one for each"),
        (lambda: intervals.proportion([1, 0], ["a", None]), "clusters lacks a name for 1 of 2 values"),
        (lambda: intervals.below([], 1e-3), r"hits has shape \(0,\)"),
        (lambda: intervals.below([1.0], 1e-3, [0, 1]), "clusters has 2 entries for 1 values"),
        (lambda: intervals.pooled([], 8), r"shares has shape \(0,\)"),
        (lambda: intervals.pooled([0.3], 8), "shares must be whole numbers of 8 trials, over 8"),
        (lambda: intervals.pooled([1.125], 8), "shares must be whole numbers of 8 trials"),
        (lambda: intervals.pooled([math.nan], 8), "shares must be whole numbers of 8 trials"),
        (lambda: intervals.over_chance([1, 0], [0.1]), r"chance has shape \(1,\), expected one number or .*\(2,\)"),
        (lambda: intervals.over_chance([1, 0], 1.5), r"chance must lie in \[0, 1\]"),
        (lambda: intervals.over_chance([1, 0], math.nan), r"chance must lie in \[0, 1\]"),
        (lambda: intervals.over_chance([1, 0.5], 0.1), "hits must be 0 or 1"),
        (lambda: intervals.mean([]), r"values has shape \(0,\)"),
        (lambda: intervals.mean([0.1]), ONE),
        (lambda: intervals.mean([0.1, 0.2], [7, 7]), ONE),
        (lambda: intervals.mean([1.0, math.inf]), "values holds 1 values that are not finite: use `below` or `median`"),
        (lambda: intervals.difference([], []), r"a has shape \(0,\)"),
        (lambda: intervals.difference([1.0], [1.0, 2.0]), "a has 1 values and b 2: a paired difference needs as many"),
        (lambda: intervals.difference([math.nan, 1], [1.0, 2]), "a holds 1 values that are not finite"),
        (lambda: intervals.difference([1, 0], [1, 1], [0, 0]), ONE),
        (lambda: intervals.difference([1.5, 0], [1, 1], [0, 0]), ONE),
        (lambda: intervals.mean_difference([1.0, 2.0], []), r"b has shape \(0,\)"),
        (lambda: intervals.mean_difference([1.0, 2.0], [1.0]), f"b: {ONE}"),
        (lambda: intervals.mean_difference([1.0, 2.0], [1.0, 2.0], [0, 0]), f"a: {ONE}"),
        (lambda: intervals.mean_difference([1.0, 2.0], [1.0, math.inf]), "b holds 1 values that are not finite"),
        (lambda: intervals.mean_difference([1.0, 2.0], [1.0, 2.0], None, [1]), "clusters has 1 entries for 2"),
        (lambda: intervals.median([]), r"values has shape \(0,\)"),
        (lambda: intervals.median([1.0, 2.0], [0, 0]), ONE),
        (lambda: intervals.log_mean([1.0, 0.0]), "values holds values that are not positive and finite"),
        (lambda: intervals.log_mean([]), r"values has shape \(0,\)"),
        (lambda: intervals.log_mean([1.0]), ONE),
        (lambda: intervals.log_ratio([1.0, 2.0], [1.0, -1.0]), "b holds values that are not positive and finite"),
        (lambda: intervals.log_ratio([1.0, 2.0], [1.0]), "a has 2 values and b 1: a paired ratio needs as many"),
        (lambda: intervals.log_mean_ratio([1.0, 2.0], [1.0, math.inf]), "b holds values that are not positive"),
        (lambda: intervals.log_mean_ratio([1.0, 2.0], [1.0]), f"b: {ONE}"),
        (lambda: intervals.between_share([], []), r"values has shape \(0,\)"),
        (lambda: intervals.between_share([1, 0], [0, 0]), ONE),
        (lambda: intervals.between_share([1, 0], [0, 1]), "every cluster has one value"),
        (lambda: intervals.between_share([1.5] * 4, [0, 0, 1, 1]), "the values do not vary"),
        (lambda: intervals.between_share([1.5, math.nan], [0, 1]), "values holds 1 values that are not finite"),
        (lambda: intervals.trials_needed(1.0), "bound=1.0, each=1: expected a bound between 0 and 1"),
        (lambda: intervals.trials_needed(0.9, 0), "bound=0.9, each=0"),
        (lambda: intervals.clusters_needed(0.0, 1.0), "sd=0.0, margin=1.0: expected both to be positive"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
