"""The flags that the task scripts share: which there are, which a network takes, what they build.

A script makes its parser with `make_parser`, adds its own flags, and calls `parse`. What kind of
flag is it? `config.HOW` and `config.MODE` name those that do not affect what is trained; `takes`
says which apply to a network.
"""

import argparse
import functools
import inspect
import json
import shlex
import sys
from pathlib import Path

import torch

from NetworkCreation.checkpoints import checkpoint_of, read_checkpoint
from NetworkCreation.errors import UserError
from NetworkCreation.exprnn import ORTHOGONAL_MAPS
from NetworkCreation.initialization import INPUT, RECURRENT
from NetworkCreation.layer import NONLINEARITIES
from NetworkCreation.Networks import NETWORKS
from Training.config import HOW, MODE, plain, read_config, read_text
from Training.datasets import checksums_of
from Training.machine import allow_tf32
from Training.parser import (
    Parser,
    beta,
    finite,
    fraction,
    gain,
    not_negative,
    one_of,
    positive,
    positive_int,
    seed_int,
)
from Training.run_directory import find_runs

SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}  # off unless it is given


@functools.cache
def takes(net_type):
    """The flags that a network takes, by name: its constructor's arguments and `training_flags`."""
    network = NETWORKS[net_type]
    names = {*inspect.signature(network).parameters, *network.training_flags}
    return names | ({"random"} if "learn_params" in names else set())


def make_parser(script, description, datasets, **defaults):
    """A parser with the flags that the task scripts share.

    script: its path; `data` lies beside it. datasets: the choices of --dataset, the first one being
    the default; none for a script that makes its data. defaults: of flags that differ between
    scripts, such as nhid.
    """
    parser = Parser(Path(script).name, description)
    parser.file = Path(script).resolve()
    defaults = {"nonlin": "gamma", "nhid": 100, "n": 5.0, "s": 0.0, "batch_size": 100} | defaults
    switch = argparse.BooleanOptionalAction

    flag = parser.add_argument_group("network").add_argument
    flag("--net-type", type=one_of(NETWORKS), choices=NETWORKS, default="RNN", help="layer")
    flag("--nhid", type=positive_int, help="hidden units")
    flag("--nonlin", type=one_of(NONLINEARITIES), choices=NONLINEARITIES, help="activation; gamma "
         "has one n and s for the layer, gamma2 for every unit (default of the orthogonal "
         "networks: modrelu)")  # fmt: skip
    flag("--n", "--gain", dest="n", type=gain, help="initial gain n")
    flag("--s", "--saturation", dest="s", type=finite, help="initial degree of saturation s")
    flag("-lp", "--learn_params", action=switch, default=True, help="learn n and s")
    flag("--rinit", choices=RECURRENT, default="henaff", help="initial recurrent matrix")
    flag("--iinit", choices=INPUT, default="kaiming", help="initial input map")

    flag = parser.add_argument_group("orthogonal networks").add_argument
    flag("--ostep_method", choices=ORTHOGONAL_MAPS, default="exp", help="orthogonal map")
    flag("--capacity", type=positive_int, default=2, help="layers of rotations")
    flag("--lr_orth", type=positive, default=2e-5, help="learning rate of orthogonal parameters")
    flag("--alam", type=not_negative, default=1e-4, help="weight of Σ (α − 1)² in the loss")
    flag("--Tdecay", type=not_negative, default=1e-5, help="L2 penalty on T")

    flag = parser.add_argument_group("training").add_argument
    flag("--lr", type=positive, default=1e-4, help="learning rate")
    flag("--adam", action=switch, default=True, help="Adam; --no-adam: RMSprop")
    flag("--betas", type=beta, nargs=2, default=[0.9, 0.999], metavar=("B1", "B2"), help="of Adam")
    flag("--alpha", type=fraction, default=0.99, help="smoothing constant of RMSprop")
    flag("--weight_decay", type=not_negative, default=0.0, help="L2 penalty, not on n and s")
    flag("--clip", type=positive, metavar="C", help="clip the gradient to this norm (default: off)")
    flag("--batch", "--batch_size", dest="batch_size", type=positive_int, help="batch size")
    flag("--epochs", type=positive_int, default=100, help="number of epochs")
    flag("--limit-batches", type=positive_int, metavar="N", help="use N batches of each split")
    flag("--seed", type=seed_int, default=400, help="seed of all random numbers")

    flag = parser.add_argument_group("data, device and files").add_argument
    data = parser.file.parent / "data"
    if datasets:
        flag("--dataset", choices=datasets, default=next(iter(datasets)), help="data set")
        where = "folder of the data sets" + ", or FILE.npz" * ("npz" in datasets)
        flag("--data", type=Path, default=data, metavar="DIR", help=where)
    flag("-g", "--cuda", action=switch, help="use the GPU (default: if there is one)")
    flag("--tf32", **SWITCH, help="faster, less precise products on a GPU")
    flag("--save-dir", type=Path, default=Path("SavedModels"), metavar="DIR", help="folder of runs")
    flag("--save-freq", type=positive_int, default=25, metavar="N", help="save a checkpoint every "
         "N epochs (pixels: also evaluate the test set)")  # fmt: skip
    flag("--save-epochs", type=positive_int, nargs="+", default=[], metavar="N", help="epochs at "
         "which to save in addition")  # fmt: skip
    flag("--snapshot-minutes", type=not_negative, default=10.0, metavar="M", help="save the state "
         "within an epoch every M minutes; 0: after every batch")  # fmt: skip
    flag("--log-interval", type=positive_int, metavar="N", help="print the loss every N batches")
    flag("-v", "--verbose", **SWITCH, help="print the parameters, and the loss every 10 batches")
    flag("--note", default="", help="a remark, saved in config.json")
    flag("--resume", type=Path, metavar="RUN_DIR", help="continue a run with its own arguments; of "
         "these, --epochs may be raised and --data, --cuda, --snapshot-minutes, --log-interval, "
         "--verbose and --note changed")  # fmt: skip
    flag("--config", type=Path, metavar="FILE", help="read flags from a JSON file, {name: "
         "value}, or repeat a run from its config.json; typed flags take precedence")  # fmt: skip
    flag("--test", action="store_true", help="evaluate the test set with --checkpoint, or with "
         "the newest run with the given arguments, complete ones first; do not train")  # fmt: skip
    flag("--checkpoint", type=Path, metavar="PATH", help="the checkpoint that --test evaluates")

    parser.set_defaults(**defaults)
    for action in parser._actions:
        networks = [name for name in NETWORKS if action.dest in takes(name)]
        if networks and len(networks) < len(NETWORKS):
            action.help += f" ({', '.join(networks)})"
    return parser


# From words to arguments


def parse(parser, argv=None):
    """The arguments of a script, and the set of names that were given.

    Those of --config or of the run to resume are merged in. Flags that do not apply to the chosen
    network are rejected if they are given, and None otherwise. Exits with one line on any mistake.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    typed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args))))
    typed = {name for name, value in vars(typed).items() if value is not None}
    if args.checkpoint is not None and not args.test:
        parser.error("argument --checkpoint: requires --test")
    saved = {}
    if args.resume is not None:
        saved = _arguments_of_run(parser, args, typed)
    elif args.config is not None:
        saved = _arguments_in_file(parser, args.config)
    if saved:
        args = parser.parse_args([*parser.words(saved), *argv])
    given = typed | {name for name, value in saved.items() if value is not None}
    args.script, args.command = parser.prog, shlex.join(["python3", parser.prog, *argv])
    args.file = parser.file

    if args.net_type != "RNN" and "nonlin" in takes(args.net_type) and "nonlin" not in given:
        args.nonlin = inspect.signature(NETWORKS[args.net_type]).parameters["nonlin"].default
    for name in sorted(set().union({"alpha", "betas"}, *map(takes, NETWORKS)) & vars(args).keys()):
        choice, values = _condition(name, args.net_type)
        if getattr(args, choice) in values:
            continue
        # A value from a file is dropped silently if the command line rules it out.
        if name in typed or (name in given and choice not in typed):
            parser.error(
                f"argument {parser.option(name)}: applies to {parser.option(choice)} "
                f"{', '.join(map(str, values))}, got {getattr(args, choice)}"
            )
        setattr(args, name, None)
    return args, given


def _condition(name, net_type):
    """The flag that decides whether another one applies, and the values with which it does."""
    if name in ("alpha", "betas"):
        return "adam", [name == "betas"]
    if name in ("n", "s", "learn_params", "random") and {name, "nonlin"} <= takes(net_type):
        return "nonlin", ["gamma", "gamma2"]
    return "net_type", [network for network in NETWORKS if name in takes(network)]


def _arguments_of_run(parser, args, typed):
    """The arguments of the run to resume; an error if a typed flag would change what is trained."""
    if others := sorted(typed - {"resume", "epochs", *HOW} | typed & {"save_dir"}):
        flags = ", ".join(map(parser.option, others))
        parser.error(f"argument --resume: what is trained, and where, cannot be changed ({flags})")
    config = read_config(args.resume)
    if config["script"] != parser.prog:
        raise UserError(f"{args.resume}: a run of {config['script']}")
    epochs = config["arguments"]["epochs"]
    if "epochs" in typed and args.epochs < epochs:
        parser.error(f"argument --epochs: {args.epochs} is less than the run's {epochs}")
    return config["arguments"]


def _arguments_in_file(parser, path):
    """The arguments in a JSON file, or those that repeat the run of a config.json."""
    try:
        content = json.loads(read_text(path))
        saved = content.get("arguments")
        saved = None if saved is None else dict(saved)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a JSON object of arguments ({error})") from error
    if saved is None:
        if modes := sorted(content.keys() & MODE):
            raise UserError(f"{path}: {', '.join(modes)} cannot be set in a file")
        return content
    if (script := content.get("script", parser.prog)) != parser.prog:
        raise UserError(f"{path}: of a run of {script}")
    # An n that was drawn is drawn again, by the seed; data may have been moved.
    aside = {*HOW, "n", "random"} if saved.get("random") else {*HOW}
    aside -= {"data"} if Path(saved.get("data") or "").exists() else set()
    return {name: value for name, value in saved.items() if name not in aside}


# From arguments to objects


def layer_options(args):
    """The arguments for the constructor of the network that the flags choose."""
    names = inspect.signature(NETWORKS[args.net_type]).parameters.keys() & vars(args).keys()
    return {name: getattr(args, name) for name in sorted(names) if getattr(args, name) is not None}


def make_optimizer(args, model):
    """Adam or RMSprop; groups of parameters that a layer sets apart have their own options."""
    # Weight decay would pull n and s to 0, and an orthogonal matrix back to its initial value.
    options = {
        "gains": {"weight_decay": 0.0},
        "orthogonal": {"lr": args.lr_orth, "weight_decay": 0.0},
        "T": {"weight_decay": args.Tdecay},
    }
    apart = model.rnn.parameter_groups()
    taken = {parameter for group in apart.values() for parameter in group}
    groups = [{"params": [p for p in model.parameters() if p not in taken]}]
    groups += [{"params": group, **options[name]} for name, group in apart.items() if group]
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.adam:
        return torch.optim.Adam(groups, betas=args.betas, **common)
    return torch.optim.RMSprop(groups, alpha=args.alpha, **common)


def choose_device(args):
    """The GPU if there is one and not --no-cuda, else the CPU; sets args.cuda, and TF32."""
    allow_tf32(args.tf32)
    if args.cuda and not torch.cuda.is_available():
        raise UserError("argument --cuda: torch sees no GPU here; use --no-cuda for the CPU")
    args.cuda = torch.cuda.is_available() and args.cuda is not False
    if args.tf32 and not args.cuda:
        raise UserError("argument --tf32: requires a GPU")
    return torch.device("cuda" if args.cuda else "cpu")


# --test


def tested_checkpoint(parser, args, given):
    """The path and content of the checkpoint that --test evaluates, and its run's arguments.

    That of --checkpoint, or that of the newest run with the given arguments: a complete one rather
    than another, and a dry run (--limit-batches) only if that flag is given. Prints which it is.
    A file of the paper's own code has no arguments but the flags. Raises UserError.
    """
    asked = given - {*HOW, *MODE, "limit_batches", "transform"}
    asked = plain({name: getattr(args, name) for name in sorted(asked)})
    path = args.checkpoint or _newest_checkpoint(parser, args, asked, given)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("config")
    if config is None:
        held = any(name.endswith(".n") for name in checkpoint["state_dict"])
        if args.n is not None and "n" not in given and not held:
            raise UserError(f"{path}: has no n and s; give --n and --s")
        return path, checkpoint, args
    try:
        reason = _mismatch(parser, config, asked)
        trained = argparse.Namespace(**config["arguments"])
        epochs = f"{checkpoint['epoch']} of {trained.epochs} epochs"
        if checkpoint["batch"]:
            epochs += f" and {checkpoint['batch']} batches, within an epoch"
        if trained.limit_batches is not None:
            epochs += ", a dry run"
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its config is not that of a run ({error!r})") from error
    if reason is not None:
        raise UserError(f"{path}: {reason}")
    print(f"checkpoint: {path}, after {epochs}")
    trained.limit_batches = args.limit_batches
    if "data" in given or not Path(getattr(trained, "data", "")).exists():
        trained.data = args.data
    if "data" not in given and "dataset" in trained and checksums_of(trained) != config.get("data"):
        print(f"warning: {trained.data}: not the data that this run was trained on")
    return path, checkpoint, trained


def _newest_checkpoint(parser, args, asked, given):
    for run in find_runs(args.save_dir):
        if _mismatch(parser, run.config, asked) or (run.dry and args.limit_batches is None):
            continue
        try:
            if "data" in given:
                elsewhere = argparse.Namespace(**{**run.config["arguments"], "data": args.data})
                if checksums_of(elsewhere) != run.config["data"]:
                    continue
            return checkpoint_of(run.path)
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
    asked = asked | ({"data": args.data} if "data" in given else {})
    wanted = ", ".join(f"{name} {value}" for name, value in asked.items())
    raise UserError(
        f"argument --test: no run{' with ' if wanted else ''}{wanted} in {args.save_dir}; see "
        "--checkpoint"
    )


def _mismatch(parser, config, asked):
    """Why a run is not the one that was asked for; None if it is."""
    if config["script"] != parser.prog:
        return f"of a run of {config['script']}"
    for name, value in asked.items():
        if (saved := config["arguments"].get(name)) != value:
            return f"trained with {parser.option(name)} {saved}, not {value}"
    return None
