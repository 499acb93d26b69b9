"""The table of the saved runs: python3 -m Postprocessing.runs [ROOT] [--where EXPRESSION] [--csv]

Prints one row per run: task, network, the arguments in which the runs of a task differ, epochs
done and requested, state (finished, unfinished or dry run), the best validation score and the last
test score (accuracy, bits per character, …), hours of training, and the run's directory.

    python3 -m Postprocessing.runs --where "network == 'static' and n > 2"

In Python, `load` returns the table as a pandas DataFrame, and `curves` the learning curves.
"""

import io
import math
import sys
from pathlib import Path

import pandas as pd

from Training.config import HOW, RunError, read_text
from Training.console import entry_point
from Training.parser import Parser
from Training.run_directory import TABLES, Run, run_directories

SETTINGS = ("static", "homogeneous", "heterogeneous")  # of the γ of an RNN
# Columns of the table that are not arguments of the run.
COLUMNS = ["task", "network", "setting", "epochs_done", "finished", "dry", "score", "chance"]
COLUMNS += ["validation", "best_validation", "test", "hours", "started", "path"]
# Arguments that do not affect what is trained.
ASIDE = {*HOW, "save_freq", "save_epochs", "save", "transform"}
KEYS = ["task", "network", "setting", "n", "s", "seed", "path"]  # by which runs are matched


def load(root="SavedModels"):
    """The runs below root, a DataFrame with one row per run, oldest first.

    Columns, besides the saved arguments of the runs (n, s, seed, lr, nhid, epochs, …; lists as
    text, missing where an argument does not apply to a network):
        task                    psMNIST, psDigits, PTB, …
        network                 static, homogeneous, heterogeneous, ReLU, ANRU, LSTM, GRU, …
        setting                 static, homogeneous or heterogeneous; missing for other networks
        epochs_done, finished   finished: all `epochs` are trained, and the test set is evaluated
        dry                     whether --limit-batches was given
        score                   "accuracy", in [0, 1], "bits_per_character", or that of a task of
                                one's own, which its model's description names
        validation, best_validation, test    last, best and last score; NaN if there is none yet.
                                The best is the highest accuracy, and the lowest of another score
        chance                  score of a random guess; NaN if the task names none
        hours                   of training
        started, path           ISO 8601; the run's directory
    Directories that are not runs, or whose files are damaged, are reported on stderr and skipped.
    """
    rows = []
    for path in sorted(run_directories(root)):
        try:
            rows.append(_row(path))
        except (RunError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            named = reason if str(path) in str(reason) else f"{path}: {reason}"
            print(f"skipped: {named}", file=sys.stderr)
    table = pd.DataFrame(rows, columns=None if rows else [*COLUMNS, "n", "s", "seed"])
    table["random"] = table.get("random")  # a flag of sMNIST_task.py alone
    for name in ("n", "s"):
        table[name] = pd.to_numeric(table.get(name))
    return table.sort_values("started", kind="stable", ignore_index=True)


def curves(table):
    """The learning curves of runs: metrics.csv with the columns `KEYS`, a row per run and epoch."""
    rows = table.set_index("path", drop=False)[KEYS].iterrows()
    parts = [read_csv(Path(path) / "metrics.csv").assign(**row) for path, row in rows]
    return pd.concat(parts, ignore_index=True)


def read_csv(path):
    """A table of a run, a DataFrame; empty if there is no file; RunError if it is damaged."""
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(io.StringIO(read_text(path)), dtype=str)
        numbers = table.columns.drop("condition", errors="ignore")
        return table.astype(dict.fromkeys(numbers, float))  # exact, as Python's float
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error})") from error


def _row(path):
    """The row of one run, {column: value}."""
    metrics, tests = (read_csv(path / name) for name in TABLES)
    run = Run(path)
    config, arguments, model = run.config, run.config["arguments"], run.config["model"]
    network = network_name(arguments)
    score, chance = score_and_chance(model)
    validation = metrics[f"validation_{score}"] if len(metrics) else pd.Series(dtype=float)
    test = tests.loc[tests["condition"] == "as_is", score] if len(tests) else ()
    plain = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in arguments.items()}
    return plain | {
        "task": config["task"],
        "network": network,
        "setting": network if network in SETTINGS else None,
        "epochs_done": len(metrics),
        "finished": run.complete,
        "dry": run.dry,
        "score": score,
        "chance": chance,
        "validation": [math.nan, *validation][-1],
        "best_validation": validation.max() if "accuracy" in score else validation.min(),
        "test": [math.nan, *test][-1],
        "hours": metrics["seconds"].sum() / 3600 if len(metrics) else 0.0,
        "started": str(config["started"]),
        "path": str(path),
    }


def score_and_chance(model):
    """The name of the score of a task, and that of a random guess, from the model's description.

    A script may name a `score` of its own, a key of what it gives to `finish_epoch`, and `chance`.
    """
    if "score" in model:
        return model["score"], model.get("chance", math.nan)
    if model["task"] == "characters":
        return "bits_per_character", math.log2(len(model["vocabulary"]))
    return "accuracy", 1 / model["classes"]


def network_name(arguments):
    """The name of a network in tables and legends, from the saved arguments of its run."""
    net, nonlin = arguments["net_type"], arguments["nonlin"]
    if net == "RNN":
        if nonlin == "gamma":
            return "homogeneous" if arguments["learn_params"] else "static"
        if nonlin == "gamma2" and arguments["learn_params"]:
            return "heterogeneous"
        return "ReLU" if nonlin == "ReLU" else f"RNN {nonlin}"
    return net if nonlin in (None, "modrelu") else f"{net} {nonlin}"


def varied(table):
    """The arguments other than `ASIDE` in which runs of one task differ; missing values do not."""
    left_out = {*COLUMNS, *ASIDE, "net_type", "nonlin", "learn_params", "epochs", "random"}
    counts = table.drop(columns=left_out, errors="ignore").groupby(table["task"]).nunique()
    return list(counts.columns[(counts > 1).any()])


def state(run):
    """The state of a run, a row of the table: finished, unfinished or dry run."""
    return "dry run" if run["dry"] else "finished" if run["finished"] else "unfinished"


def in_words(table):
    """The table as printed, sorted: selected columns, all of them text."""
    names = varied(table)
    table = table.sort_values(["task", "network", *names])
    shown = table[["task", "network", *names]].copy()
    for name in names:
        form = "{:g}" if table[name].dtype == float else "{}"
        shown[name] = table[name].map(form.format, na_action="ignore").fillna("")
    shown["epochs"] = table["epochs_done"].map(str) + "/" + table["epochs"].map(str)
    shown["state"] = table.apply(state, axis=1)
    forms = {"accuracy": "{:.1%}", "bits_per_character": "{:.3f} bpc"}
    form = table["score"].map(lambda score: forms.get(score, f"{{:.3f}} {score}"))
    for name, column in (("validation", "best_validation"), ("test", "test")):
        pairs = zip(form, table[column], strict=True)
        shown[name] = ["" if pd.isna(score) else text.format(score) for text, score in pairs]
    shown["hours"], shown["path"] = table["hours"].map("{:.2f}".format), table["path"]
    return shown


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.runs", __doc__)
    flag = parser.add_argument
    flag("root", type=Path, nargs="?", metavar="ROOT", default="SavedModels", help="folder of runs")
    flag("--where", metavar="EXPRESSION", help="select runs, as in DataFrame.query; see `load`")
    flag("--csv", action="store_true", help="print CSV, with all columns and digits")
    args = parser.parse_args(argv)
    table = load(args.root)
    if table.empty:
        parser.error(f"argument ROOT: no runs below {args.root}")
    table = table if args.where is None else select(table, args.where, parser)
    print(table.to_csv(index=False) if args.csv else in_words(table).to_string(index=False))
    return 0


def select(table, where, parser):
    """The rows for which an expression is true; ends the program if there are none, or it fails."""
    try:
        if len(chosen := table.query(where)):
            return chosen
        return parser.error(f"argument --where: {where}: no run matches")
    except (ValueError, TypeError, NameError, SyntaxError, KeyError, AttributeError) as error:
        known = ", ".join(name for name in table if name not in ASIDE)
        return parser.error(f"argument --where: {where}: {error}; the columns are {known}")


if __name__ == "__main__":
    sys.exit(main())
