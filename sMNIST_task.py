"""Experiment 1: classify handwritten digits read one pixel per step, (permuted) sequential MNIST.

    python3 sMNIST_task.py -p --net-type RNN --nonlin gamma2         psMNIST, 400 units, 100 epochs
    python3 sMNIST_task.py -p --net-type RNN --nonlin gamma2 --test  evaluates the newest such run
    python3 sMNIST_task.py --resume RUN                              continues an interrupted run
    python3 sMNIST_task.py --dataset digits --net-type ANRU --nhid 64 --iinit xavier --lr 5e-4 \\
        --batch 50 --epochs 55 --shuffle                             needs no download
    python3 sMNIST_task.py --dataset npz --data FILE.npz             your own sequences

FILE.npz has the arrays x (N, T) or (N, T, I), y (N,), which are the labels, and optionally split
(N,) with 0, 1, 2 for training, validation and test; without it, --seed draws 80, 10 and 10 %.
Integers in x are divided by the largest absolute value in the training part.

A run leaves a directory below SavedModels: see Training/run_directory.py.
Source: Geadah et al., arXiv 2006.12253; the task is that of Le et al., arXiv 1504.00941.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import sys

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from NetworkCreation.checkpoints import model_of
from NetworkCreation.errors import UserError
from NetworkCreation.models import build_model
from Training import flags
from Training.console import entry_point
from Training.datasets import PIXEL_SETS, load_pixels
from Training.evaluation import evaluate_pixels, test_line
from Training.parser import fraction
from Training.trainer import Trainer, stream
from Training.transforms import TEST_TRANSFORMS, random_sine, step_drive, step_window

TRAINING_AMPLITUDE = 0.2  # of the sine transform, on --transform-ratio of the training batches
VALIDATION_AMPLITUDE = 0.5
TRACED = 8  # validation images over which the n and s of ANRU are averaged for metrics.csv


def make_parser():
    defaults = {"nonlin": "gamma2", "nhid": 400, "n": None, "s": 0.0, "batch_size": 100}
    parser = flags.make_parser(__file__, __doc__, PIXEL_SETS, **defaults)
    flag = parser.add_argument_group("sequential MNIST").add_argument
    flag("-p", "--permute", **flags.SWITCH, help="permute the steps; --seed draws the order")
    flag("--random", action="store_true", help="draw n ~ U(5, 7) (default: unless --n is given)")
    flag("--shuffle", **flags.SWITCH, help="shuffle the training images in every epoch")
    flag("--transform", choices=TEST_TRANSFORMS, default="sin", help="of the test images")
    flag("--transform-ratio", type=fraction, default=0.0, help="fraction of training batches under "
         "the sine transform")  # fmt: skip
    return parser


def parse(argv=None):
    parser = make_parser()
    args, given = flags.parse(parser, argv)
    if args.nonlin in ("gamma", "gamma2") and args.resume is None:
        if args.random and args.n is not None:
            parser.error(f"argument --random: contradicts --n {args.n:g}")
        args.random = args.n is None
        if args.random:
            args.n = 5 + 2 * torch.rand((), generator=stream(args.seed, "gain")).item()
    return args, given


def model_spec(args, classes, inputs=1):
    """What `build_model` makes a network from; inputs: of a step."""
    several = {"inputs": inputs} if inputs > 1 else {}
    return several | {
        "task": "pixels",
        "net_type": args.net_type,
        "hidden_size": args.nhid,
        "classes": classes,
        "layer": flags.layer_options(args),
    }


@entry_point
def main(argv=None):
    args, given = parse(argv)
    device = flags.choose_device(args)
    if args.test:
        return test(args, given, device)

    data = load_pixels(args.dataset, args.data, args.seed, args.permute, device)
    spec = model_spec(args, data.classes, data.inputs)
    model = build_model(spec, stream(args.seed, "initialisation")).to(device)
    optimizer = flags.make_optimizer(args, model)
    scheduler = ReduceLROnPlateau(optimizer)

    with Trainer(args, data.name, model, spec, optimizer, scheduler, data.checksums) as trainer:
        for epoch in trainer.epochs():
            order = trainer.order(len(data.train), args.shuffle).to(device)
            for index in trainer.batches(order.split(args.batch_size)):
                x, labels = data.train.batch(index)  # (T, B, I), (B,)
                if trainer.chance(args.transform_ratio):
                    x = x * random_sine(len(x), TRAINING_AMPLITUDE, trainer.draws).to(x)
                logits = model(x)
                correct = (logits.argmax(dim=1) == labels).sum()
                trainer.step(cross_entropy(logits, labels), len(labels), correct=correct)

            draws = stream(args.seed, "evaluation", epoch)
            sine = random_sine(data.steps, VALIDATION_AMPLITUDE, draws)
            scores = {
                "train": {"loss": trainer.mean("loss"), "accuracy": trainer.mean("correct")},
                "validation": evaluate(model, data.validation, args),
                "validation_transformed": evaluate(model, data.validation, args, transform=sine),
            }
            with torch.no_grad():
                gains = model.rnn.gains(data.validation.batch(slice(0, TRACED))[0])
            tests = {}
            if trainer.keeps(epoch):
                transform = TEST_TRANSFORMS[args.transform](data.steps)
                tests["as_is"] = evaluate(model, data.test, args)
                tests[args.transform] = evaluate(model, data.test, args, transform=transform)
            trainer.finish_epoch(scores, gains, tests)
    return 0


def evaluate(model, part, args, **change):
    """The scores on a part of the data set; change: a transform or a drive."""
    return evaluate_pixels(model, part, args.batch_size, limit=args.limit_batches, **change)


def test(args, given, device):
    """Evaluates the test set as it is, under --transform, and under a step drive of size 1."""
    path, checkpoint, trained = flags.tested_checkpoint(make_parser(), args, given)
    config = checkpoint.get("config") or {"model": model_spec(args, classes=10)}
    model = model_of(checkpoint, path, config)[0].to(device)
    data = load_pixels(trained.dataset, trained.data, trained.seed, trained.permute, device)
    sizes = model.rnn.input_size, model.lin.out_features
    if sizes != (data.inputs, data.classes):
        raise UserError(f"{path}: has {sizes[0]} inputs and {sizes[1]} classes, but {trained.data} "
                        f"has {data.inputs} and {data.classes}")  # fmt: skip
    transform = TEST_TRANSFORMS[args.transform](data.steps)
    drive = step_drive(data.steps, 1.0, *step_window(data.steps)).to(device)
    changes = {"as_is": {}, args.transform: {"transform": transform}, "drive": {"drive": drive}}
    for condition, change in changes.items():
        print(test_line(condition, evaluate(model, data.test, trained, **change)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
