"""Statistics over runs: paired differences, their intervals, and the correction for their number.

Values are pandas Series, or DataFrames whose columns are epochs, indexed by (setting, n, s, seed).
A cell is an (n, s). Intervals are given from three seeds on.
"""

import numpy as np
import pandas as pd
from scipy import stats

# Settings that are compared.
PAIRS = (("heterogeneous", "static"), ("homogeneous", "static"), ("heterogeneous", "homogeneous"))
LEAST = 3  # seeds of an interval


def differences(values):
    """Differences between two settings with the same n, s and seed, {"a − b": differences}."""
    return {f"{a} − {b}": (values.loc[a] - values.loc[b]).dropna() for a, b in PAIRS}


def over_seeds(values):
    """Means over the seeds of each cell, indexed by (n, s)."""
    return values.groupby(level=["n", "s"]).mean()


def over_cells(values):
    """Means over the cells of each seed, indexed by seed."""
    return values.groupby(level="seed").mean()


def cell_interval(values):
    """The mean over cells and its 95 % percentile bootstrap interval: mean, low, high.

    The interval is NaN for a single cell, and for fewer than three seeds.
    """
    cells = over_seeds(values).to_numpy()
    mean = cells.mean(axis=0)
    if len(cells) < 2 or len(over_cells(values)) < LEAST:
        return mean, mean * np.nan, mean * np.nan
    options = {"n_resamples": 2000, "batch": 100, "method": "percentile", "random_state": 0}
    interval = stats.bootstrap((cells,), np.mean, **options).confidence_interval
    return mean, interval.low, interval.high


def t_interval(values):
    """The mean of values (R, ...) over runs or seeds and half its 95 % t interval.

    NaN for fewer than three: the interval of two is 13 standard errors wide to each side.
    """
    values = np.asarray(values)
    mean, number = np.mean(values, axis=0), len(values)
    if number < LEAST:
        return mean, mean * np.nan
    error = np.std(values, axis=0, ddof=1) / np.sqrt(number)
    return mean, stats.t.ppf(0.975, number - 1) * error


def t_tests(values):
    """A t test over seeds for each of several quantities, one row each.

    values: {name: values over seeds, such as paired differences}. Columns: mean, half (of the 95 %
    t interval), seeds, p (two-sided) and p_holm, corrected for the number of rows.
    """
    rows = []
    for over_seeds in values.values():
        number = len(over_seeds)
        p = stats.ttest_1samp(over_seeds, 0).pvalue if number >= LEAST else np.nan
        rows.append((*t_interval(over_seeds), number, p))
    table = pd.DataFrame(rows, pd.Index(list(values)), ["mean", "half", "seeds", "p"])
    return table.assign(p_holm=holm(table["p"]))


def holm(p):
    """p values (N,) corrected for their number by Holm's method; NaN stays, and does not count."""
    p = np.asarray(p, dtype=float)
    corrected = np.full_like(p, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested])]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return corrected


def compare(quantities):
    """The paired differences of several quantities, one row per quantity and pair.

    quantities: {name: Series}. Columns: quantity, difference, mean, low, high (bootstrap over
    cells), half (of the t interval over seeds), cells, seeds, p (t test over seeds) and p_holm,
    corrected for the number of rows.
    """
    pairs = {
        (quantity, pair): paired
        for quantity, values in quantities.items()
        for pair, paired in differences(values).items()
    }
    table = t_tests({key: over_cells(paired) for key, paired in pairs.items()})
    names = pd.MultiIndex.from_tuples(pairs, names=["quantity", "difference"])
    intervals = [cell_interval(paired) for paired in pairs.values()]
    table = table.set_axis(names).assign(cells=[len(over_seeds(p)) for p in pairs.values()])
    table[["mean", "low", "high"]] = intervals
    columns = ["mean", "low", "high", "half", "cells", "seeds", "p", "p_holm"]
    return table[columns].reset_index()


def in_words(row):
    """A row of `compare` as text: mean [interval over cells] ± half the interval over seeds."""
    if not np.isfinite(row["half"]):
        return f"{signed(row['mean'])} ({row['seeds']} seeds: no interval)"
    interval = f"[{signed(row['low'])}, {signed(row['high'])}]"
    return f"{signed(row['mean'])} {interval} ± {row['half']:.3f}"


def signed(value, sign="+"):
    """A number with three decimals and a true minus; sign: "-" omits a plus."""
    return f"{np.round(value, 3) + 0.0:{sign}.3f}".replace("-", "−")  # not −0
