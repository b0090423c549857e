"""`mmclip serve`."""

import argparse

from mmclip_jax import ranges
from mmclip_jax.cli.arguments import (
    Commands,
    Number,
    add_checkpoint,
    add_command,
    existing,
    existing_place,
    whole,
    words_of,
)


def _serve(args: argparse.Namespace) -> None:
    from mmclip_jax.inference import scoring
    from mmclip_jax.serve import run
    from mmclip_jax.serve.guards import Limits

    run.check_installed()
    scoring.texts_of(args.findings or [])  # refuses unknown findings before the model is loaded
    doors = run.open_doors(args.host, args.name, args.token_file)
    limits = Limits(args.megabytes, args.megapixels, args.seconds)
    listening = run.listen(args.host, args.port)
    served = [run.load(str(args.checkpoint), args.step, args.findings or [])]
    if args.beside is not None:
        served.append(run.load(str(args.beside), None, args.findings or []))
    run.run(served, doors, limits, listening)


def add(top: Commands) -> None:
    """Adds the command."""
    serve = add_command(top, "serve", "look at single images in a browser", _serve)
    add_checkpoint(serve)
    serve.add_argument("--beside", type=existing_place, metavar="RUN", help="a second one, side by side")
    serve.add_argument("--findings", type=words_of, metavar="A,B,…", help="default: all that the model was trained on")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but this machine's own asks for a token"
    )
    serve.add_argument("--port", type=whole(0, 65535), default=8321, help="0: any that is free")
    serve.add_argument(
        "--token-file", type=existing, metavar="FILE", help="a token of your own; default: made, where one is needed"
    )
    serve.add_argument(
        "--name", action="append", default=[], metavar="NAME", help="a further name that the server is called by"
    )
    positive = ranges.Number(0, above=True)
    serve.add_argument("--megabytes", type=Number(positive), default=50.0, help="of a file, at most")
    serve.add_argument("--megapixels", type=Number(positive), default=50.0, help="of an image, at most")
    serve.add_argument("--seconds", type=Number(positive), default=60.0, help="for a request, an upload, its answer")
