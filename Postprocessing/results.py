"""Prints the tables of RESULTS.md from results/*.csv: python3 -m Postprocessing.results [--update]

--update writes them into RESULTS.md, each between <!-- table NAME --> and <!-- end -->.

The files hold rows of runs: settings, scores, and scalars of analyses. Those that end in _summary
hold means and intervals, because the runs behind them are gone. Rows are written by

    python3 -m Postprocessing.results --rows RUN... [--where EXPRESSION] > results/NAME.csv

psDigits_grid.csv, with the runs of the grid, replaces its summary.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from Postprocessing import analyse, comparison, runs
from Training.console import entry_point
from Training.parser import Parser

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "RESULTS.md"
COMPARISONS = 18  # of the grid: six quantities, each of three pairs of settings
CLAIMS = {  # of the paper, by the quantities of the grid that measure them
    "test accuracy": "learned n and s perform better, one pair for each unit best",
    "validation accuracy at epoch 41": "learned n and s learn faster",
    "validation accuracy, mean over epochs": "learned n and s learn faster",
    "λ₁ (nats/step)": "learned networks are nearer to the edge of chaos",
}
SCORES = {  # column: label, format
    "train_loss": ("mean training loss", "{:.2f}"),
    "validation": ("validation accuracy", "{:.1%}"),
    "validation_transformed": ("under a sine transform", "{:.1%}"),
    "test": ("test accuracy", "{:.1%}"),
}


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


def changed(name, function):
    """Test accuracy of the networks with changed inputs."""
    table = read(name)
    kinds = {"sin": "sine, amplitude ", "step": "step, size ", "unchanged": "unchanged, "}
    table["change"] = table["change"].map(kinds) + table["size"].map("{:g}".format)
    table["change"] = table["change"].replace("unchanged, 0", "unchanged")
    if "mean" in table:
        table["test"] = table.apply(interval, axis=1)
    return markdown(wide(table, "network", "change", "test", function))


def interval(row):
    """Mean ± half the 95 % t interval over seeds."""
    return f"{row['mean']:.3f} ± {row['half']:.3f}".replace("-", "−")


def grid_differences():
    """The comparisons of the grid, as from `comparison.compare`."""
    if not (FOLDER / "results" / "psDigits_grid.csv").exists():
        table = read("psDigits_grid_summary")
        p = comparison.p_value(table["mean"], table["half"], table["seeds"])
        return table.assign(p=p, p_holm=comparison.holm(p, COMPARISONS))
    table = read("psDigits_grid").set_index(["setting", "n", "s", "seed"])
    curves = table.filter(regex=r"^validation \d+$")
    return comparison.compare(
        {
            "test accuracy": table["test"],
            "validation accuracy at epoch 41": curves["validation 41"],
            "validation accuracy, mean over epochs": curves.mean(axis=1),
            "λ₁ (nats/step)": table.filter(like="lyapunov leading").iloc[:, -1],
            "norm of the Jacobian": table.filter(like="jacobian spectral").iloc[:, -1],
            "mutual information (nats)": table.filter(like="information information").mean(axis=1),
        }
    )


def claims():
    table = grid_differences()
    text = {
        "the paper": table["quantity"].map(CLAIMS).fillna("no claim"),
        "measured": table["quantity"] + ", " + table["difference"],
        "n": table.apply("{0[cells]:.0f} cells × {0[seeds]:.0f} seeds".format, axis=1),
        "mean [over cells] ± over seeds": table.apply(comparison.in_words, axis=1),
        "p": table["p"].map("{:.3f}".format),
        "p (Holm)": table["p_holm"].map("{:.2f}".format),
        "verdict": (table["p_holm"] < 0.05).map({True: "resolved", False: "not resolved"}),
    }
    return markdown(pd.DataFrame(text).set_index("the paper"))


def correction():
    """The sentence on the number of comparisons."""
    table = grid_differences()
    passed, resolved = (int((table[name] < 0.05).sum()) for name in ("p", "p_holm"))
    return (
        f"The grid has {COMPARISONS} comparisons (six quantities, three pairs of settings). Of the "
        f"{len(table)} listed, {passed} have p < 0.05 in a t test over seeds, and one in twenty is "
        f"expected by chance; after Holm's correction for all {COMPARISONS}, {resolved or 'none'} "
        f"(smallest corrected p: {table['p_holm'].min():.2f})."
    )


def anru():
    table = read("psDigits_ANRU_summary").set_index("quantity")
    p = comparison.p_value(table["mean"], table["half"], table["seeds"])
    p = pd.Series(p, table.index)[table.index.str.contains(" − ")]  # α is not compared with 0
    text = pd.DataFrame({"mean ± half the 95 % t interval": table.apply(interval, axis=1)})
    text["p (Holm)"] = pd.Series(comparison.holm(p), p.index).map("{:.2f}".format)
    return markdown(text.fillna("").rename_axis("ANRU, five seeds"))


TABLES = {
    "first epoch": lambda: by_column("psMNIST_first_epoch", "seed", "homogeneous, 400 units, seed"),
    "PTB": lambda: markdown(by_epoch("PTB", BITS)),
    "psMNIST": lambda: markdown(by_epoch("psMNIST_128", PERCENT)),
    "psMNIST robustness": lambda: changed("psMNIST_robustness", PERCENT),
    "psMNIST 400 units": lambda: by_column("psMNIST_400", "epoch", "heterogeneous, epoch"),
    "claims": claims,
    "correction": correction,
    "settings": lambda: markdown(
        wide(read("psDigits_grid_settings"), "quantity", "setting", "value", BITS)
    ),
    "digits": lambda: changed("psDigits_networks_summary", PLAIN),
    "ANRU": anru,
}


def updated(text):
    """A text with its tables replaced by those of `TABLES`."""
    for name, function in TABLES.items():
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{RESULTS.name} must have one place for the table {name}")
        table = function()
        text = pattern.sub(lambda place, table=table: f"{place[1]}\n{table}\n\n{place[2]}", text)
    return text


def rows(table):
    """The rows of runs: settings, scores, validation by epoch, and the scalars of the analyses."""
    names = [
        "task",
        "network",
        "setting",
        "nhid",
        "n",
        "s",
        "seed",
        "lr",
        "epochs",
        "hours",
        "test",
    ]
    score = f"validation_{table['score'].iloc[0]}"
    curves = runs.curves(table).pivot_table(score, "path", "epoch")
    curves.columns = [f"validation {epoch:g}" for epoch in curves]
    parts = [table.set_index("path")[names], curves, analyse.scalars(table["path"])]
    return pd.concat(parts, axis=1)


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.results", __doc__)
    flag = parser.add_argument
    flag("--update", action="store_true", help="write the tables into RESULTS.md")
    flag("--rows", type=Path, nargs="+", metavar="RUN", help="print the rows of these runs, as CSV")
    flag("--where", metavar="EXPRESSION", help="select runs, as in Postprocessing.runs")
    args = parser.parse_args(argv)
    if args.rows:
        table = analyse.table_of(args.rows, args.where, parser)
        print(rows(table).to_csv(index=False, float_format="%.6g"), end="")
    elif args.update:
        RESULTS.write_text(updated(RESULTS.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for name, function in TABLES.items():
            print(f"{name}\n\n{function()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
