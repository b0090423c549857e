"""`mmclip predict`."""

import argparse
import json
import os
import pathlib
import sys
import typing
from collections.abc import Sequence

from mmclip_jax.cli.arguments import Commands, add_command, add_run, file_of, folder_of, words_of
from mmclip_jax.errors import IncompleteError, UserError

if typing.TYPE_CHECKING:
    from mmclip_jax.inference.places import Unreadable
    from mmclip_jax.inference.scoring import Texts


def _predict(args: argparse.Namespace) -> None:
    from mmclip_jax import files
    from mmclip_jax.evaluate.rows import Progress
    from mmclip_jax.inference import model as model_lib
    from mmclip_jax.inference import places, prediction, scoring, stamp
    from mmclip_jax.inference.classifier import Classifier

    run, named = run_and_places(args)
    own = own_prompts(args.prompt)
    scoring.texts_of(args.findings or [])  # refuses unknown findings before the model is loaded
    images = places.find_images(named)
    check_outputs(images.images, args.csv, args.json)
    if args.heatmaps is not None and args.heatmaps.exists() and not args.heatmaps.is_dir():
        raise UserError(f"--heatmaps {args.heatmaps} is a file: name a folder")
    model = model_lib.load(run, args.step)
    if isinstance(model, Classifier):
        if own or args.heatmaps is not None:
            option = "--prompt" if own else "--heatmaps"
            raise UserError(f"{option} is of models that read text; {run} is a classifier with outputs of its own")
        asked = prediction.ask_classifier(model, args.findings or [])
    else:
        names = args.findings or ([] if own else stamp.known_findings(model.manifest))
        thresholds = prediction.read_thresholds(run, model.step, model.logit_scale)
        asked = prediction.ask(model, {**dict.fromkeys(names), **own}, thresholds)
    with Progress(len(images.images) > 64).bar("images", len(images.images)) as advance:
        found = prediction.predict(model, images.images, asked, str(run), args.heatmaps, advance)
    if args.csv is not None:
        files.write_whole(args.csv, found.as_csv())
    text = json.dumps(found.as_json(), indent=1)
    if args.json is not None and args.json != "-":
        files.write_whole(args.json, text + "\n")
    if args.json == "-":
        print(text)
    elif args.csv is None and args.json is None:
        print(found.as_text())
    else:
        print(f"{args.csv or args.json}: {len(found.rows):,} images, {len(asked)} findings\n{stamp.RESEARCH_ONLY}")
    tell_left_out(images, found.unreadable)


def run_and_places(args: argparse.Namespace, least: int = 1) -> tuple[str, list[str]]:
    """The run and the places: with --model all that is named is a place, else the first is the run.

    Raises:
      UserError: fewer than `least` places are left.
    """
    run, named = args.model, list(args.places)
    if run is None and named:
        run = named.pop(0)
    if run is None or len(named) < least:
        raise UserError("name the run and the images: RUN PLACE…, or PLACE… --model RUN")
    return str(run), named


def check_outputs(images: Sequence[pathlib.Path], *outputs: str | pathlib.Path | None) -> None:
    """Refuses to write over what is read.

    Raises:
      UserError: an output is one of the images.
    """
    read = {os.path.realpath(image) for image in images}
    for each in outputs:
        if each is not None and os.path.realpath(each) in read:
            raise UserError(f"{each} is one of the images: name another file to write")


def own_prompts(given: list[str]) -> "dict[str, Texts]":
    """What --prompt says: {name: (texts that affirm, texts that deny)}.

    Raises:
      UserError: one is not of the form NAME=TEXT|TEXT, or a name is given twice.
    """
    found: dict[str, Texts] = {}
    for each in given:
        name, _, texts = each.partition("=")
        sides = [[text.strip() for text in side.split(";") if text.strip()] for side in texts.split("|")]
        if not name.strip() or len(sides) != 2 or not all(sides):
            raise UserError(
                f"--prompt {each!r:.80}: it has the form 'NAME=AFFIRMS|DENIES', several texts of a side with ; between "
                "them, such as 'coin=A swallowed coin.;A round foreign body.|No foreign body.'"
            )
        if name.strip() in found:
            raise UserError(f"--prompt: {name.strip()!r} is given twice; put its texts into one, with ; between them")
        found[name.strip()] = (sides[0], sides[1])
    return found


def tell_left_out(images: typing.Any, unreadable: "list[Unreadable]") -> None:
    """Names on stderr what has no numbers.

    Raises:
      IncompleteError: images could not be read.
    """
    if images.others:
        print(f"left out: {images.others:,} of the files in the folders, which are no images", file=sys.stderr)
    for each in unreadable:
        print(f"not read: {each.path}: {each.reason}", file=sys.stderr)
    if unreadable:
        raise IncompleteError(f"{len(unreadable):,} of {len(images.images):,} images could not be read")


def _json_of(text: str) -> str | pathlib.Path:
    return text if text == "-" else file_of(text)


def add(top: Commands) -> None:
    """Adds the command."""
    predict = add_command(top, "predict", "score images by prompts, or by a fine-tuned classifier", _predict)
    add_places(predict)
    predict.add_argument(
        "--findings", type=words_of, metavar="A,B,…", help="default: all that the model was trained on"
    )
    predict.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=AFFIRMS|DENIES",
        help="a finding in your own words; may be given several times",
    )
    predict.gone["--format"] = "--csv FILE, --json FILE or --json -"
    predict.add_argument("--csv", type=file_of, metavar="FILE", help="write a line an image and finding")
    predict.add_argument("--json", type=_json_of, metavar="FILE|-", help="write JSON; -: to the terminal")
    predict.add_argument(
        "--heatmaps", type=folder_of, metavar="DIR", help="write a picture of each image and finding: its response map"
    )


def add_places(parser: typing.Any, what: str = "files (JPEG, PNG, TIFF, BMP, DICOM), folders or patterns") -> None:
    """Adds the run and the images that a command takes."""
    parser.add_argument("places", nargs="+", metavar="PLACE", help=f"the run, unless --model names it, then {what}")
    add_run(parser, required=False, also=", or of a fine-tuned classifier")
