"""The flags shared by the task scripts, and checks of their values.

A network takes the flags that are named like arguments of its constructor.
"""

import argparse
import functools
import inspect
import json
import os
import sys
import threading
from pathlib import Path

import torch

from Training.machine import allow_tf32
from Training.output import OutputError, printable, report, writing
from Training.parser import Parser as Parser
from Training.parser import (
    activation,
    beta,
    finite,
    fraction,
    gain,
    not_negative,
    path,
    positive_int,
    rate,
    seed_int,
    text,
)
from Training.parser import not_negative_int as not_negative_int
from Training.run_directory import HOW, Run, RunError, current_names, find_runs, plain
from Training.trainer import Interrupted, TrainingStopped

SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}  # off unless it is given
GAMMA = {"n", "s", "learn_params", "random"}  # flags of --nonlin gamma and gamma2


def entry_point(main):
    """Decorates the main of a script or command: process settings, and exit codes for errors."""

    @functools.wraps(main)
    def run(*arguments):
        torch.set_flush_denormal(True)  # before the first parallel operation: threads inherit it
        threading.excepthook = _report_thread
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # was closed
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 — for the process
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # γ where the encoding has none
        try:
            try:
                return main(*arguments)
            except SystemExit:  # after --help
                with writing(sys.stdout):
                    pass
                raise
        except (RunError, OutputError) as error:
            report(f"{Path(main.__globals__['__file__']).name}: error: {printable(str(error))}")
            return 1
        except TrainingStopped:
            return 1
        except Interrupted as signum:
            return signum.code
        except KeyboardInterrupt:
            return 130

    return run


def _report_thread(failed):
    """Ignores a failed write in a thread of TensorBoard: the next flush raises it again."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


# The flags


def add_network_flags(parser, networks, nonlin, rinit, iinit, ostep_method):
    """The flags that describe a network; the arguments are the choices of each flag."""
    group = parser.add_argument_group("network")
    flag, switch = group.add_argument, argparse.BooleanOptionalAction
    flag("--net-type", choices=networks, default="RNN", help="recurrent layer")
    flag("--nhid", type=positive_int, help="hidden units")
    flag(
        "--nonlin",
        type=activation,
        choices=nonlin,
        help="activation of RNN, expRNN and nnRNN; gamma has one n and s for the layer, gamma2 for "
        "every unit; the default of expRNN, nnRNN and EURNN is modrelu",
    )
    flag("--gain", "--n", dest="n", type=gain, help="initial gain n")
    flag("--saturation", "--s", dest="s", type=finite, help="initial degree of saturation s")
    flag("-lp", "--learn_params", action=switch, default=True, help="n and s learn")
    flag("--rinit", choices=rinit, default="henaff", help="initial recurrent matrix")
    flag("--iinit", choices=iinit, default="kaiming", help="initial input map")
    flag(
        "--ostep_method",
        choices=ostep_method,
        default="exp",
        help="map from skew-symmetric to orthogonal matrices in expRNN and nnRNN",
    )
    flag("--capacity", type=positive_int, default=2, help="layers of rotations in EURNN")


def add_training_flags(parser):
    """The flags of the optimiser and the training loop."""
    group = parser.add_argument_group("training")
    flag, switch = group.add_argument, argparse.BooleanOptionalAction
    flag("--lr", type=rate, default=1e-4, help="learning rate")
    flag("--adam", action=switch, default=True, help="Adam; --no-adam: RMSprop")
    flag(
        "--betas",
        type=beta,
        nargs=2,
        default=[0.9, 0.999],
        metavar=("B1", "B2"),
        help="decay rates of Adam's first and second moments",
    )
    flag("--alpha", type=fraction, default=0.99, help="smoothing constant of RMSprop")
    flag("--weight_decay", type=not_negative, default=0.0, help="L2 penalty")
    flag(
        "--lr_orth",
        "--lr-orth",
        type=rate,
        default=2e-5,
        help="learning rate of the orthogonal parameters of expRNN, nnRNN and EURNN",
    )
    flag(
        "--alam",
        type=not_negative,
        default=1e-4,
        help="weight of the sum of (alpha - 1)^2 in the loss of nnRNN",
    )
    flag("--Tdecay", type=not_negative, default=1e-5, help="L2 penalty on T of nnRNN")
    flag("--clip", type=rate, metavar="C", help="clip the gradient to this norm (default: off)")
    flag("--batch", "--batch_size", dest="batch_size", type=positive_int, help="batch size")
    flag("--epochs", type=positive_int, default=100, help="number of epochs")
    flag(
        "--limit-batches",
        type=positive_int,
        metavar="N",
        help="stop every pass over a set after N batches: a dry run",
    )


def add_run_flags(parser, script, datasets):
    """The flags of data, device and files. script: its path; `data` lies beside it."""
    group = parser.add_argument_group("data, device and files")
    flag, switch = group.add_argument, argparse.BooleanOptionalAction
    flag("--dataset", choices=datasets, default=next(iter(datasets)), help="data set")
    flag(
        "--data",
        type=path,
        default=Path(script).resolve().parent / "data",
        metavar="DIR",
        help="folder of the data sets",
    )
    flag("-g", "--cuda", action=switch, help="use the GPU (default: if there is one)")
    flag("--tf32", **SWITCH, help="faster, less precise products on a GPU")
    flag("--seed", type=seed_int, default=400, help="seed of all random numbers")
    flag("--save-dir", type=path, default=Path("SavedModels"), metavar="DIR", help="folder of runs")
    flag(
        "--save-freq",
        type=positive_int,
        default=25,
        metavar="N",
        help="keep a checkpoint, and evaluate the test set on pixels, every N epochs",
    )
    flag(
        "--save-epochs",
        type=positive_int,
        nargs="+",
        default=[],
        metavar="N",
        help="do so after these epochs as well",
    )
    flag(
        "--snapshot-minutes",
        type=not_negative,
        default=10.0,
        metavar="M",
        help="save the state within an epoch every M minutes; 0: after every batch",
    )
    flag("--note", type=text, default="", help="a remark, saved in config.json")
    flag(
        "--resume",
        type=path,
        metavar="RUN_DIR",
        help="continue a run with its own arguments; --epochs may be raised, and --data, --cuda, "
        "--snapshot-minutes, --verbose and --note given anew",
    )
    flag(
        "--config",
        type=path,
        metavar="FILE",
        help="read flags from a JSON file, {name: value}, or repeat the run of a config.json; "
        "flags on the command line take precedence",
    )
    flag(
        "--test",
        action="store_true",
        help="do not train: evaluate the test set with --checkpoint, or with the newest run that "
        "has the given arguments",
    )
    flag("--checkpoint", type=path, metavar="PATH", help="the checkpoint that --test evaluates")


def parse(parser, argv, networks):
    """The arguments of a script and the run to resume, or None.

    networks: {name: layer class}. Flags that do not apply to the chosen network are rejected if
    given, and None otherwise. Exits with one line on any mistake.
    """
    args, run = parser.parse_args(argv), None
    if args.checkpoint is not None and not args.test:
        parser.error("argument --checkpoint: requires --test")
    if args.resume is not None:
        if others := parser.typed - {"resume", "epochs", *HOW}:
            named = ", ".join(parser.flag(name) for name in sorted(others))
            parser.error(f"argument --resume: what is trained cannot be changed, such as {named}")
        with parser.blame("resume", RunError):
            args, run = _resume(parser, args.resume)
    elif args.config is not None:
        with parser.blame("config", RunError):
            args = parser.merge(_read_arguments(parser, args.config), args.config)
    del args.config  # its arguments are in args now
    given = parser.given
    network = networks[args.net_type]
    if args.net_type != "RNN" and "nonlin" not in given and "nonlin" in takes(network):
        args.nonlin = constructor(network)["nonlin"].default
    every = set.union(*map(takes, networks.values())) & vars(args).keys()
    for name in every - takes(network):
        owners = [key for key, one in networks.items() if name in takes(one)]
        _drop(parser, args, name, "net_type", owners)
    if args.nonlin not in ("gamma", "gamma2", None):
        for name in GAMMA & vars(args).keys():
            _drop(parser, args, name, "nonlin", ["gamma", "gamma2"])
    unused, needed = ("alpha", "--no-adam") if args.adam else ("betas", "--adam")
    # The config.json of a run has the unused one too, at its default.
    in_file = getattr(args, unused) != parser.get_default(unused) and "adam" not in parser.typed
    if unused in parser.typed or in_file:
        parser.error(f"argument {parser.flag(unused)}: requires {needed}")
    return args, run


@functools.cache
def constructor(network):
    """{name: Parameter} of a layer's constructor and of those that it passes arguments on to."""
    found = {}
    for kind in reversed(network.__mro__):
        found |= inspect.signature(kind.__init__).parameters
    return found


def takes(network):
    """The names of the flags that apply to a network."""
    names = set(constructor(network))
    if "learn_params" in names:
        names.add("random")
    base = network.__mro__[network.__mro__.index(torch.nn.Module) - 1]
    if network.parameters_apart is not base.parameters_apart:
        names.add("lr_orth")
    return names | ({"alam", "Tdecay"} if hasattr(network, "penalty") else set())


def _drop(parser, args, name, choice, owners):
    """Sets an argument that does not apply to None; exits if it was given.

    An argument from a file is dropped silently if the choice on the command line rules it out.
    """
    if name in parser.typed or (name in parser.given and choice not in parser.typed):
        parser.error(
            f"argument {parser.flag(name)}: applies to {parser.flag(choice)} {', '.join(owners)}, "
            f"not to {getattr(args, choice)}"
        )
    setattr(args, name, None)


def _resume(parser, path):
    """The arguments of a saved run, updated from the command line, and the run."""
    run, source = Run(path), path / "config.json"
    if run.config["script"] != parser.prog:
        raise RunError(f"{source}: a run of {run.config['script']}")
    run.lock()
    args = parser.merge(run.config["arguments"], source)
    epochs = run.config["arguments"].get("epochs")
    if not isinstance(epochs, int):
        raise RunError(f"{source}: epochs is {epochs!r}")
    if args.epochs < epochs:
        parser.error(f"argument --epochs: {args.epochs} is less than the run's {epochs}")
    return args, run


def _read_arguments(parser, path):
    """The arguments in a JSON file, or those that repeat the run of a config.json."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: not a JSON object of arguments")
    if not isinstance(found.get("arguments"), dict):
        return current_names(found)
    if found.get("script") != parser.prog:
        raise RunError(f"{path}: of a run of {found.get('script')}")
    aside = ("cuda", "save_dir", "note")  # of that run alone
    return {k: v for k, v in current_names(found["arguments"]).items() if k not in aside}


# From arguments to objects


def layer_options(args, networks):
    """The arguments for a layer's constructor."""
    names = constructor(networks[args.net_type]).keys() & vars(args).keys()
    return {k: getattr(args, k) for k in sorted(names) if getattr(args, k) is not None}


def make_optimizer(args, model, parameter_groups):
    """Adam or RMSprop; the parameter groups that a layer sets apart have their own options.

    Weight decay of the orthogonal parameters would pull the matrix back to its initial value.
    """
    options = {"orthogonal": {"lr": args.lr_orth, "weight_decay": 0.0}}
    options["T"] = {"weight_decay": args.Tdecay}
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    groups = parameter_groups(model, options)
    if args.adam:
        return torch.optim.Adam(groups, betas=args.betas, **common)
    return torch.optim.RMSprop(groups, alpha=args.alpha, **common)


def check_network(parser, args, device, build, states):
    """Exits if the network cannot be built, or if training it cannot fit into memory.

    build: returns the model on the meta device. states: T · B of a training step. The estimate
    counts weights, gradients, Adam's two moments, and a and h of every step. The error names the
    flag that is furthest above its default.
    """
    try:
        weights = sum(parameter.numel() for parameter in build().parameters())
    except ValueError as error:
        if not hasattr(error, "name"):  # not an error of an argument of the layer
            raise
        parser.error(f"argument {parser.flag(error.name)}: {error}")
    needed = 4 * (4 * weights + 2 * states * args.nhid)
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        sizes = ("nhid", "emsize", "capacity", "batch_size", "bptt")
        sizes = [k for k in sizes if getattr(args, k, None) is not None]
        largest = max(sizes, key=lambda name: getattr(args, name) / parser.get_default(name))
        parser.error(
            f"argument {parser.flag(largest)}: {getattr(args, largest)} needs at least "
            f"{needed / 1e9:.3g} GB of memory, of {available / 1e9:.3g} GB"
        )


def choose_device(parser, args):
    """The device that -g/--no-cuda asks for, or else the GPU if there is one; sets args.cuda.

    If this torch has no kernels for the GPU, --cuda is an error; without the flag, a line says so
    and the CPU is used. Matrix products are in float32, or with --tf32 in TF32.
    """
    allow_tf32(args.tf32)
    if args.cuda is not False and (problem := _gpu_problem()):
        if args.cuda:
            parser.error(f"argument -g/--cuda: {problem}")
        if torch.cuda.is_available():
            report(f"{parser.prog}: using the CPU: {problem}")
        args.cuda = False
    args.cuda = args.cuda is not False
    if args.tf32 and not args.cuda:
        if "tf32" in parser.typed:
            parser.error("argument --tf32: requires a GPU")
        args.tf32 = False  # saved by a run on a GPU, and now on a CPU
    return torch.device("cuda" if args.cuda else "cpu")


def _gpu_problem():
    """Why the GPU cannot be used, in one line; None if it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here; use --no-cuda for the CPU"
    try:
        torch.ones(1, device="cuda").item()  # launches a kernel
    except torch.cuda.OutOfMemoryError:
        return None  # others use it now: not a reason to train on the CPU
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        return f"torch {torch.__version__} cannot compute on this GPU ({reason})"
    return None


# --test


def newest_checkpoint(parser, args):
    """The checkpoint of the newest run below --save-dir with the given arguments."""
    asked = plain({name: getattr(args, name) for name in parser.given - parser.evaluation})
    for run in find_runs(args.save_dir, parser.prog, **asked):
        try:
            return run.scored_checkpoint()
        except RunError as error:
            report(f"skipped: {printable(str(error))}")
    given = ", ".join(f"{name} {value}" for name, value in asked.items())
    found = f"no run with {given}" if given else "no run"
    parser.error(f"argument --test: {found} in {args.save_dir}; see --checkpoint")


def tested_arguments(parser, args, config, path):
    """The arguments that a checkpoint was trained with, and defaults for those that it lacks.

    config: the checkpoint's. The data are those of --data, or else the run's if they are still
    there. Exits if the config belongs to another script or version, or contradicts a given flag.
    """
    if config.get("script") != parser.prog:
        parser.error(f"argument --checkpoint: {path} is of a run of {config.get('script')}")
    saved = current_names(config["arguments"])
    if unknown := saved.keys() - parser.settable().keys():
        raise RunError(f"{path}: of another version, with the arguments {', '.join(unknown)}")
    trained = argparse.Namespace(**{k: parser.get_default(k) for k in parser.settable()} | saved)
    if "data" in parser.given or not Path(trained.data).is_dir():
        trained.data = args.data
    for name in sorted(parser.given - parser.evaluation):
        asked, saved = plain({name: getattr(args, name)})[name], getattr(trained, name)
        if saved != asked:
            parser.error(
                f"argument {parser.flag(name)}: {asked} contradicts {path}, trained with {saved}"
            )
    return trained
