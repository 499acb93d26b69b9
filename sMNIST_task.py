"""Experiment 1: classify handwritten digits that are read one pixel a step, (permuted) sMNIST.

    python3 sMNIST_task.py -p --net-type RNN --nonlin gamma2         psMNIST, 400 units, 100 epochs
    python3 sMNIST_task.py -p --net-type RNN --nonlin gamma2 --test  scores the newest such run
    python3 sMNIST_task.py --resume SavedModels/psMNIST/400/RNN_lr0.0001_p0.0_hs400_gamma2/DATE
    python3 sMNIST_task.py --dataset digits --net-type ANRU --nhid 64 --lr 5e-4 --batch 50 \\
        --epochs 40 --shuffle                                        needs no download

A run leaves a directory below SavedModels: see Training/runs.py.
Source: Geadah et al., arXiv 2006.12253; the task is that of Le et al., arXiv 1504.00941.
"""

import argparse
import sys
import time

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from NetworkCreation.initialization import INPUT, RECURRENT, ROTATIONS
from NetworkCreation.models import (
    CheckpointError,
    adaptation,
    build_model,
    model_of,
    parameter_groups,
    read_checkpoint,
)
from NetworkCreation.Networks import NETWORKS
from NetworkCreation.orthogonal import ORTHOGONAL_MAPS
from Training import arguments
from Training.datasets import PIXEL_SETS, DataError, load_pixels
from Training.evaluation import adapted, evaluate_pixels
from Training.runs import (
    LAST,
    Run,
    RunError,
    TrainingState,
    describe,
    device_name,
    run_name,
    stream,
)
from Training.transforms import TEST_TRANSFORMS, random_sin, step_drive, step_window

TRAINING_AMPLITUDE = 0.2  # of the sine transform, of --transform-ratio of the training batches
VALIDATION_AMPLITUDE = 0.5
TRACED = 8  # validation images over which the n and s of ANRU are averaged for metrics.csv


def make_parser():
    parser = arguments.Parser(__file__, __doc__)
    switch = argparse.BooleanOptionalAction
    parser.add_argument(
        "-p",
        "--permute",
        action="store_true",
        help="permute the pixels, as RandomState(seed) has them",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="parameters, and every tenth batch's loss"
    )
    parser.add_argument(
        "--nonlin",
        choices=("gamma", "gamma2", "ReLU", "modrelu"),
        default="gamma2",
        help="activation of the RNN, expRNN and nnRNN; gamma2 has an n and an s for every unit; "
        "the default of expRNN, nnRNN and EURNN is modrelu",
    )
    parser.add_argument("--gain", type=arguments.gain, default=1.0, help="initial n")
    parser.add_argument("--saturation", type=arguments.finite, default=1.0, help="initial s")
    parser.add_argument(
        "--random",
        action=switch,
        help="n ~ U(5, 7), one draw, and s = 0 (default: where neither of the two is given)",
    )
    parser.add_argument("--learn_params", action=switch, default=True, help="n and s learn")
    parser.add_argument("--nhid", type=arguments.positive_int, default=400, help="hidden units")
    parser.add_argument("--lr", type=arguments.rate, default=1e-4, help="learning rate")
    parser.add_argument("--batch", type=arguments.positive_int, default=100, help="batch size")
    parser.add_argument("--epochs", type=arguments.positive_int, default=100, help="in all")
    parser.add_argument(
        "--save-freq",
        type=arguments.positive_int,
        default=25,
        help="epochs from one kept checkpoint, with a scoring of the test set, to the next",
    )
    parser.add_argument("--shuffle", action="store_true", help="a new order in every epoch")
    parser.add_argument(
        "--transform", choices=TEST_TRANSFORMS, default="sin", help="on the test set"
    )
    parser.add_argument(
        "--transform-ratio",
        type=arguments.fraction,
        default=0.0,
        help="share of training batches under the sine transform",
    )
    choices = (PIXEL_SETS, NETWORKS, RECURRENT, INPUT, ORTHOGONAL_MAPS)
    arguments.add_shared_flags(parser, __file__, *choices)
    return parser


def resolve(parser, args, given):
    """Errors for flags that contradict each other; sets what depends on other arguments."""
    of_gamma = ("gain", "saturation", "random", "learn_params")
    arguments.resolve_network(parser, args, given, of_gamma, ROTATIONS)
    if args.nonlin in ("gamma", "gamma2"):
        set_by_hand = given & {"gain", "saturation"}
        if args.random and set_by_hand:
            parser.error(
                f"argument --random: draws n and s, which {parser.flag(set_by_hand.pop())} sets"
            )
        if args.random is None:
            args.random = not set_by_hand


def describe_model(args, classes, generator):
    """The spec of the network for `build_model`; with --random it draws n into the arguments."""
    layer = arguments.layer_options(args)
    if args.random:
        args.gain = 5 + 2 * torch.rand((), generator=generator).item()
        args.saturation = 0.0
    if args.nonlin is not None:
        layer["nonlin"] = args.nonlin
    if args.nonlin in ("gamma", "gamma2"):
        layer |= {"n": args.gain, "s": args.saturation, "learn_params": args.learn_params}
    return {
        "task": "pixels",
        "net_type": args.net_type,
        "hidden_size": args.nhid,
        "classes": classes,
        "layer": layer,
    }


def task_name(args):
    return ("ps" if args.permute else "s") + {"mnist": "MNIST", "digits": "Digits"}[args.dataset]


def train_epoch(state, data, args, device, run, check):
    """The rest of an epoch: all of it, or what comes after the batch where a run was resumed."""
    state.model.train()
    if args.shuffle and "order" not in state.carry:
        state.carry["order"] = torch.randperm(len(data.train), generator=state.generators["order"])
    starts = range(0, len(data.train), args.batch)[: args.limit_batches]
    bar = tqdm(
        total=len(starts), initial=state.batch, desc=f"epoch {state.epoch + 1}", disable=None
    )
    with bar:
        while state.batch < len(starts):
            check()
            begun = time.perf_counter()
            index = slice(starts[state.batch], starts[state.batch] + args.batch)
            if args.shuffle:
                index = state.carry["order"][index].to(device)
            x, labels = data.train.batch(index)
            transforms = state.generators["transform"]
            if torch.rand((), generator=transforms) < args.transform_ratio:
                x = random_sin(TRAINING_AMPLITUDE, transforms)(x)
            logits = state.model(x)
            loss, norm = state.update(cross_entropy(logits, labels))
            state.add(
                loss=loss * len(labels),
                correct=(logits.argmax(dim=1) == labels).sum().item(),
                seen=len(labels),
                gradient_norm=norm,
                seconds=time.perf_counter() - begun,
            )
            state.batch += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if args.verbose and state.batch % 10 == 0:
                run.print(f"epoch {state.epoch + 1}, batch {state.batch}: loss {loss:.4f}")


def finish_epoch(state, data, args, run, check):
    """Scores an epoch whose batches are done, sets the learning rate, and saves its files."""
    begun = time.perf_counter()
    epoch = state.epoch + 1
    lr, sums, batches = state.lr, state.sums, state.batch
    options = {"limit": args.limit_batches, "check": check}
    validation = evaluate_pixels(state.model, data.validation, args.batch, **options)
    sine = random_sin(VALIDATION_AMPLITUDE, stream(args.seed, "evaluation", epoch))
    transformed = evaluate_pixels(
        state.model,
        data.validation,
        args.batch,
        transform=sine,
        **options,
    )
    tests = {}
    if epoch % args.save_freq == 0 or epoch == args.epochs:
        tests["as_is"] = evaluate_pixels(state.model, data.test, args.batch, **options)
        transform = TEST_TRANSFORMS[args.transform](data.steps)
        tests[args.transform] = evaluate_pixels(
            state.model, data.test, args.batch, transform=transform, **options
        )
    few, _ = data.validation.batch(slice(0, TRACED))
    n_and_s = adaptation(state.model.rnn, few)

    # No signal is heeded from here on, so that all of an epoch's files are of that epoch.
    state.finish_epoch(validation[0])
    row = {
        "epoch": epoch,
        "train_loss": sums["loss"] / sums["seen"],
        "train_accuracy": sums["correct"] / sums["seen"],
        "validation_loss": validation[0],
        "validation_accuracy": validation[1],
        "validation_transformed_loss": transformed[0],
        "validation_transformed_accuracy": transformed[1],
        "gradient_norm": sums["gradient_norm"] / batches,
        "lr": lr,
        **n_and_s,
        "seconds": sums["seconds"] + time.perf_counter() - begun,
    }
    run.add_row("metrics.csv", row)
    for condition, (loss, accuracy) in tests.items():
        result = {"epoch": epoch, "condition": condition, "loss": loss, "accuracy": accuracy}
        run.add_row("test_results.csv", result)
    checkpoint = state.checkpoint(run.config)
    if tests:
        run.save(f"e_{epoch}.pth.tar", checkpoint)
    run.save(LAST, checkpoint)

    run.print(
        f"epoch {epoch}/{args.epochs}: train loss {row['train_loss']:.4f}, accuracy "
        f"{row['train_accuracy']:.2%}; validation loss {validation[0]:.4f}, accuracy "
        f"{validation[1]:.2%}, transformed {transformed[1]:.2%}; lr {lr:g}, gradient norm "
        f"{row['gradient_norm']:.3g}{adapted(row)}; {row['seconds']:.1f} s"
    )
    for condition, (loss, accuracy) in tests.items():
        run.print(f"test {condition}: loss {loss:.4f}, accuracy {accuracy:.2%}")


def train(parser, args, given):
    """Trains a new run, or goes on with one; returns the exit code."""
    run = None
    if args.resume is None:
        resolve(parser, args, given)
    else:
        run, args = arguments.resumed_arguments(parser, args, given)
    device = arguments.choose_device(parser, args)
    try:
        data = load_pixels(args.dataset, args.data, args.seed, args.permute).to(device)
        batch = min(args.batch, len(data.train))
        arguments.check_memory(parser, args, device, data.steps * batch)
        if run is None:
            generator = stream(args.seed, "initialisation")
            spec = describe_model(args, data.classes, generator)
            model = build_model(spec, generator).to(device)
        else:
            run.check_data(data.checksums)
            checkpoint = read_checkpoint(run.path / LAST)
            model = model_of(checkpoint, run.path / LAST)[0].to(device)
    except DataError as error:
        parser.error(f"argument --data: {error}")
    except (CheckpointError, RunError) as error:
        parser.error(f"argument --resume: {error}")
    groups = parameter_groups(model, arguments.group_options(args))
    optimizer = torch.optim.Adam(groups, lr=args.lr, betas=args.betas)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    generators = {name: stream(args.seed, name) for name in ("order", "transform")}
    penalty = (lambda: args.alam * model.rnn.penalty()) if args.alam else None
    state = TrainingState(model, optimizer, scheduler, generators, clip=args.clip, penalty=penalty)
    if run is None:
        about = {"name": args.dataset, "steps": data.steps, "sha256": data.checksums}
        config = describe(__file__, parser.command, args, spec, about, device)
        name = run_name(args.net_type, args.lr, args.transform_ratio, args.nhid, args.nonlin)
        try:
            run = Run.create(args.save_dir, task_name(args), args.seed, name, config)
        except RunError as error:
            parser.error(f"argument --save-dir: {error}")
    else:
        sums = {"loss": 0.0, "correct": 0, "seen": 0, "gradient_norm": 0.0, "seconds": 0.0}
        carry = {"order": torch.arange(len(data.train))} if args.shuffle else {}
        try:
            run.go_on(checkpoint, state, args.epochs, sums, carry)
        except RunError as error:
            parser.error(str(error))
    if args.verbose:
        for name, parameter in model.named_parameters():
            run.print(f"{name}: {parameter.numel()} {tuple(parameter.shape)}")
        run.print(f"parameters: {sum(p.numel() for p in model.parameters())}")

    def epoch(check):
        train_epoch(state, data, args, device, run, check)
        finish_epoch(state, data, args, run, check)

    return run.carry_out(state, epoch, args.snapshot_minutes)


def test(parser, args, given):
    """Scores the test set with a saved model; returns the exit code."""
    resolve(parser, args, given)
    device = arguments.choose_device(parser, args)
    try:
        path = args.checkpoint
        if path is None:
            path = arguments.choose_run(parser, args, given).newest_checkpoint()
        checkpoint = read_checkpoint(path)
        trained, config = args, None
        if "config" in checkpoint:
            config = checkpoint["config"]
            arguments.check_same(parser, args, given, config, path)
            trained = arguments.saved_arguments(parser, config["arguments"], path)
        else:  # the paper's own code
            arguments.check_memory(parser, args, device, 0)
            spec = describe_model(args, 10, stream(args.seed, "initialisation"))
            config = {"model": spec}
        model, _ = model_of(checkpoint, path, config)
        data = load_pixels(trained.dataset, args.data, trained.seed, trained.permute)
    except DataError as error:
        parser.error(f"argument --data: {error}")
    except (CheckpointError, RunError) as error:
        flag = "--save-dir" if args.checkpoint is None else "--checkpoint"
        parser.error(f"argument {flag}: {error}")
    model.to(device)
    test_set = data.test.to(device)
    position, length = step_window(data.steps)
    drive = step_drive(data.steps, 1.0, position, length).to(device)
    transform = TEST_TRANSFORMS[args.transform](data.steps)
    conditions = {
        "as is": {},
        f"transformed ({args.transform})": {"transform": transform},
        f"step drive of size 1 at {position} for {length}": {"drive": drive},
    }
    print(f"checkpoint: {path}")
    print(f"device: {device_name(device)}")
    for name, options in conditions.items():
        loss, accuracy = evaluate_pixels(
            model, test_set, trained.batch, limit=args.limit_batches, **options
        )
        print(f"test {name}: loss {loss:.4f}, accuracy {accuracy:.2%}", flush=True)
    return 0


def main(argv=None):
    return arguments.run_script(make_parser(), argv, train, test)


if __name__ == "__main__":
    sys.exit(main())
