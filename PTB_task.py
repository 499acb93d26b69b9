"""Experiment 2: predict the next character of the Penn Treebank corpus.

    python3 PTB_task.py                                     RNN with one learned γ, 600 units
    python3 PTB_task.py --net-type ANRU --epochs 20
    python3 PTB_task.py --net-type nnRNN --betas 0.0 0.9 --clip 10
    python3 PTB_task.py --test                              scores the newest run's best model
    python3 PTB_task.py --resume SavedModels/PTB/400/RNN_lr0.0001_p0.0_hs600_gamma/DATE
    python3 PTB_task.py --dataset pydoc --nhid 128          needs no download

A run leaves a directory below SavedModels: see Training/runs.py.
Source: Geadah et al., arXiv 2006.12253; the task is that of Kerg et al., arXiv 1905.12080.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from NetworkCreation.initialization import INPUT, RECURRENT, ROTATIONS
from NetworkCreation.layers import NONLINEARITIES
from NetworkCreation.models import (
    CheckpointError,
    adaptation,
    build_model,
    load_model,
    model_of,
    parameter_groups,
    read_checkpoint,
)
from NetworkCreation.Networks import NETWORKS
from NetworkCreation.orthogonal import ORTHOGONAL_MAPS
from Training import arguments
from Training.datasets import TEXT_SETS, DataError, columns, load_text, windows
from Training.evaluation import (
    EVALUATION_COLUMNS,
    adapted,
    bits_per_character,
    evaluate_text,
)
from Training.runs import (
    LAST,
    Run,
    RunError,
    TrainingState,
    describe,
    device_name,
    is_run_file,
    run_name,
    stream,
)

TRACED = (50, 4)  # steps and columns of the validation text over which n and s are averaged


def make_parser():
    parser = arguments.Parser(__file__, __doc__)
    switch = argparse.BooleanOptionalAction
    nonlinearities = {"relu" if name == "ReLU" else name: name for name in NONLINEARITIES}
    parser.add_argument("--emsize", type=arguments.positive_int, default=200, help="embedding size")
    parser.add_argument("--nhid", type=arguments.positive_int, default=600, help="hidden units")
    parser.add_argument("--epochs", type=arguments.positive_int, default=100, help="in all")
    parser.add_argument(
        "--batch_size", type=arguments.positive_int, default=128, help="columns of the text"
    )
    parser.add_argument("--bptt", type=arguments.positive_int, default=150, help="window in steps")
    parser.add_argument("--tied", action="store_true", help="embedding and read-out are one matrix")
    parser.add_argument(
        "--log-interval", type=arguments.positive_int, default=200, help="batches between two lines"
    )
    parser.add_argument(
        "--save-freq",
        type=arguments.positive_int,
        default=25,
        help="epochs between kept checkpoints",
    )
    parser.add_argument(
        "--save",
        type=arguments.path_text,
        default="model.pt",
        metavar="PATH",
        help="the best model on validation; a relative path lies in the run's directory",
    )
    parser.add_argument(
        "--nonlin",
        choices=nonlinearities,
        default="gamma",
        help="activation of the RNN, expRNN and nnRNN; the default of expRNN, nnRNN and EURNN is "
        "modrelu",
    )
    parser.add_argument(
        "--n", type=arguments.gain, default=2.5, help="initial degree of nonlinearity (gain)"
    )
    parser.add_argument(
        "--s", type=arguments.finite, default=0.0, help="initial degree of saturation"
    )
    parser.add_argument("-lp", "--learn_params", action=switch, default=True, help="n and s learn")
    parser.add_argument("--lr", type=arguments.rate, default=1e-4, help="learning rate")
    parser.add_argument(
        "--weight_decay", type=arguments.not_negative, default=0.0, help="L2 penalty"
    )
    parser.add_argument("--adam", action=switch, default=True, help="Adam; without, RMSprop")
    parser.add_argument(
        "--alpha",
        type=arguments.fraction,
        default=0.99,
        help="smoothing of RMSprop, with --no-adam",
    )
    parser.add_argument(
        "--any-corpus", action="store_true", help="take other text than pennchar in its place"
    )
    choices = (TEXT_SETS, NETWORKS, RECURRENT, INPUT, ORTHOGONAL_MAPS)
    arguments.add_shared_flags(parser, __file__, *choices)
    return parser


def resolve(parser, args, given):
    """Errors for flags that contradict each other; sets what depends on other arguments."""
    of_gamma = ("n", "s", "learn_params")
    arguments.resolve_network(parser, args, given, of_gamma, ROTATIONS)
    if args.adam and "alpha" in given:
        parser.error("argument --alpha: belongs to --no-adam")
    if not args.adam and "betas" in given:
        parser.error("argument --betas: belongs to --adam")
    if args.any_corpus and args.dataset != "ptb":
        parser.error("argument --any-corpus: belongs to --dataset ptb")
    if args.tied and args.emsize != args.nhid:
        parser.error(f"argument --tied: needs --emsize {args.emsize} to be --nhid {args.nhid}")


def check_save(parser, path):
    """Errors for a place of the best model that other files need, or that cannot be written."""
    if not path.name or ".." in path.parts:
        parser.error(f"argument --save: {str(path)!r} is no file in the run's directory")
    if not path.is_absolute() and is_run_file(path.parts[0]):
        parser.error(f"argument --save: {path} is the name of another file of a run")
    if path.is_absolute() and path.exists():
        parser.error(f"argument --save: {path} exists")
    if path.is_absolute() and not os.access(path.parent, os.W_OK):
        parser.error(f"argument --save: {path.parent} is no directory that can be written")


def describe_model(args, vocabulary):
    """The spec of the network for `build_model`."""
    layer = arguments.layer_options(args)
    if args.nonlin is not None:
        layer["nonlin"] = "ReLU" if args.nonlin == "relu" else args.nonlin
    if args.nonlin in ("gamma", "gamma2"):
        layer |= {"n": args.n, "s": args.s, "learn_params": args.learn_params}
    return {
        "task": "characters",
        "net_type": args.net_type,
        "hidden_size": args.nhid,
        "embedding_size": args.emsize,
        "vocabulary": vocabulary,
        "tied": args.tied,
        "layer": layer,
    }


def train_epoch(state, text, args, run, check):
    """The rest of an epoch: all of it, or what comes after the batch where a run was resumed."""
    state.model.train()
    parts = windows(len(text), args.bptt)[: args.limit_batches]
    name = f"epoch {state.epoch + 1}"
    interval = {"loss": 0.0, "batches": 0, "seconds": 0.0}
    with tqdm(total=len(parts), initial=state.batch, desc=name, disable=None) as bar:
        while state.batch < len(parts):
            check()
            begun = time.perf_counter()
            start, end = parts[state.batch]
            hidden = state.carry.get("hidden")
            logits, hidden = state.model(text[start:end], hidden)
            targets = text[start + 1 : end + 1].flatten()
            loss, norm = state.update(cross_entropy(logits.flatten(0, 1), targets))
            seconds = time.perf_counter() - begun
            state.carry["hidden"] = map_state(torch.detach, hidden)
            state.add(
                loss=loss * len(targets), seen=len(targets), gradient_norm=norm, seconds=seconds
            )
            state.batch += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            for key, value in (("loss", loss), ("batches", 1), ("seconds", seconds)):
                interval[key] += value
            if state.batch % args.log_interval == 0:
                mean = interval["loss"] / interval["batches"]
                run.print(
                    f"{name}, batch {state.batch}/{len(parts)}: lr {state.lr:g}, "
                    f"{1000 * interval['seconds'] / interval['batches']:.0f} ms a batch, "
                    f"loss {mean:.4f}, {bits_per_character(mean):.4f} bits per character"
                )
                interval = dict.fromkeys(interval, 0)


def map_state(function, state):
    """A layer's state with each of its tensors mapped."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def finish_epoch(state, validation_text, args, run, check):
    """Scores an epoch whose batches are done, sets the learning rate, and saves its files."""
    begun = time.perf_counter()
    epoch = state.epoch + 1
    lr, sums, batches, best = state.lr, state.sums, state.batch, state.best
    train_loss = sums["loss"] / sums["seen"]
    loss = evaluate_text(
        state.model, validation_text, args.bptt, limit=args.limit_batches, check=check
    )
    steps, few = TRACED
    with torch.no_grad():
        embedded = state.model.encoder(validation_text[:steps, :few])
    n_and_s = adaptation(state.model.rnn, embedded)

    # No signal is heeded from here on, so that all of an epoch's files are of that epoch.
    state.finish_epoch(loss)
    row = {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_bits_per_character": bits_per_character(train_loss),
        "validation_loss": loss,
        "validation_bits_per_character": bits_per_character(loss),
        "gradient_norm": sums["gradient_norm"] / batches,
        "lr": lr,
        **n_and_s,
        "seconds": sums["seconds"] + time.perf_counter() - begun,
    }
    run.add_row("metrics.csv", row)
    checkpoint = state.checkpoint(run.config)
    if loss < best:
        run.save(args.save, checkpoint)
    if epoch % args.save_freq == 0 or epoch == args.epochs:
        run.save(f"e_{epoch}.pth.tar", checkpoint)
    run.save(LAST, checkpoint)
    run.print(
        f"epoch {epoch}/{args.epochs}: train loss {train_loss:.4f}, "
        f"{bits_per_character(train_loss):.4f} bits per character; validation loss {loss:.4f}, "
        f"{bits_per_character(loss):.4f} bits per character; lr {lr:g}, gradient norm "
        f"{row['gradient_norm']:.3g}{adapted(row)}; {row['seconds']:.1f} s"
    )


def score_best(state, test_text, device, args, run, check):
    """Scores the test set with the best model on validation, once."""
    if any(int(row["epoch"]) == state.epoch for row in run.rows("test_results.csv")):
        return
    try:
        model, _ = load_model(run.path / args.save)
    except CheckpointError as error:
        raise RunError(str(error)) from error
    loss = evaluate_text(
        model.to(device), test_text, args.bptt, limit=args.limit_batches, check=check
    )
    bits = bits_per_character(loss)
    result = {"epoch": state.epoch, "condition": "best", "loss": loss, "bits_per_character": bits}
    run.add_row("test_results.csv", result)
    run.print(f"test, best model: loss {loss:.4f}, {bits:.4f} bits per character")


def train(parser, args, given):
    """Trains a new run, or goes on with one; returns the exit code."""
    run = None
    if args.resume is None:
        resolve(parser, args, given)
        check_save(parser, Path(args.save))
    else:
        run, args = arguments.resumed_arguments(parser, args, given)
    device = arguments.choose_device(parser, args)
    try:
        data = load_text(args.dataset, args.data, args.any_corpus)
        if 2 * args.batch_size > len(data.train):
            parser.error(
                f"argument --batch_size: {len(data.train)} symbols are too few for "
                f"{args.batch_size} columns of 2"
            )
        steps = min(args.bptt, len(data.train) // args.batch_size)
        arguments.check_memory(parser, args, device, steps * args.batch_size)
        train_text = columns(data.train, args.batch_size, device, "train.txt")
        validation_text = columns(data.validation, EVALUATION_COLUMNS, device, "valid.txt")
        test_text = columns(data.test, EVALUATION_COLUMNS, device, "test.txt")
        if run is None:
            spec = describe_model(args, data.vocabulary)
            model = build_model(spec, stream(args.seed, "initialisation")).to(device)
        else:
            run.check_data(data.checksums)
            checkpoint = read_checkpoint(run.path / LAST)
            model = model_of(checkpoint, run.path / LAST)[0].to(device)
    except DataError as error:
        parser.error(f"argument --data: {error}")
    except (CheckpointError, RunError) as error:
        parser.error(f"argument --resume: {error}")
    groups = parameter_groups(model, arguments.group_options(args))
    options = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.adam:
        optimizer = torch.optim.Adam(groups, betas=args.betas, **options)
    else:
        optimizer = torch.optim.RMSprop(groups, alpha=args.alpha, **options)
    # Halved as soon as one epoch brings nothing.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=0.0, eps=0.0
    )
    penalty = (lambda: args.alam * model.rnn.penalty()) if args.alam else None
    state = TrainingState(model, optimizer, scheduler, {}, clip=args.clip, penalty=penalty)
    if run is None:
        about = {"name": data.name, "symbols": len(data.vocabulary), "sha256": data.checksums}
        config = describe(__file__, parser.command, args, spec, about, device)
        name = run_name(args.net_type, args.lr, 0.0, args.nhid, args.nonlin)
        try:
            run = Run.create(args.save_dir, data.name, args.seed, name, config)
        except RunError as error:
            parser.error(f"argument --save-dir: {error}")
    else:
        sums = {"loss": 0.0, "seen": 0, "gradient_norm": 0.0, "seconds": 0.0}
        carry = {"hidden": model.rnn.initial_state(args.batch_size)}
        try:
            run.go_on(checkpoint, state, args.epochs, sums, carry)
        except RunError as error:
            parser.error(str(error))
        if "hidden" in state.carry:
            state.carry["hidden"] = map_state(lambda h: h.to(device), state.carry["hidden"])

    def epoch(check):
        train_epoch(state, train_text, args, run, check)
        finish_epoch(state, validation_text, args, run, check)

    def finish(check):
        score_best(state, test_text, device, args, run, check)

    return run.carry_out(state, epoch, args.snapshot_minutes, finish)


def test(parser, args, given):
    """Scores the test set with a saved model; returns the exit code."""
    resolve(parser, args, given)
    device = arguments.choose_device(parser, args)
    try:
        path = args.checkpoint
        if path is None:
            run = arguments.choose_run(parser, args, given)
            config_path = run.path / "config.json"
            saved = arguments.saved_arguments(parser, run.config["arguments"], config_path)
            path = run.path / saved.save
        checkpoint = read_checkpoint(path)
        config = checkpoint.get("config")
        trained = args
        if config is not None:
            arguments.check_same(parser, args, given, config, path)
            trained = arguments.saved_arguments(parser, config["arguments"], path)
        data = load_text(trained.dataset, args.data, trained.any_corpus)
        if config is None:  # the paper's own code
            arguments.check_memory(parser, args, device, 0)
            config = {"model": describe_model(args, data.vocabulary)}
        if config["model"].get("vocabulary") != data.vocabulary:
            raise DataError(f"{path} was trained on other symbols than {args.data} holds")
        model, _ = model_of(checkpoint, path, config)
        text = columns(data.test, EVALUATION_COLUMNS, device, "test.txt")
    except DataError as error:
        parser.error(f"argument --data: {error}")
    except (CheckpointError, RunError) as error:
        flag = "--save-dir" if args.checkpoint is None else "--checkpoint"
        parser.error(f"argument {flag}: {error}")
    print(f"checkpoint: {path}\ndevice: {device_name(device)}")
    loss = evaluate_text(model.to(device), text, trained.bptt, limit=args.limit_batches)
    print(f"test: loss {loss:.4f}, {bits_per_character(loss):.4f} bits per character")
    return 0


def main(argv=None):
    return arguments.run_script(make_parser(), argv, train, test)


if __name__ == "__main__":
    sys.exit(main())
