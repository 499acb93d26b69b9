"""The flags of both task scripts, and the checks of what they are given.

A network takes the flags named as arguments of its constructor.
"""

import argparse
import contextlib
import difflib
import functools
import inspect
import os
import re
import shlex
import sys
from pathlib import Path

import torch

from Training.machine import allow_tf32
from Training.run_directory import Run, RunError, current_names, find_runs, plain
from Training.trainer import Interrupted, TrainingStopped

# Flags that say what to evaluate and where, not what was trained.
EVALUATION = {"cuda", "tf32", "data", "save_dir", "limit_batches", "test", "checkpoint"}
EVALUATION |= {"transform"}
# Arguments of the networks and models whose flag has another name.
FLAGS = {"hidden_size": "nhid", "embedding_size": "emsize"}
GAMMA = {"n", "s", "learn_params", "random"}  # flags of --nonlin gamma and gamma2


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the description as it is, and the default of a flag that has one to show."""

    def _get_help_string(self, action):
        if action.default in (None, False, "", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for a script: errors in one line, no abbreviated flags.

    After `parse_args`, `given` is the set of arguments that were typed, `command` the command.
    """

    def __init__(self, script, description):
        super().__init__(
            prog=Path(script).name,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._typed = ()

    def parse_args(self, args=None, namespace=None):
        typed = sys.argv[1:] if args is None else args
        self.command = shlex.join(["python3", self.prog, *typed])
        self._typed = typed
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized argument {unknown[0]}{self._nearest(unknown[0])}")
        defaults = {name: self.get_default(name) for name in vars(found)}
        absent = object()
        self.set_defaults(**dict.fromkeys(defaults, absent))
        parsed, _ = self.parse_known_args(args, namespace)
        self.given = {name for name, value in vars(parsed).items() if value is not absent}
        self.set_defaults(**defaults)
        return found

    def _nearest(self, word, choices=None):
        choices = self._option_string_actions if choices is None else choices
        near = difflib.get_close_matches(word.split("=")[0], choices, 1)
        return f": did you mean {near[0]}?" if near else ""

    def error(self, message):
        message = " ".join(message.split())
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += self._nearest(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        self.exit(2, f"{self.prog}: error: {message}\n")

    @contextlib.contextmanager
    def blame(self, flag, *errors):
        """Turns these errors into an error of the flag with this name."""
        try:
            yield
        except errors as error:
            self.error(f"argument {self.flag(flag)}: {error}")

    def flag(self, name):
        """The long flag that sets an argument, in the spelling that was typed."""
        name = FLAGS.get(name, name)
        options = [o for a in self._actions if a.dest == name for o in a.option_strings]
        options = [option for option in options if option.startswith("--")]
        return next((option for option in options if option in self._typed), options[0])


def entry_point(main):
    """Decorates a script's main(argv): settings of the process, and exit codes for its errors."""

    @functools.wraps(main)
    def run(argv=None):
        torch.set_flush_denormal(True)  # before the first parallel operation: threads inherit it
        try:
            return main(argv)
        except RunError as error:
            print(f"{Path(main.__globals__['__file__']).name}: error: {error}", file=sys.stderr)
            return 1
        except TrainingStopped:
            return 1
        except Interrupted as signum:
            return signum.code
        except KeyboardInterrupt:
            return 130

    return run


# Types of values


def _number(kind, name, allowed, check):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
        if not check(value):
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse


FLOAT32 = torch.finfo(torch.float32)

positive_int = _number(int, "a whole number", "from 1 to 10**9", lambda v: 1 <= v <= 10**9)
not_negative_int = _number(int, "a whole number", "from 0 to 10**9", lambda v: 0 <= v <= 10**9)
seed_int = _number(int, "a whole number", "from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32)
finite = _number(
    float, "a number", f"finite, at most {FLOAT32.max:.1e} in size", lambda v: abs(v) <= FLOAT32.max
)
# Beyond 1e30 a step of Adam overflows float32.
rate = _number(float, "a number", "positive and at most 1e30", lambda v: 0 < v <= 1e30)
not_negative = _number(float, "a number", "from 0 to 1e30", lambda v: 0 <= v <= 1e30)
fraction = _number(float, "a number", "from 0 to 1", lambda v: 0 <= v <= 1)
beta = _number(float, "a number", "at least 0 and below 1", lambda v: 0 <= v < 1)
gain = _number(
    float,
    "a number",
    f"from {FLOAT32.tiny:.1e} to {FLOAT32.max:.1e} in size, of either sign",
    lambda v: FLOAT32.tiny <= abs(v) <= FLOAT32.max,
)


def activation(text):
    """A name of an activation; ReLU in any spelling."""
    return "ReLU" if text.lower() == "relu" else text


def text(typed):
    """A string that can be written to a file in UTF-8."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{typed!r} is not text in UTF-8") from None
    return typed


def path_text(typed):
    """A string that can be a path, whether or not there is a file."""
    try:
        os.lstat(text(typed) or ".")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{typed!r} is not a path ({reason})") from None
    return typed


def path(typed):
    """The Path of such a string."""
    return Path(path_text(typed))


# The flags


def add_network_flags(parser, networks, nonlin, rinit, iinit, ostep_method):
    """The flags that describe a network; the arguments are the choices of the flag."""
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
        help="from a skew-symmetric to an orthogonal matrix, of expRNN and nnRNN",
    )
    flag("--capacity", type=positive_int, default=2, help="layers of rotations of EURNN")


def add_training_flags(parser):
    """The flags of the optimiser and of the loop."""
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
        help="of Adam: decay of the mean gradient and of its mean square",
    )
    flag("--alpha", type=fraction, default=0.99, help="smoothing of RMSprop")
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
    flag("--clip", type=rate, metavar="C", help="largest norm of the gradient (default: any)")
    flag("--batch", "--batch_size", dest="batch_size", type=positive_int, help="batch size")
    flag("--epochs", type=positive_int, default=100, help="in all")
    flag(
        "--limit-batches",
        type=positive_int,
        metavar="N",
        help="stop every pass over a set after N batches: a dry run",
    )


def add_run_flags(parser, script, datasets):
    """The flags of data, device and files. script: its file; the data sets lie beside it."""
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
    flag("--tf32", action="store_true", help="faster, less precise matrix products on a GPU")
    flag("--seed", type=seed_int, default=400, help="of all random draws")
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
        help="and after these epochs",
    )
    flag(
        "--snapshot-minutes",
        type=not_negative,
        default=10.0,
        metavar="M",
        help="save the state within an epoch every M minutes; 0: after every batch",
    )
    flag("--note", type=text, default="", help="a remark, kept in config.json")
    flag(
        "--resume",
        type=path,
        metavar="RUN_DIR",
        help="continue a run with its own arguments; only --epochs may be raised",
    )
    flag(
        "--test",
        action="store_true",
        help="do not train: evaluate the test set with --checkpoint, or with the newest run that "
        "has the given arguments",
    )
    flag("--checkpoint", type=path, metavar="PATH", help="the checkpoint of --test")


def parse(parser, argv, networks):
    """The arguments of a script and the run to resume, or None.

    networks: {name: layer class}. Flags that do not apply to the chosen network are rejected if
    typed, and None otherwise. Exits with one line on any mistake.
    """
    args = parser.parse_args(argv)
    given = parser.given
    if args.checkpoint is not None and not args.test:
        parser.error("argument --checkpoint: requires --test")
    if args.resume is not None:
        if others := given - {"resume", "epochs"}:
            named = ", ".join(parser.flag(name) for name in sorted(others))
            parser.error(f"argument --resume: only --epochs can be changed, not {named}")
        with parser.blame("resume", RunError):
            return _resume(parser, args)
    network = networks[args.net_type]
    if args.net_type != "RNN" and "nonlin" not in given and "nonlin" in takes(network):
        args.nonlin = constructor(network)["nonlin"].default
    every = set.union(*map(takes, networks.values())) & vars(args).keys()
    for name in every - takes(network):
        owners = [key for key, one in networks.items() if name in takes(one)]
        _drop(parser, args, name, "net_type", owners)
    if args.nonlin not in ("gamma", "gamma2"):
        for name in GAMMA & vars(args).keys():
            _drop(parser, args, name, "nonlin", ["gamma", "gamma2"])
    unused, needed = ("alpha", "--no-adam") if args.adam else ("betas", "--adam")
    if unused in given:
        parser.error(f"argument {parser.flag(unused)}: requires {needed}")
    return args, None


def constructor(network):
    """{name: Parameter} of a layer's constructor and of those that it passes arguments on to."""
    found = {}
    for kind in reversed(network.__mro__):
        found |= inspect.signature(kind.__init__).parameters
    return found


def takes(network):
    """The names of the flags that a network has a use for."""
    names = set(constructor(network))
    if "learn_params" in names:
        names.add("random")
    base = network.__mro__[network.__mro__.index(torch.nn.Module) - 1]
    if network.parameters_apart is not base.parameters_apart:
        names.add("lr_orth")
    return names | ({"alam", "Tdecay"} if hasattr(network, "penalty") else set())


def _drop(parser, args, name, choice, owners):
    """Sets an argument that does not apply to None; an error if it was typed."""
    if name in parser.given:
        parser.error(
            f"argument {parser.flag(name)}: applies to {parser.flag(choice)} {', '.join(owners)}, "
            f"not to {getattr(args, choice)}"
        )
    setattr(args, name, None)


def _resume(parser, args):
    """The saved arguments of a run, the number of epochs raised if asked for, and the run."""
    run = Run(args.resume)
    if run.config["script"] != parser.prog:
        raise RunError(f"{run.path / 'config.json'}: a run of {run.config['script']}")
    run.lock()
    saved = saved_arguments(parser, run.config, run.path / "config.json")
    if not isinstance(saved.epochs, int):
        raise RunError(f"{run.path / 'config.json'}: epochs is {saved.epochs!r}")
    if "epochs" in parser.given:
        if args.epochs < saved.epochs:
            parser.error(f"argument --epochs: {args.epochs} is less than the run's {saved.epochs}")
        saved.epochs = args.epochs
    return saved, run


def saved_arguments(parser, config, path):
    """The arguments in a config as a namespace; defaults for flags that it does not know.

    path: its file. Raises RunError for an argument that this version does not have.
    """
    defaults = {a.dest: a.default for a in parser._actions if a.dest != "help"}
    saved = current_names(config["arguments"])
    if unknown := saved.keys() - defaults.keys():
        names = ", ".join(sorted(unknown))
        raise RunError(f"{path}: of another version, with the arguments {names}")
    return argparse.Namespace(**defaults | saved)


# What the arguments come to


def layer_options(args, networks):
    """The arguments of a layer's constructor that flags set."""
    names = constructor(networks[args.net_type]).keys() & vars(args).keys()
    return {k: getattr(args, k) for k in sorted(names) if getattr(args, k) is not None}


def make_optimizer(args, model, parameter_groups):
    """Adam or RMSprop over the model's parameters; those that a layer sets apart differ.

    A decay of the orthogonal parameters would pull the matrix back to its start.
    """
    options = {"orthogonal": {"lr": args.lr_orth, "weight_decay": 0.0}}
    options["T"] = {"weight_decay": args.Tdecay}
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    groups = parameter_groups(model, options)
    if args.adam:
        return torch.optim.Adam(groups, betas=args.betas, **common)
    return torch.optim.RMSprop(groups, alpha=args.alpha, **common)


def check_network(parser, args, device, build, states):
    """An error if the network cannot be built, or its training cannot fit into memory.

    build: returns the model on the meta device. states: T · B of a training step. Counted are
    weights, gradients and Adam's two means, and a and h of every step. The error names the flag
    that is furthest above its default.
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

    A GPU that this torch has no kernels for is an error of --cuda; without the flag, a line says so
    and the CPU is used. Products are computed in float32, or with --tf32 in TF32.
    """
    allow_tf32(args.tf32)
    if args.cuda is not False and (problem := _gpu_problem()):
        if args.cuda:
            parser.error(f"argument -g/--cuda: {problem}")
        if torch.cuda.is_available():
            print(f"{parser.prog}: using the CPU: {problem}", file=sys.stderr)
        args.cuda = False
    args.cuda = args.cuda is not False
    if args.tf32 and not args.cuda:
        parser.error("argument --tf32: requires a GPU")
    return torch.device("cuda" if args.cuda else "cpu")


def _gpu_problem():
    """Why the GPU cannot be used, in one line; None if it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    try:
        torch.ones(1, device="cuda").item()  # launches a kernel
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        return f"torch {torch.__version__} cannot compute on this GPU ({reason})"
    return None


# --test


def newest_run(parser, args):
    """The newest run of this script below --save-dir that has the given arguments."""
    asked = plain({name: getattr(args, name) for name in parser.given - EVALUATION})
    runs = find_runs(args.save_dir, parser.prog, **asked)
    if not runs:
        flags = ", ".join(f"{name} {value}" for name, value in asked.items()) or "any arguments"
        parser.error(f"argument --test: no run with {flags} in {args.save_dir}; see --checkpoint")
    return runs[0]


def tested_arguments(parser, args, config, path):
    """The arguments that a checkpoint was trained with.

    config: the checkpoint's. Exits if it is of another script or contradicts a flag given.
    """
    if config.get("script") != parser.prog:
        parser.error(f"argument --checkpoint: {path} is of a run of {config.get('script')}")
    trained = saved_arguments(parser, config, path)
    for name in sorted(parser.given - EVALUATION):
        asked, saved = plain({name: getattr(args, name)})[name], getattr(trained, name)
        if saved != asked:
            parser.error(
                f"argument {parser.flag(name)}: {asked} contradicts {path}, trained with {saved}"
            )
    return trained
