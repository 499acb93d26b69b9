"""Copy memory: repeat ten symbols, once a sign is shown after a delay.

    python3 -m tests.copy_memory_task --net-type expRNN --delay 10 --nhid 64 --lr 3e-3 \\
        --lr_orth 3e-4 --epochs 8 --batches 60 --batch 64            error 0.002, in 10 s
    python3 -m Training.sweep tests/copy_memory_task.py --seed 400 401 -- --net-type expRNN

A network without memory has a loss of COPIED ln 8 / (delay + 2 COPIED) and an error of 7/8.
Source: Hochreiter & Schmidhuber, 1997; the sizes are those of Arjovsky et al., arXiv 1511.06464.
"""

import sys

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from NetworkCreation.checkpoints import model_of
from NetworkCreation.models import build_model
from Training import flags
from Training.console import entry_point
from Training.evaluation import test_line
from Training.parser import positive_int
from Training.trainer import Trainer, stream

COPIED = 10  # symbols to repeat
SYMBOLS = [*"12345678", "blank", "sign"]
BLANK, SIGN = 8, 9


def make_parser():
    parser = flags.make_parser(__file__, __doc__, datasets=(), nonlin="gamma2", nhid=128)
    flag = parser.add_argument_group("copy memory").add_argument
    flag("--delay", type=positive_int, default=100, help="steps between symbols and copy")
    flag("--batches", type=positive_int, default=100, help="batches per epoch")
    return parser


def parse(argv=None):
    return flags.parse(make_parser(), argv)


def draw(delay, count, generator):
    """Input and target, each (T, B) of symbols, with T = delay + 2 COPIED."""
    symbols = torch.randint(BLANK, (COPIED, count), generator=generator)
    x = torch.full((delay + 2 * COPIED, count), BLANK)
    target = x.clone()
    x[:COPIED] = target[-COPIED:] = symbols
    x[-COPIED - 1] = SIGN
    return x, target


def loss_and_error(model, x, target):
    """The mean cross-entropy in nats, (), and the number of copied symbols that are wrong."""
    logits, _ = model(x)  # (T, B, symbols)
    wrong = logits[-COPIED:].argmax(-1) != target[-COPIED:]
    return cross_entropy(logits.flatten(0, 1), target.flatten()), wrong.sum()


@torch.no_grad()
def evaluate(model, delay, generator, count=500):
    model.eval()
    x, target = (part.to(model.decoder.bias.device) for part in draw(delay, count, generator))
    loss, wrong = loss_and_error(model, x, target)
    return {"loss": loss.item(), "error": wrong.item() / (COPIED * count)}


@entry_point
def main(argv=None):
    args, given = parse(argv)
    device = flags.choose_device(args)
    if args.test:
        path, checkpoint, trained = flags.tested_checkpoint(make_parser(), args, given)
        model = model_of(checkpoint, path)[0].to(device)
        print(test_line("as_is", evaluate(model, trained.delay, stream(trained.seed, "test"))))
        return 0

    spec = {"task": "characters", "net_type": args.net_type, "hidden_size": args.nhid}
    spec |= {"embedding_size": len(SYMBOLS), "vocabulary": SYMBOLS, "tied": False}
    spec |= {"layer": flags.layer_options(args), "score": "error", "chance": 7 / 8}
    model = build_model(spec, stream(args.seed, "initialisation")).to(device)
    optimizer = flags.make_optimizer(args, model)
    scheduler = ReduceLROnPlateau(optimizer)
    with Trainer(args, "copy", model, spec, optimizer, scheduler, {}) as trainer:
        for epoch in trainer.epochs():
            for _ in trainer.batches(range(args.batches)):
                x, target = draw(args.delay, args.batch_size, trainer.draws)
                loss, wrong = loss_and_error(model, x.to(device), target.to(device))
                trainer.step(loss, args.batch_size, error=wrong / COPIED)
            scores = {
                "train": {name: trainer.mean(name) for name in ("loss", "error")},
                "validation": evaluate(model, args.delay, stream(args.seed, "evaluation", epoch)),
            }
            x, _ = draw(args.delay, 8, stream(args.seed, "evaluation", epoch))
            gains = model.rnn.gains(model.encoder(x.to(device)))
            tests = {"as_is": evaluate(model, args.delay, stream(args.seed, "test"))}
            trainer.finish_epoch(scores, gains, tests if trainer.keeps(epoch) else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
