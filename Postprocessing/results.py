"""Prints the tables of RESULTS.md and README.md from results/*.csv.

    python3 -m Postprocessing.results [--update]

--update writes them into the two files, each between <!-- table NAME --> and <!-- end -->.

The files in results hold rows of runs, those of psDigits as from

    python3 -m Postprocessing.results --rows RUN... > Postprocessing/results/NAME.csv
"""

import functools
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from Postprocessing import analyse, comparison, runs
from Postprocessing.regularization import KINDS
from Postprocessing.selection import NETWORKS
from Postprocessing.unit_responses import CONNECTIVITY, PROTOCOLS
from Training.console import entry_point
from Training.machine import REPOSITORY
from Training.parser import Parser

FOLDER = Path(__file__).resolve().parent
TEXTS = FOLDER / "RESULTS.md", REPOSITORY / "README.md"
NEARNESS = "distance of λ₁ from 0 (nats/step)"
WITHSTANDS = "test accuracy, mean over the six changes"
RANGE = "range of λ₁ over ξ (nats/step)"
CLAIMS = {  # of the paper and of the later study, by the quantities that measure them
    "test accuracy": "learned n and s perform better, one pair for each unit best",
    "validation accuracy at epoch 41": "learned n and s learn faster",
    "validation accuracy, mean over epochs": "learned n and s learn faster",
    NEARNESS: "learned networks are nearer to the edge of chaos",
    WITHSTANDS: "ANRU withstands changes of the input better",
    RANGE: "with adaptation, λ₁ changes less with ξ (later study)",
}
SCORES = {  # column: label, format
    "train_loss": ("mean training loss", "{:.2f}"),
    "validation": ("validation accuracy", "{:.1%}"),
    "validation_transformed": ("under a sine transform", "{:.1%}"),
    "test": ("test accuracy", "{:.1%}"),
}
CHANGES = {"sin": (0.0, 0.5, 1.0), "step": (1.0, 2.5, 5.0, 30.0)}  # sizes in the table of digits


def read(name):
    """A file of the folder results, a DataFrame."""
    return pd.read_csv(FOLDER / "results" / f"{name}.csv")


def each(form):
    """A function that writes the values of all seeds in a format, with a true minus."""
    return lambda values: ", ".join(form.format(v).replace("-", "−") for v in values.dropna())


PERCENT, BITS, PLAIN = each("{:.1%}"), each("{:.3f}"), each("{}")


def wide(table, index, column, value, function):
    """A table of text: a row for each value of `index`, a column for each of `column`."""
    text = table.groupby([index, column], sort=False)[value].apply(function).unstack(column)
    return text.fillna("").loc[table[index].unique(), table[column].unique()]


def by_epoch(name, function):
    """Validation scores of the networks by epoch, their last test score, and hours."""
    table = read(name)
    text = wide(table, "network", "epoch", "validation", function)
    text.columns = [f"epoch {epoch}" for epoch in text]
    groups = table.groupby("network", sort=False)
    return text.assign(test=groups["test"].apply(function), hours=groups["hours"].apply(PLAIN))


def markdown(table):
    """A DataFrame of text as a table in Markdown; its index is the first column."""
    lines = [[table.index.name or "", *map(str, table.columns)], ["---"] * (table.shape[1] + 1)]
    lines += [[str(name), *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_column(name, index, heading):
    """The scores of a file as rows, and the values of `index` as columns."""
    table = read(name).set_index(index)
    rows = {
        label: table[column].map(form.format, na_action="ignore").fillna("")
        for column, (label, form) in SCORES.items()
        if column in table
    }
    return markdown(pd.DataFrame(rows).T.rename_axis(heading))


def changed(table, function):
    """A column `test` of networks with changed inputs, as text: networks by changes."""
    kinds = {"sin": "sine, amplitude ", "step": "step, size "}
    names = table["change"].map(kinds) + table["size"].map("{:g}".format)
    table = table.assign(change=names.replace("sine, amplitude 0", "unchanged"))
    return wide(table, "network", "change", "test", function)


def psmnist_differences():
    """Differences between the RNNs on psMNIST: validation accuracy by epoch, test accuracy."""
    table = read("psMNIST_128")
    table["epoch"] = "epoch " + table["epoch"].astype(str)
    final = table.dropna(subset="test")
    table = pd.concat([table, final.assign(epoch="test", validation=final["test"])])
    scores = table.pivot(index="seed", columns=["network", "epoch"], values="validation")
    pairs = (*comparison.PAIRS, ("heterogeneous", "ReLU"), ("static", "ReLU"))
    paired = pd.concat({f"{a} − {b}": scores[a] - scores[b] for a, b in pairs}, axis=1)
    tests = comparison.t_tests({key: values.dropna() for key, values in paired.items()})
    tests = tests.assign(test=differences(tests)).rename_axis(["difference", "epoch"]).reset_index()
    return markdown(wide(tests, "difference", "epoch", "test", "".join))


def changed_digits():
    """Test accuracy on psDigits with changed inputs: a row per network, seed and change."""
    table = read("psDigits_networks")
    table = table.sort_values("network", key=lambda names: names.map(NETWORKS.index), kind="stable")
    sizes = list(numbered(table, "robustness amplitudes").iloc[0])
    parts = [
        table[["network", "seed"]].assign(
            change=kind, size=size, test=table[f"robustness {kind} {sizes.index(size)}"]
        )
        for kind in CHANGES
        for size in CHANGES[kind]
    ]
    return pd.concat(parts)


def anru_minus_others(columns):
    """Differences of ANRU from each other network on psDigits, {(difference, *columns): Series}.

    columns: of `changed_digits`, over whose other columns the accuracy is averaged.
    """
    table = changed_digits()
    table = table[(table["change"] != "sin") | (table["size"] > 0)]
    scores = table.pivot_table("test", "seed", ["network", *columns], sort=False)
    others = (name for name in NETWORKS if name != "ANRU")
    paired = {f"ANRU − {name}": scores["ANRU"].sub(scores[name], axis=0) for name in others}
    return {key: values.dropna() for key, values in pd.concat(paired, axis=1).items()}


def digits():
    """Test accuracy with changed inputs, and the differences of ANRU from the other networks."""
    means = changed(changed_digits(), lambda values: interval(*comparison.t_interval(values)))
    tests = comparison.t_tests(anru_minus_others(["change", "size"]))
    tests = tests.assign(test=differences(tests)).rename_axis(["network", "change", "size"])
    return markdown(pd.concat([means, changed(tests.reset_index(), "".join)]).fillna(""))


def interval(mean, half, sign="-"):
    """Mean ± half the 95 % t interval over seeds; sign: "+" for differences."""
    return f"{comparison.signed(mean, sign)} ± {half:.3f}"


def differences(tests):
    """The intervals of differences as text, with a * where the corrected p is below 0.05."""
    rows = zip(tests["mean"], tests["half"], tests["p_holm"], strict=True)
    return [interval(mean, half, "+") + " *" * (p < 0.05) for mean, half, p in rows]


def numbered(table, name):
    """The columns "<name> <i>" of rows of runs, named i."""
    return table.filter(regex=rf"^{name} \d+$").rename(columns=lambda label: int(label.split()[-1]))


def grid():
    """The runs of the grid, their validation accuracy by epoch, and λ₁ after training."""
    table = read("psDigits_grid").set_index(["setting", "n", "s", "seed"]).sort_index()
    return table, numbered(table, "validation"), table.filter(like="lyapunov leading").iloc[:, -1]


@functools.cache  # four tables need it
def grid_differences():
    """The comparisons of the grid, as from `comparison.compare`."""
    table, curves, leading = grid()
    return comparison.compare(
        {
            "test accuracy": table["test"],
            "validation accuracy at epoch 41": curves[41],
            "validation accuracy, mean over epochs": curves.mean(axis=1),
            NEARNESS: leading.abs(),
            "norm of the Jacobian": table.filter(like="jacobian spectral").iloc[:, -1],
            "mutual information (nats)": table.filter(like="information information").mean(axis=1),
        }
    )


def grid_settings():
    """Statistics of each setting: those of the paper, and the median of λ₁."""
    _, curves, leading = grid()
    last = curves.iloc[:, -1]
    best = [run for _, v in last.groupby("setting") for run in v.nlargest(-(-len(v) // 4)).index]
    learned = curves[41][last > 0.12].groupby("setting")
    rows = {
        "upper quartile of validation accuracy at epoch 41": learned.quantile(0.75),
        "median λ₁ after training (nats/step)": leading.groupby("setting").median(),
        "mean λ₁ of the best quarter (nats/step)": leading[best].groupby("setting").mean(),
    }
    table = pd.DataFrame(rows).T[list(runs.SETTINGS)].rename_axis("quantity")
    return markdown(table.map(lambda value: comparison.signed(value, "-")))


def grid_summary():
    """The main differences between the settings, mean ± half the t interval over seeds."""
    table = grid_differences()
    table = table.assign(text=differences(table))
    text = wide(table, "quantity", "difference", "text", "".join)
    return markdown(text.loc[["test accuracy", "validation accuracy, mean over epochs", NEARNESS]])


def claims():
    """Each claim, what was measured, and the verdict; p is corrected within each group of rows."""
    table = grid_differences()
    cells = table["cells"].map("{} cells × ".format)
    parts = [table.assign(text=table.apply(comparison.in_words, axis=1), cells=cells)]
    for quantity, paired in ((WITHSTANDS, anru_minus_others([])), (RANGE, anru_ranges())):
        tests = comparison.t_tests(paired).rename_axis("difference").reset_index()
        parts.append(tests.assign(quantity=quantity, text=differences(tests), cells=""))
    table = pd.concat(parts, ignore_index=True)
    both_learn = table["difference"] == "heterogeneous − homogeneous"
    claimed = table["quantity"].mask(both_learn & (table["quantity"] != "test accuracy"))
    columns = {
        "the paper": claimed.map(CLAIMS).fillna("no claim"),
        "measured": table["quantity"] + ", " + table["difference"],
        "n": table["cells"] + table["seeds"].map("{} seeds".format),
        "mean [over cells] ± over seeds": table["text"],
        "p": table["p"].map("{:.3f}".format),
        "p (Holm)": table["p_holm"].map("{:.2f}".format),
        "verdict": np.where(table["p_holm"] < 0.05, "resolved", "not resolved"),
    }
    return markdown(pd.DataFrame(columns).set_index("the paper"))


def correction():
    """The sentence on the number of comparisons."""
    table = grid_differences()
    resolved = (table["quantity"] + ", " + table["difference"])[table["p_holm"] < 0.05]
    return (
        f"Of the {len(table)} comparisons of the grid (six quantities, three pairs of settings), "
        f"{(table['p'] < 0.05).sum()} have p < 0.05 in a t test over seeds, and one in twenty is "
        f"expected by chance; after Holm's correction: {'; '.join(resolved) or 'none'} (smallest "
        f"corrected p: {table['p_holm'].min():.2f})."
    )


def anru():
    """The rows of the ANRUs on psDigits, and their λ₁ under a step, {kind: seeds by ξ}."""
    table = read("psDigits_networks").query("network == 'ANRU'").set_index("seed")
    sizes = numbered(table, "regularization sizes").max()
    return table, {k: numbered(table, f"regularization {k}").set_axis(sizes, axis=1) for k in KINDS}


def anru_ranges():
    """How much less λ₁ varies with ξ with adaptation, {difference: values over seeds}."""
    ranges = {kind: values.max(axis=1) - values.min(axis=1) for kind, values in anru()[1].items()}
    return {"adaptive − frozen": (ranges["adaptive"] - ranges["frozen"]).dropna()}


def later_study():
    """What the later study measures, of the ANRUs on psDigits."""
    table, leading = anru()
    values = {}
    for protocol in PROTOCOLS:
        for fit, words in (("paper", "paper's fit"), ("free", "free gain")):
            alpha = {c: table[f"unit_responses {protocol}_{c}_alpha_{fit} 0"] for c in CONNECTIVITY}
            alpha["connected − isolated"] = alpha["connected"] - alpha["isolated"]
            values |= {f"α, {protocol} step, {words}, {c}": order for c, order in alpha.items()}
    paired = leading["frozen"] - leading["adaptive"]
    values |= {f"λ₁, frozen − adaptive, ξ = {xi}": paired[xi].dropna() for xi in (0, 5, 30)}
    values |= {f"range of λ₁ over ξ, {pair}": paired for pair, paired in anru_ranges().items()}
    tests = comparison.t_tests(values)
    p = comparison.holm(tests["p"].where(tests.index.str.contains(" − ")))  # not of α itself
    text = {
        "mean ± half the 95 % t interval": [*map(interval, tests["mean"], tests["half"])],
        "seeds": tests["seeds"].map(str),
        "p (Holm)": pd.Series(p, tests.index).map("{:.2f}".format, na_action="ignore").fillna(""),
    }
    return markdown(pd.DataFrame(text, tests.index).rename_axis("ANRU"))


TABLES = {
    "first epoch": lambda: by_column("psMNIST_first_epoch", "seed", "homogeneous, 400 units, seed"),
    "PTB": lambda: markdown(by_epoch("PTB", BITS)),
    "psMNIST": lambda: markdown(by_epoch("psMNIST_128", PERCENT)),
    "psMNIST differences": psmnist_differences,
    "psMNIST robustness": lambda: markdown(changed(read("psMNIST_robustness"), PERCENT)),
    "psMNIST 400 units": lambda: by_column("psMNIST_400", "epoch", "heterogeneous, epoch"),
    "claims": claims,
    "correction": correction,
    "grid": grid_summary,
    "settings": grid_settings,
    "digits": digits,
    "later study": later_study,
}


def updated(text):
    """A text with its tables replaced by those of `TABLES`."""

    def table(place):
        return f"{place[1]}{TABLES[place[2]]()}\n<!-- end -->"

    return re.sub(r"(<!-- table (.*?) -->\n).*?<!-- end -->", table, text, flags=re.DOTALL)


def rows(table):
    """The rows of runs: settings, scores, validation by epoch, and the scalars of the analyses."""
    names = [*runs.KEYS, "nhid", "lr", "epochs", "hours", "test"]
    score = f"validation_{table['score'].iloc[0]}"
    curves = runs.curves(table).pivot_table(score, "path", "epoch")
    curves.columns = [f"validation {epoch:g}" for epoch in curves]
    parts = [table[names].set_index("path"), curves, analyse.scalars(table["path"])]
    return pd.concat(parts, axis=1)


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.results", __doc__)
    flag = parser.add_argument
    flag("--update", action="store_true", help="write the tables into RESULTS.md and README.md")
    flag("--rows", type=Path, nargs="+", metavar="RUN", help="print the rows of these runs, as CSV")
    flag("--where", metavar="EXPRESSION", help="select runs, as in Postprocessing.runs")
    args = parser.parse_args(argv)
    if args.where and not args.rows:
        parser.error("argument --where: requires --rows")
    if args.rows:
        table = analyse.table_of(args.rows, args.where, parser)
        repeated = table.duplicated(["task", "network", "n", "s", "seed"])
        if (wrong := ~table["finished"] | table["dry"] | repeated).any():
            path = table["path"][wrong].iloc[0]
            parser.error(f"argument --rows: {path} is unfinished, dry or repeated; see --where")
        print(rows(table).to_csv(index=False, float_format="%.5g"), end="")
    elif args.update:
        for path in TEXTS:
            path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for name, function in TABLES.items():
            print(f"{name}\n\n{function()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
