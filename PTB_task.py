"""Experiment 2: predict the next character of the Penn Treebank corpus.

    python3 PTB_task.py                                     RNN with one learned γ, 600 units
    python3 PTB_task.py --net-type ANRU --epochs 20
    python3 PTB_task.py --net-type nnRNN --betas 0.0 0.9 --clip 10
    python3 PTB_task.py --test                              evaluates the newest run's best model
    python3 PTB_task.py --resume SavedModels/PTB/400/RNN_lr0.0001_p0.0_hs600_gamma/DATE
    python3 PTB_task.py --dataset pydoc --nhid 128          needs no download

A run leaves a directory below SavedModels: see Training/run_directory.py.
Source: Geadah et al., arXiv 2006.12253; the task is that of Kerg et al., arXiv 1905.12080.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import sys

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from NetworkCreation.checkpoints import CheckpointError, load_model, model_of, read_checkpoint
from NetworkCreation.exprnn import ORTHOGONAL_MAPS
from NetworkCreation.initialization import INPUT, RECURRENT
from NetworkCreation.layer import NONLINEARITIES
from NetworkCreation.models import build_model, gain_statistics, parameter_groups
from NetworkCreation.Networks import NETWORKS
from Training import flags
from Training.datasets import TEXT_SETS, DataError, columns, load_text, windows
from Training.evaluation import EVALUATION_COLUMNS, bits_per_character, evaluate_text
from Training.output import say
from Training.parser import run_file
from Training.run_directory import Run, RunError, describe, device_name, keep_results
from Training.trainer import Trainer, stream

SCORES = (
    *("train_loss", "train_bits_per_character"),
    *("validation_loss", "validation_bits_per_character"),
    *("n_mean", "n_std", "s_mean", "s_std"),
)
TRACED = (50, 4)  # steps and columns of the validation text over which n and s are averaged


def make_parser():
    parser = flags.Parser(__file__, __doc__)
    flags.add_network_flags(parser, NETWORKS, NONLINEARITIES, RECURRENT, INPUT, ORTHOGONAL_MAPS)
    flags.add_training_flags(parser)
    flags.add_run_flags(parser, __file__, TEXT_SETS)
    parser.set_defaults(nonlin="gamma", nhid=600, n=2.5, s=0.0, batch_size=128)
    flag = parser.add_argument_group("Penn Treebank").add_argument
    flag("--emsize", type=flags.positive_int, default=200, help="size of the embedding")
    flag("--bptt", type=flags.positive_int, default=150, help="steps per window")
    flag("--tied", **flags.SWITCH, help="share one matrix between embedding and read-out")
    flag("--log-interval", type=flags.positive_int, default=200, help="batches between log lines")
    flag(
        "--save",
        type=run_file,
        default="model.pt",
        metavar="PATH",
        help="file name, in the run's directory, of the best model on validation",
    )
    flag("--any-corpus", **flags.SWITCH, help="accept any text in place of pennchar")
    return parser


def parse(argv=None):
    parser = make_parser()
    args, run = flags.parse(parser, argv, NETWORKS)
    if args.any_corpus and args.dataset != "ptb":
        parser.error("argument --any-corpus: applies to --dataset ptb")
    return parser, args, run


def model_spec(args, vocabulary):
    """The description of the network that `build_model` takes."""
    return {
        "task": "characters",
        "net_type": args.net_type,
        "hidden_size": args.nhid,
        "embedding_size": args.emsize,
        "vocabulary": vocabulary,
        "tied": args.tied,
        "layer": flags.layer_options(args, NETWORKS),
    }


def map_state(function, state):
    """A layer's state with each of its tensors mapped; None stays None."""
    if state is None:
        return None
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def in_bits(loss):
    return f"loss {loss:.4f}, {bits_per_character(loss):.4f} bits per character"


@flags.entry_point
def main(argv=None):
    parser, args, run = parse(argv)
    device = flags.choose_device(parser, args)
    if args.test:
        return test(parser, args, device)

    with parser.blame("resume", RunError, CheckpointError):
        saved = None if run is None else run.state(read_checkpoint)
    with parser.blame("data", DataError):
        data = load_text(args.dataset, args.data, args.any_corpus)
        if 2 * args.batch_size > len(data.train):
            parser.error(
                f"argument --batch_size: {len(data.train)} symbols are too few for "
                f"{args.batch_size} columns of 2"
            )
        train = columns(data.train, args.batch_size, device, "train.txt")  # (rows, B)
        validation = columns(data.validation, EVALUATION_COLUMNS, device, "valid.txt")
        test_text = columns(data.test, EVALUATION_COLUMNS, device, "test.txt")
    spec = model_spec(args, data.vocabulary)
    states = min(args.bptt, len(train)) * args.batch_size
    flags.check_network(parser, args, device, lambda: build_model(spec, device="meta"), states)
    model = build_model(spec, stream(args.seed, "initialisation")).to(device)
    optimizer = flags.make_optimizer(args, model, parameter_groups)
    # Halves the learning rate whenever an epoch brings no improvement.
    options = {"factor": 0.5, "patience": 0, "threshold": 0.0, "eps": 0.0}
    scheduler = ReduceLROnPlateau(optimizer, **options)
    with parser.blame("save_dir" if run is None else "resume", RunError):
        about = {
            "name": data.name,
            "symbols": len(data.vocabulary),
            "sha256": data.checksums,
        }
        config = describe(parser, args, spec, about, device)
        run = run.resume(config) if run else Run.create(args, data.name, config)
        trainer = Trainer(run, args, model, optimizer, scheduler, saved, SCORES)

    with trainer:
        for _ in trainer.epochs():
            items = windows(len(train), args.bptt)
            hidden = map_state(lambda h: h.to(device), trainer.carry.get("hidden"))
            for start, end in trainer.batches(items, args.log_interval, in_bits):
                logits, hidden = model(train[start:end], hidden)  # (T, B, V)
                targets = train[start + 1 : end + 1].flatten()
                trainer.step(cross_entropy(logits.flatten(0, 1), targets), len(targets))
                hidden = trainer.carry["hidden"] = map_state(torch.detach, hidden)

            train_loss = trainer.mean("loss")
            loss = evaluate_text(model, validation, args.bptt, limit=args.limit_batches)
            steps, few = TRACED
            with torch.no_grad():
                x = model.encoder(validation[:steps, :few])
            values = (
                *(train_loss, bits_per_character(train_loss)),
                *(loss, bits_per_character(loss)),
                *gain_statistics(model.rnn, x).values(),
            )
            trainer.finish_epoch(dict(zip(SCORES, values, strict=True)), best=args.save)

        if not run.evaluated(trainer.epoch):
            best = load_best(run.path / args.save).to(device)
            loss = evaluate_text(best, test_text, args.bptt, limit=args.limit_batches)
            result = {"loss": loss, "bits_per_character": bits_per_character(loss)}
            trainer.add_test("best", result)
    return 0


def load_best(path):
    """The best model on validation. Raises RunError if it is gone or damaged."""
    try:
        return load_model(path)[0]
    except CheckpointError as error:
        raise RunError(str(error)) from error


def test(parser, args, device):
    """Evaluates the test set with a saved model."""
    flag = "save_dir" if args.checkpoint is None else "checkpoint"
    with parser.blame("data", DataError), parser.blame(flag, CheckpointError, RunError):
        path = args.checkpoint or flags.newest_checkpoint(parser, args)
        checkpoint = read_checkpoint(path)
        trained, config = args, checkpoint.get("config")
        if config is not None:
            trained = flags.tested_arguments(parser, args, config, path)
        data = load_text(trained.dataset, trained.data, trained.any_corpus)
        if config is None:  # a file of the paper's own code
            config = {"model": model_spec(args, data.vocabulary)}
        if config["model"].get("vocabulary") != data.vocabulary:
            raise DataError(f"{path} was trained on other symbols than those in {trained.data}")
        model = model_of(checkpoint, path, config)[0].to(device)
        text = columns(data.test, EVALUATION_COLUMNS, device, "test.txt")
    say(f"checkpoint: {path}\ndevice: {device_name(device)}")
    loss = evaluate_text(model, text, trained.bptt, limit=args.limit_batches)
    say(f"test: {in_bits(loss)}")
    results = {"as_is": {"loss": loss, "bits_per_character": bits_per_character(loss)}}
    keep_results(path, checkpoint, results, args.limit_batches, data.checksums)
    return 0


if __name__ == "__main__":
    sys.exit(main())
