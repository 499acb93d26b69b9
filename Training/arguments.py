"""Command-line arguments: values that are checked at the door, and what both scripts share."""

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch

from Training.runs import MODE, Run, RunError, find_runs

# The networks that have one recurrent matrix and any φ, and those whose matrix is orthogonal.
ELMAN = ("RNN", "expRNN", "nnRNN")
ORTHOGONAL = ("expRNN", "nnRNN", "EURNN")

# Flags of both scripts, and the networks that they belong to; the others belong to all.
OWNERS = {
    "nonlin": (*ELMAN, "EURNN"),
    "rinit": ("ANRU", *ELMAN),
    "iinit": ("ANRU", *ELMAN, "EURNN"),
    "capacity": ("EURNN",),
    "lr_orth": ORTHOGONAL,
    "ostep_method": ("expRNN", "nnRNN"),
    "alam": ("nnRNN",),
    "Tdecay": ("nnRNN",),
}
GATES = {"LSTM": 4, "GRU": 3}  # maps of x, and of h, where there are more than one
SIZES = ("nhid", "emsize", "capacity", "batch", "batch_size", "bptt")  # flags that cost memory
OF_GAMMA = {"gain", "saturation", "n", "s", "random", "learn_params"}  # of one script or the other
LAYER_FLAGS = ("rinit", "iinit", "capacity", "ostep_method")  # which a layer takes by these names

# Flags that runs may have been begun without, before they came to be.
LATER = {"betas", "clip", "lr_orth", "ostep_method", "alam", "Tdecay", "capacity"}
LATER |= {"snapshot_minutes"}

# Flags that say what to score and where, not what was trained.
EVALUATION = {"cuda", "data", "save_dir", "limit_batches", "test", "checkpoint", "transform"}


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the docstring as it is, and the default of a flag that has one to show."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for a script whose errors are one line, without abbreviated flags."""

    def __init__(self, script, description):
        super().__init__(
            prog=Path(script).name,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse(self, argv=None):
        """The arguments, and the set of those that were given rather than defaults.

        The command as it was typed is kept as `command`.
        """
        typed = sys.argv[1:] if argv is None else argv
        self.command = shlex.join(["python3", self.prog, *typed])
        args = self.parse_args(argv)
        defaults = {name: self.get_default(name) for name in vars(args)}
        absent = object()
        self.set_defaults(**dict.fromkeys(defaults, absent))
        given = {name for name, value in vars(self.parse_args(argv)).items() if value is not absent}
        self.set_defaults(**defaults)
        return args, given

    def flag(self, name):
        """The long flag that sets an argument, as it is typed."""
        options = [
            o for action in self._actions if action.dest == name for o in action.option_strings
        ]
        return next(option for option in options if option.startswith("--"))


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

positive_int = _number(int, "a whole number", "from 1 to 2**31 - 1", lambda v: 1 <= v < 2**31)
not_negative_int = _number(int, "a whole number", "from 0 to 2**31 - 1", lambda v: 0 <= v < 2**31)
seed_int = _number(int, "a whole number", "from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32)
finite = _number(
    float, "a number", f"finite, at most {FLOAT32.max:.1e} in size", lambda v: abs(v) <= FLOAT32.max
)
# Beyond 1e30 a step of Adam is no longer a float32.
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


def text(typed):
    """A string that every file of a run can hold, as it is."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{typed!r} is not text in UTF-8") from None
    return typed


def path_text(typed):
    """A string that may be the path of a file, whether there is one or not."""
    try:
        os.lstat(text(typed) or ".")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{typed!r} is no path ({reason})") from None
    return typed


def path(typed):
    """The Path of such a string."""
    return Path(path_text(typed))


def add_shared_flags(parser, script, datasets, networks, rinit, iinit, ostep_method):
    """The flags that both scripts have, in a group of their own.

    script: its file; the data sets lie beside it. The others: the choices of the flag.
    """
    flags = parser.add_argument_group("shared by both scripts")
    switch = argparse.BooleanOptionalAction
    flags.add_argument("--dataset", choices=datasets, default=next(iter(datasets)), help="data set")
    flags.add_argument(
        "--data",
        type=path,
        default=Path(script).resolve().parent / "data",
        metavar="DIR",
        help="folder of the data sets",
    )
    flags.add_argument("--net-type", choices=networks, default="RNN", help="recurrent layer")
    flags.add_argument(
        "--rinit",
        choices=rinit,
        default="henaff",
        help="initial recurrent matrix, of RNN, ANRU, expRNN and nnRNN",
    )
    flags.add_argument(
        "--iinit", choices=iinit, default="kaiming", help="initial input map, not of LSTM and GRU"
    )
    flags.add_argument(
        "--lr_orth",
        type=rate,
        default=2e-5,
        help="learning rate of the orthogonal parameters, of expRNN, nnRNN and EURNN",
    )
    flags.add_argument(
        "--ostep_method",
        choices=ostep_method,
        default="exp",
        help="from a skew-symmetric to an orthogonal matrix, of expRNN and nnRNN",
    )
    flags.add_argument(
        "--alam",
        type=not_negative,
        default=1e-4,
        help="factor of the sum of (alpha - 1)^2 in the loss, of nnRNN",
    )
    flags.add_argument(
        "--Tdecay", type=not_negative, default=1e-5, help="L2 penalty on T, of nnRNN"
    )
    flags.add_argument(
        "--capacity", type=positive_int, default=2, help="layers of rotations, of EURNN"
    )
    flags.add_argument(
        "--betas",
        type=beta,
        nargs=2,
        default=[0.9, 0.999],
        metavar=("B1", "B2"),
        help="of Adam: decay of the mean gradient and of its mean square",
    )
    flags.add_argument(
        "--clip",
        type=rate,
        metavar="C",
        help="largest norm of the gradient (default: as it is)",
    )
    flags.add_argument("-g", "--cuda", action=switch, help="the GPU (default: where there is one)")
    flags.add_argument("--seed", type=seed_int, default=400, help="of every random draw")
    flags.add_argument(
        "--save-dir",
        type=path,
        default=Path("SavedModels"),
        metavar="DIR",
        help="where runs are saved",
    )
    flags.add_argument(
        "--resume",
        type=path,
        metavar="RUN_DIR",
        help="go on with a run, with its own arguments; only --epochs may be raised",
    )
    flags.add_argument(
        "--snapshot-minutes",
        type=not_negative,
        default=10.0,
        metavar="M",
        help="time within an epoch from one saved state to the next; 0: after every batch",
    )
    flags.add_argument(
        "--note", type=text, default="", help="a remark, kept in the run's config.json"
    )
    flags.add_argument(
        "--limit-batches",
        type=positive_int,
        metavar="N",
        help="stop every pass over a set after N batches: a dry run",
    )
    flags.add_argument(
        "--test",
        action="store_true",
        help="no training: score the test set with --checkpoint, or with the newest run whose "
        "arguments are those given",
    )
    flags.add_argument("--checkpoint", type=path, metavar="PATH", help="the checkpoint of --test")


def refuse_strangers(parser, args, given, belongs, choice):
    """An error for a given flag that args.<choice> has no use for; such arguments become None.

    belongs: flag → the values of the choice that it belongs to.
    """
    value = getattr(args, choice)
    for name, owners in belongs.items():
        if value not in owners:
            if name in given:
                parser.error(
                    f"argument {parser.flag(name)}: belongs to {parser.flag(choice)} "
                    f"{', '.join(owners)}, not to {value}"
                )
            setattr(args, name, None)


def resolve_network(parser, args, given, of_gamma, rotations):
    """Errors for flags that the network has no use for; sets φ where it depends on the network.

    of_gamma: the script's flags for n and s. rotations: what --rinit may be for a matrix that is
    to be orthogonal.
    """
    belongs = OWNERS | dict.fromkeys(of_gamma, ELMAN)
    refuse_strangers(parser, args, given, belongs, "net_type")
    if args.net_type in ORTHOGONAL and "nonlin" not in given:
        args.nonlin = "modrelu"
    if args.net_type == "EURNN" and args.nonlin != "modrelu":
        parser.error(f"argument --nonlin: that of EURNN is modrelu, not {args.nonlin}")
    if args.net_type in ELMAN:
        belongs = dict.fromkeys(of_gamma, ("gamma", "gamma2"))
        refuse_strangers(parser, args, given, belongs, "nonlin")
    if args.net_type in ("expRNN", "nnRNN") and args.rinit not in rotations:
        parser.error(
            f"argument --rinit: that of {args.net_type} is one of {', '.join(rotations)}, "
            f"not {args.rinit}"
        )
    if args.net_type == "nnRNN" and args.nhid % 2:
        parser.error(f"argument --nhid: that of nnRNN is even, not {args.nhid}")


def check_memory(parser, args, device, batch):
    """An error where training, or in a test the network alone, cannot fit into the memory.

    batch: x that a training step sees, T · B of them, or 0 for a test. What is counted is the least
    that it takes: weights, their gradients and Adam's two means of those, and a and h of every
    step. The flag that is named is the one that is raised most above its default.
    """
    units, inputs = args.nhid, getattr(args, "emsize", 1)
    maps = GATES.get(args.net_type, 1)
    recurrent = args.capacity if args.net_type == "EURNN" else maps * units
    weights = units * (recurrent + maps * inputs + 1) + inputs
    needed = 4 * ((4 if batch else 1) * weights + 2 * batch * units)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        sizes = [name for name in SIZES if getattr(args, name, None) is not None]
        largest = max(sizes, key=lambda name: getattr(args, name) / parser.get_default(name))
        parser.error(
            f"argument {parser.flag(largest)}: {getattr(args, largest)} needs at least "
            f"{needed / 1e9:.3g} GB of memory, and there are {there / 1e9:.3g} GB"
        )


def layer_options(args):
    """What a layer is made with by flags of both scripts, but for φ."""
    return {name: getattr(args, name) for name in LAYER_FLAGS if getattr(args, name) is not None}


def group_options(args):
    """What the optimiser does otherwise with the parameters that a layer sets apart, by group.

    A decay of the orthogonal parameters would draw the matrix back to where it started.
    """
    return {
        "orthogonal": {"lr": args.lr_orth, "weight_decay": 0.0},
        "T": {"weight_decay": args.Tdecay},
    }


def check_mode(parser, args, given):
    """Errors for flags that do not go with --resume, --test or --checkpoint."""
    if args.resume is not None and (others := given - {"resume", "epochs"}):
        parser.error(
            "argument --resume: takes every argument but --epochs from the run, and no "
            f"{', '.join(parser.flag(name) for name in sorted(others))}"
        )
    if args.checkpoint is not None and not args.test:
        parser.error("argument --checkpoint: goes with --test")


def resumed_arguments(parser, args, given):
    """The run to go on with, its arguments and its number of epochs raised where that was asked."""
    try:
        run = Run(args.resume)
        if run.config["script"] != parser.prog:
            raise RunError(f"{run.path / 'config.json'}: is of a run of {run.config['script']}")
        run.lock()
        saved = saved_arguments(parser, run.config["arguments"], run.path / "config.json")
    except RunError as error:
        parser.error(f"argument --resume: {error}")
    if "epochs" in given:
        if args.epochs < saved.epochs:
            parser.error(
                f"argument --epochs: {args.epochs} is less than the {saved.epochs} of the run"
            )
        saved.epochs = args.epochs
    return run, saved


def saved_arguments(parser, saved, path):
    """The arguments that a config holds, as if they had been typed. path: its file.

    A run that was begun before a flag of `LATER` takes its default, where it has a use for it.
    Raises RunError for a name that is no flag's, one that lacks, and a value that would be refused.
    """
    flags = {a.dest: a for a in parser._actions if a.dest not in ("help", *MODE)}
    if unknown := saved.keys() - flags.keys():
        raise RunError(f"{path}: {', '.join(sorted(unknown))} is no argument of {parser.prog}")
    if missing := flags.keys() - saved.keys() - LATER:
        raise RunError(f"{path}: lacks the arguments {', '.join(sorted(missing))}")
    args = argparse.Namespace(**{name: flag.default for name, flag in flags.items()})
    for name, value in saved.items():
        try:
            setattr(args, name, None if value is None else _retyped(flags[name], value))
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise RunError(f"{path}: argument {parser.flag(name)}: {error}") from error
    refuse_strangers(parser, args, set(), OWNERS, "net_type")
    for name, flag in flags.items():
        stranger = name in OF_GAMMA or args.net_type not in OWNERS.get(name, (args.net_type,))
        if getattr(args, name) is None and flag.default is not None and not stranger:
            raise RunError(f"{path}: argument {parser.flag(name)}: has no value")
    return args


def _retyped(flag, value):
    """A saved value as its flag would have it; ArgumentTypeError for one that it would refuse."""
    if flag.nargs == 0:
        kinds = bool
    elif flag.nargs is not None:
        if not isinstance(value, list) or len(value) != flag.nargs:
            raise argparse.ArgumentTypeError(f"{value!r} is not {flag.nargs} values")
        return [flag.type(str(one)) for one in value]
    else:
        kinds = str if flag.type in (None, text, path_text, path) else (int, float)
    if not isinstance(value, kinds):
        raise argparse.ArgumentTypeError(f"{value!r} is of another type")
    if flag.type is not None:
        value = flag.type(str(value))
    if flag.choices is not None and value not in flag.choices:
        raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(flag.choices)}")
    return value


def choose_run(parser, args, given):
    """The newest run of this script below --save-dir that has the arguments given."""
    asked = {name: getattr(args, name) for name in given - EVALUATION}
    runs = find_runs(args.save_dir, parser.prog, **asked)
    if not runs:
        flags = ", ".join(f"{name} {value}" for name, value in asked.items()) or "any arguments"
        parser.error(f"argument --test: no run with {flags} in {args.save_dir}; see --checkpoint")
    return runs[0]


def check_same(parser, args, given, config, path):
    """An error where a checkpoint's config is of another script or contradicts a flag given."""
    if config.get("script") != parser.prog:
        parser.error(f"argument --checkpoint: {path} is of a run of {config.get('script')}")
    if not isinstance(config.get("arguments"), dict):
        parser.error(f"argument --checkpoint: {path} does not say what it was trained with")
    for name in sorted(given - EVALUATION):
        saved = config["arguments"].get(name)
        if saved != getattr(args, name):
            parser.error(
                f"argument {parser.flag(name)}: {getattr(args, name)} contradicts {path}, "
                f"which was trained with {saved}"
            )


def choose_device(parser, args):
    """The device that -g/--no-cuda asks for, or else the GPU where torch sees one.

    args.cuda is set to what was chosen.
    """
    available = torch.cuda.is_available()
    if args.cuda and not available:
        parser.error("argument -g/--cuda: torch sees no GPU here")
    args.cuda = available and args.cuda is not False
    return torch.device("cuda" if args.cuda else "cpu")


def run_script(parser, argv, train, test):
    """What a script does: train, or score with --test; returns the exit code.

    train and test are functions of the parser, the arguments, and the set of those given.
    """
    torch.set_flush_denormal(True)  # before the first parallel operation, whose threads inherit it
    args, given = parser.parse(argv)
    check_mode(parser, args, given)
    try:
        return (test if args.test else train)(parser, args, given)
    except RunError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
