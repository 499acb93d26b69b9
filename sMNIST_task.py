"""Experiment 1: classify handwritten digits read one pixel per step, (permuted) sequential MNIST.

    python3 sMNIST_task.py -p --net-type RNN --nonlin gamma2         psMNIST, 400 units, 100 epochs
    python3 sMNIST_task.py -p --net-type RNN --nonlin gamma2 --test  evaluates the newest such run
    python3 sMNIST_task.py --resume SavedModels/psMNIST/400/RNN_lr0.0001_p0.0_hs400_gamma2/DATE
    python3 sMNIST_task.py --dataset digits --net-type ANRU --nhid 64 --lr 5e-4 --batch 50 \\
        --epochs 40 --shuffle                                        needs no download

A run leaves a directory below SavedModels: see Training/run_directory.py.
Source: Geadah et al., arXiv 2006.12253; the task is that of Le et al., arXiv 1504.00941.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import argparse
import sys

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from NetworkCreation.checkpoints import CheckpointError, model_of, read_checkpoint
from NetworkCreation.exprnn import ORTHOGONAL_MAPS
from NetworkCreation.initialization import INPUT, RECURRENT
from NetworkCreation.models import build_model, gain_statistics, parameter_groups
from NetworkCreation.Networks import NETWORKS
from Training import flags
from Training.datasets import PIXEL_SETS, DataError, load_pixels
from Training.evaluation import evaluate_pixels
from Training.output import say
from Training.run_directory import Run, RunError, describe, device_name, keep_results
from Training.trainer import Trainer, stream
from Training.transforms import TEST_TRANSFORMS, random_sin, step_drive, step_window

TRAINING_AMPLITUDE = 0.2  # of the sine transform, on --transform-ratio of the training batches
VALIDATION_AMPLITUDE = 0.5
SCORES = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("validation_transformed_loss", "validation_transformed_accuracy"),
    *("n_mean", "n_std", "s_mean", "s_std"),
)
TRACED = 8  # validation images over which the n and s of ANRU are averaged for metrics.csv


def make_parser():
    parser = flags.Parser(__file__, __doc__)
    nonlin = ("gamma", "gamma2", "ReLU", "modrelu")
    flags.add_network_flags(parser, NETWORKS, nonlin, RECURRENT, INPUT, ORTHOGONAL_MAPS)
    flags.add_training_flags(parser)
    flags.add_run_flags(parser, __file__, PIXEL_SETS)
    parser.set_defaults(nonlin="gamma2", nhid=400, n=1.0, s=1.0, batch_size=100)
    parser.evaluation |= {"batch_size"}
    flag, switch = parser.add_argument_group("sequential MNIST").add_argument, flags.SWITCH
    flag("-p", "--permute", **switch, help="permute the pixels; --seed draws the order")
    flag(
        "--random",
        action=argparse.BooleanOptionalAction,
        help="draw n ~ U(5, 7) and set s = 0 (default: if neither n nor s is given)",
    )
    flag("--shuffle", **switch, help="shuffle the training images in every epoch")
    flag(
        "--transform",
        choices=TEST_TRANSFORMS,
        default="sin",
        help="brightness transform of test images",
    )
    flag(
        "--transform-ratio",
        type=flags.fraction,
        default=0.0,
        help="fraction of training batches under the sine transform",
    )
    flag("-v", "--verbose", **switch, help="print the parameters, and the loss every 10 batches")
    return parser


def parse(argv=None):
    parser = make_parser()
    args, run = flags.parse(parser, argv, NETWORKS)
    if run is None and args.nonlin in ("gamma", "gamma2"):
        by_hand = parser.typed & {"n", "s"}
        if by_hand and "random" in parser.typed and args.random:
            parser.error(f"argument --random: contradicts {parser.flag(by_hand.pop())}")
        if by_hand:  # also overrides --random of a --config
            args.random = False
        if args.random is None:
            args.random = not parser.given & {"n", "s"}
        if args.random:
            args.n = 5 + 2 * torch.rand((), generator=stream(args.seed, "gain")).item()
            args.s = 0.0
    return parser, args, run


def model_spec(args, classes):
    """The description of the network that `build_model` takes."""
    return {
        "task": "pixels",
        "net_type": args.net_type,
        "hidden_size": args.nhid,
        "classes": classes,
        "layer": flags.layer_options(args, NETWORKS),
    }


def task_name(args):
    return ("ps" if args.permute else "s") + {"mnist": "MNIST", "digits": "Digits"}[args.dataset]


@flags.entry_point
def main(argv=None):
    parser, args, run = parse(argv)
    device = flags.choose_device(parser, args)
    if args.test:
        return test(parser, args, device)

    with parser.blame("resume", RunError, CheckpointError):
        saved = None if run is None else run.state(read_checkpoint)
    with parser.blame("data", DataError):
        data = load_pixels(args.dataset, args.data, args.seed, args.permute).to(device)
    spec = model_spec(args, data.classes)
    states = data.steps * min(args.batch_size, len(data.train))
    flags.check_network(parser, args, device, lambda: build_model(spec, device="meta"), states)
    model = build_model(spec, stream(args.seed, "initialisation")).to(device)
    optimizer = flags.make_optimizer(args, model, parameter_groups)
    with parser.blame("save_dir" if run is None else "resume", RunError):
        about = {"name": args.dataset, "steps": data.steps, "sha256": data.checksums}
        config = describe(parser, args, spec, about, device)
        run = run.resume(config) if run else Run.create(args, task_name(args), config)
        scheduler = ReduceLROnPlateau(optimizer)
        trainer = Trainer(run, args, model, optimizer, scheduler, saved, SCORES)

    if args.verbose:
        run.print(parameters_of(model))
    with trainer:
        for epoch in trainer.epochs():
            order = trainer.order(len(data.train), args.shuffle).to(device)
            batches = order.split(args.batch_size)
            for index in trainer.batches(batches, log_every=10 if args.verbose else None):
                x, labels = data.train.batch(index)  # (T, B, 1), (B,)
                if trainer.chance(args.transform_ratio):
                    x = random_sin(TRAINING_AMPLITUDE, trainer.draws)(x)
                logits = model(x)
                correct = (logits.argmax(dim=1) == labels).sum()
                trainer.step(cross_entropy(logits, labels), len(labels), correct=correct)

            scores, tests = evaluate(model, data, args, epoch, trainer)
            trainer.finish_epoch(scores, tests)
    return 0


def parameters_of(model):
    return "\n".join(f"{k}: {tuple(p.shape)}" for k, p in model.named_parameters())


def evaluate(model, data, args, epoch, trainer):
    """The scores for metrics.csv and, if the checkpoint is kept, the rows for test_results.csv."""

    def score(part, transform=None):
        return evaluate_pixels(model, part, args.batch_size, transform, limit=args.limit_batches)

    sine = random_sin(VALIDATION_AMPLITUDE, stream(args.seed, "evaluation", epoch))
    few, _ = data.validation.batch(slice(0, TRACED))
    values = (
        *(trainer.mean("loss"), trainer.mean("correct")),
        *score(data.validation),
        *score(data.validation, sine),
        *gain_statistics(model.rnn, few).values(),
    )
    scores = dict(zip(SCORES, values, strict=True))
    tests = {}
    if trainer.keeps(epoch):
        transform = TEST_TRANSFORMS[args.transform](data.steps)
        for condition, change in (("as_is", None), (args.transform, transform)):
            loss, accuracy = score(data.test, change)
            tests[condition] = {"loss": loss, "accuracy": accuracy}
    return scores, tests


def test(parser, args, device):
    """Evaluates the test set with a saved model."""
    flag = "save_dir" if args.checkpoint is None else "checkpoint"
    with parser.blame(flag, CheckpointError, RunError):
        path = args.checkpoint or flags.newest_checkpoint(parser, args)
        checkpoint = read_checkpoint(path)
        if "config" in checkpoint:
            trained, config = flags.tested_arguments(parser, args, checkpoint["config"], path), None
        else:  # a file of the paper's own code
            trained, config = args, {"model": model_spec(args, classes=10)}
        model = model_of(checkpoint, path, config)[0].to(device)
    with parser.blame("data", DataError):
        data = load_pixels(trained.dataset, trained.data, trained.seed, trained.permute)
    say(f"checkpoint: {path}\ndevice: {device_name(device)}")
    if args.verbose:
        say(parameters_of(model))
    position, length = step_window(data.steps)
    transform = TEST_TRANSFORMS[args.transform](data.steps)
    drive = step_drive(data.steps, 1.0, position, length).to(device)
    step = f"step drive of size 1 at {position} for {length}"
    batch_size = (args if "batch_size" in parser.given else trained).batch_size
    results = {}
    for condition, name, change in (
        ("as_is", "as is", {}),
        (args.transform, f"transformed ({args.transform})", {"transform": transform}),
        ("step_drive", step, {"drive": drive}),
    ):
        options = {"limit": args.limit_batches, **change}
        loss, accuracy = evaluate_pixels(model, data.test.to(device), batch_size, **options)
        results[condition] = {"loss": loss, "accuracy": accuracy}
        say(f"test {name}: loss {loss:.4f}, accuracy {accuracy:.2%}")
    keep_results(path, checkpoint, results, args.limit_batches, data.checksums)
    return 0


if __name__ == "__main__":
    sys.exit(main())
