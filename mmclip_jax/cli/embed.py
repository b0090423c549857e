"""`mmclip embed`."""

import argparse

from mmclip_jax.cli.arguments import Commands, add_command, add_run, existing, existing_place, file_of
from mmclip_jax.cli.predict import check_outputs, run_and_places, tell_left_out
from mmclip_jax.errors import UserError


def _embed(args: argparse.Namespace) -> None:
    from mmclip_jax.data.records import dataset_facts
    from mmclip_jax.data.schema import SPLITS
    from mmclip_jax.evaluate.rows import Progress
    from mmclip_jax.inference import embedding, places
    from mmclip_jax.inference import model as model_lib
    from mmclip_jax.inference.classifier import Classifier

    embedding.check_name(args.out)
    if args.split is not None and args.data is None:
        raise UserError("--split is of a data set: give it with --data DIR")
    other = args.data is not None or args.texts is not None
    run, named = run_and_places(args, least=0 if other else 1)
    if len([each for each in (named, args.data, args.texts) if each]) > 1:
        raise UserError("images, --data and --texts each make a file of their own: give one of them")
    images = places.find_images(named)
    check_outputs(images.images, args.out)
    splits = SPLITS if args.split is None else (args.split,)
    total = len(images.images)
    if args.data is not None:
        facts = dataset_facts(args.data)["splits"]
        total = sum(entry["examples"] for name, entry in facts.items() if name.split("_")[0] in splits)
    model = model_lib.load(run, args.step)
    if isinstance(model, Classifier):
        raise UserError(f"{run} is a classifier, which has no embeddings: name the run that it began with")
    if args.texts is not None:
        found = embedding.embed_texts(model, args.texts, str(run))
    else:
        with Progress().bar("images", total) as advance:
            if args.data is not None:
                found = embedding.embed_data(model, args.data, str(run), splits, advance)
            else:
                found = embedding.embed_files(model, images.images, str(run), advance)
    found.write(args.out)
    count, size = found.vectors.shape
    print(f"{args.out}: {count:,} embeddings of {size} numbers; learnt from {found.facts['domain']}")
    tell_left_out(images, found.unreadable)


def add(top: Commands) -> None:
    """Adds the command."""
    embed = add_command(top, "embed", "write embeddings of images, of a data set or of texts", _embed)
    embed.add_argument(
        "places", nargs="*", metavar="PLACE", help="the run, unless --model names it, then files, folders or patterns"
    )
    add_run(embed, required=False)
    embed.add_argument("--data", type=existing_place, metavar="DIR", help="in place of files: a built data set")
    embed.add_argument("--split", choices=("train", "validation", "test"), help="of the data set; default: all three")
    embed.add_argument("--texts", type=existing, metavar="FILE", help="in place of files: a text a line")
    embed.add_argument("--out", required=True, type=file_of, metavar="FILE", help="where to: .npz (NumPy) or .parquet")
