"""Prints a table of the saved runs: python3 -m Postprocessing.runs [ROOT] [--csv]

One row per run: task, network, the arguments in which the runs of a task differ, epochs done and
requested, the best validation score, the last test score (accuracy, or bits per character), hours
of training, and the run's directory. Unfinished runs are included.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from Postprocessing import grid
from Postprocessing.load_runs import differing, metrics_of, network_name, task_of, tests_of
from Training.flags import Parser, entry_point
from Training.once import ASIDE
from Training.output import printable, report, say
from Training.run_directory import RunError, find_runs

# Arguments that have a column of their own, or do not change what is learned.
LEFT_OUT = ASIDE - {"note"} | {"net_type", "nonlin", "epochs", "random", "save_freq", "save_epochs"}


def varied_within(runs):
    """The names of the arguments in which runs of the same network differ."""
    networks = {}
    for run in runs:
        networks.setdefault(network_name(run), []).append(run)
    return {name for same in networks.values() for name in differing(same)}


def varied(runs):
    """The names of the arguments in which runs of one task differ.

    Arguments that do not apply to a network are None there. This counts as a difference only
    between runs of the same network.
    """

    def values(name):
        return {str(v) for r in runs if (v := r.config["arguments"].get(name)) is not None}

    within = varied_within(runs)
    names = [name for name in differing(runs) if name not in LEFT_OUT]
    return [name for name in names if name in within or len(values(name)) > 1]


def summary(run):
    """The columns of a run other than its arguments, {name: value}, None if not available yet."""
    metrics, tests, name = metrics_of(run), tests_of(run), grid.metric(run)
    best = np.min if grid.is_text(run) else np.max
    return {
        "task": task_of(run),
        "network": network_name(run),
        "epochs": len(metrics["epoch"]) if metrics else 0,
        "of": run.config["arguments"]["epochs"],
        "score": name,
        "validation": float(best(metrics[f"validation_{name}"])) if metrics else None,
        "test": float(tests[name][-1]) if tests else None,
        "hours": float(metrics["seconds"].sum()) / 3600 if metrics else 0.0,
        "path": str(run.path),
    }


def table(root):
    """The rows of the table, sorted by task, network and arguments, and the arguments' names.

    A row is the `summary` of a run with its `varied` arguments. Damaged runs are reported on
    stderr and skipped.
    """
    tasks = {}
    for run in reversed(find_runs(root)):  # oldest first
        try:
            tasks.setdefault(task_of(run), []).append((run, summary(run)))
        except RunError as error:
            report(f"skipped: {printable(str(error))}")
    rows, names = [], []
    for found in tasks.values():
        here = varied([run for run, _ in found])
        names += [name for name in here if name not in names]
        for run, row in found:
            saved = run.config["arguments"]
            rows.append(row | {name: saved.get(name) for name in here})

    def order(value):
        number = value if isinstance(value, (int, float)) else 0
        return value is not None, number, str(value)

    rows.sort(key=lambda row: [order(row.get(name)) for name in ("task", "network", *names)])
    return rows, names


def in_words(row, names):
    """A row as printed, {column: text}."""
    score = "{:.3f} bpc" if row["score"] == "bits_per_character" else "{:.1%}"
    shown = {name: row.get(name) for name in ("task", "network", *names)}
    shown["epochs"] = f"{row['epochs']}/{row['of']}"
    for name in ("validation", "test"):
        shown[name] = None if row[name] is None else score.format(row[name])
    shown |= {"hours": f"{row['hours']:.2f}", "path": row["path"]}
    return {name: printable(in_short(value)) for name, value in shown.items()}


def in_short(value):
    """A saved argument as text: no trailing zeros, empty for None."""
    if isinstance(value, list):
        return ",".join(map(in_short, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def print_table(rows):
    """Prints rows {column: text}, numbers right-aligned, the last column unpadded."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names[:-1]}
    for row in ({name: name for name in names}, *rows):
        cells = [
            row[name].ljust(width) if name in ("task", "network") else row[name].rjust(width)
            for name, width in widths.items()
        ]
        say("  ".join([*cells, row[names[-1]]]))


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.runs", __doc__)
    parser.add_argument(
        "root", type=Path, nargs="?", metavar="ROOT", default="SavedModels", help="folder of runs"
    )
    parser.add_argument("--csv", action="store_true", help="print CSV, with all digits")
    args = parser.parse_args(argv)
    rows, names = table(args.root)
    if not rows:
        parser.error(f"argument ROOT: no runs below {args.root}")
    if args.csv:
        columns = list(rows[0])[:9]
        columns[2:2] = names
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table([in_words(row, names) for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
