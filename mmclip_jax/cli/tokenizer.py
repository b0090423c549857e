"""`mmclip tokenizer train`."""

import argparse
from collections.abc import Iterator

from mmclip_jax.cli.arguments import Commands, add_command, add_commands, existing_place, file_of, whole
from mmclip_jax.errors import UserError


def _train(args: argparse.Namespace) -> None:
    from mmclip_jax.data import records
    from mmclip_jax.text import tokenizer

    def texts() -> Iterator[str]:
        for directory in args.data:
            paired = records.open_records(directory, "train", "paired")
            if not len(paired):
                raise UserError(f"{directory} has no training reports: a tokenizer learns from those")
            for number in range(len(paired)):
                yield paired[number].text

    trained = tokenizer.train_tokenizer(texts(), args.vocab_size, args.out)
    fewer = f" of {args.vocab_size:,} asked for: the reports give no more" * (trained.vocab_size < args.vocab_size)
    print(f"{args.out}: {trained.vocab_size:,} pieces{fewer}")


def add(top: Commands) -> None:
    """Adds the command."""
    tokenizer = add_commands(add_command(top, "tokenizer", "train a tokenizer"))
    learn = add_command(tokenizer, "train", "train a SentencePiece model on the training reports of data sets", _train)
    learn.add_argument("--data", required=True, nargs="+", type=existing_place, metavar="DIR", help="built data sets")
    learn.add_argument("--vocab-size", type=whole(8, 10**6), default=4096, help="number of pieces")
    learn.add_argument("--out", required=True, type=file_of, metavar="FILE", help="the model file to write")
