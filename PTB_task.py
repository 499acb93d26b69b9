"""Experiment 2: predict the next character of the Penn Treebank corpus.

    python3 PTB_task.py                                     RNN with one learned γ, 600 units
    python3 PTB_task.py --net-type ANRU --epochs 20
    python3 PTB_task.py --net-type nnRNN --betas 0.0 0.9 --clip 10
    python3 PTB_task.py --test                              evaluates the newest run's best model
    python3 PTB_task.py --test --sample 300                 prints text that it writes
    python3 PTB_task.py --resume RUN                        continues an interrupted run
    python3 PTB_task.py --dataset pydoc --nhid 128          needs no download
    python3 PTB_task.py --any-corpus --data DIR             your own text

A run leaves a directory below SavedModels: see Training/run_directory.py.
Source: Geadah et al., arXiv 2006.12253; the task is that of Kerg et al., arXiv 1905.12080.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import os
import sys
from operator import methodcaller

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from NetworkCreation.checkpoints import load_model, model_of
from NetworkCreation.errors import UserError
from NetworkCreation.layer import map_state
from NetworkCreation.models import build_model
from Training import flags
from Training.console import entry_point
from Training.datasets import TEXT_SETS, columns, load_text, windows
from Training.evaluation import EVALUATION_COLUMNS, evaluate_text, test_line, text_scores
from Training.parser import positive_int
from Training.trainer import Trainer, stream

TRACED = (50, 4)  # steps and columns of the validation text over which n and s are averaged


def make_parser():
    defaults = {"nonlin": "gamma", "nhid": 600, "n": 2.5, "s": 0.0, "batch_size": 128}
    parser = flags.make_parser(__file__, __doc__, TEXT_SETS, log_interval=200, **defaults)
    flag = parser.add_argument_group("Penn Treebank").add_argument
    flag("--emsize", type=positive_int, default=200, help="size of the embedding")
    flag("--bptt", type=positive_int, default=150, help="steps per window")
    flag("--tied", **flags.SWITCH, help="share one matrix between embedding and read-out")
    flag("--save", default="model.pt", metavar="NAME.pt", help="file in the run's directory of the "
         "model with the best validation loss")  # fmt: skip
    flag("--any-corpus", **flags.SWITCH, help="accept any text: train.txt, valid.txt, test.txt in "
         "--data or in its folder pennchar, symbols separated by white space")  # fmt: skip
    flag("--sample", type=positive_int, metavar="N", help="with --test: print N symbols that the "
         "model draws, by the seed of its run; _ as space, <eos> as new line")  # fmt: skip
    return parser


def parse(argv=None):
    parser = make_parser()
    args, given = flags.parse(parser, argv)
    if args.any_corpus and args.dataset != "ptb":
        parser.error("argument --any-corpus: applies to --dataset ptb")
    if os.path.basename(args.save) != args.save or not args.save.endswith(".pt"):
        parser.error(f"argument --save: must be NAME.pt without a folder, got {args.save}")
    if args.sample is not None and not args.test:
        parser.error("argument --sample: requires --test")
    return args, given


def model_spec(args, vocabulary):
    """What `build_model` makes a network from."""
    return {
        "task": "characters",
        "net_type": args.net_type,
        "hidden_size": args.nhid,
        "embedding_size": args.emsize,
        "vocabulary": vocabulary,
        "tied": args.tied,
        "layer": flags.layer_options(args),
    }


@entry_point
def main(argv=None):
    args, given = parse(argv)
    device = flags.choose_device(args)
    if args.test:
        return test(args, given, device)

    data = load_text(args.dataset, args.data, args.any_corpus)
    train = columns(data.train, args.batch_size, device, "training text")  # (rows, B)
    validation = columns(data.validation, EVALUATION_COLUMNS, device, "validation text")
    test_text = columns(data.test, EVALUATION_COLUMNS, device, "test text")
    spec = model_spec(args, data.vocabulary)
    model = build_model(spec, stream(args.seed, "initialisation")).to(device)
    optimizer = flags.make_optimizer(args, model)
    # Halves the learning rate whenever an epoch brings no improvement.
    halving = {"factor": 0.5, "patience": 0, "threshold": 0.0, "eps": 0.0}
    scheduler = ReduceLROnPlateau(optimizer, **halving)

    with Trainer(args, data.name, model, spec, optimizer, scheduler, data.checksums) as trainer:
        for _ in trainer.epochs():
            hidden = map_state(methodcaller("to", device), trainer.carry.get("hidden"))
            for start, end in trainer.batches(windows(len(train), args.bptt)):
                logits, hidden = model(train[start:end], hidden)  # (T, B, V)
                targets = train[start + 1 : end + 1].flatten()
                trainer.step(cross_entropy(logits.flatten(0, 1), targets), len(targets))
                hidden = trainer.carry["hidden"] = map_state(torch.detach, hidden)

            scores = {
                "train": text_scores(trainer.mean("loss")),
                "validation": evaluate(model, validation, args),
            }
            steps, few = TRACED
            with torch.no_grad():
                gains = model.rnn.gains(model.encoder(validation[:steps, :few]))
            trainer.finish_epoch(scores, gains, best=args.save)

        if not trainer.tested:
            best = load_model(trainer.run.path / args.save)[0].to(device)
            trainer.add_test("as_is", evaluate(best, test_text, args))
    return 0


def evaluate(model, text, args):
    """The scores of a text (rows, columns)."""
    return evaluate_text(model, text, args.bptt, limit=args.limit_batches)


def test(args, given, device):
    """Evaluates the test text, and prints a --sample."""
    path, checkpoint, trained = flags.tested_checkpoint(make_parser(), args, given)
    data = load_text(trained.dataset, trained.data, trained.any_corpus)
    config = checkpoint.get("config") or {"model": model_spec(args, data.vocabulary)}
    if config["model"].get("vocabulary") != data.vocabulary:
        raise UserError(f"{path} was trained on other symbols than those in {trained.data}")
    model = model_of(checkpoint, path, config)[0].to(device)
    text = columns(data.test, EVALUATION_COLUMNS, device, "test text")
    print(test_line("as_is", evaluate(model, text, trained)))
    if args.sample is not None:
        generator, first = stream(trained.seed, "test"), data.vocabulary.index("<eos>")
        symbols = [data.vocabulary[i] for i in model.sample(first, args.sample, generator)]
        space = " " * any(len(symbol) > 1 for symbol in set(data.vocabulary) - {"<eos>"})  # words
        print(space.join({"_": " ", "<eos>": "\n"}.get(symbol, symbol) for symbol in symbols))
    return 0


if __name__ == "__main__":
    sys.exit(main())
