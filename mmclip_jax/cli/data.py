"""`mmclip data`: builds data sets (build.py), and looks at them: inspect, info, audit."""

import argparse
from pathlib import Path

from mmclip_jax.cli import build
from mmclip_jax.cli.arguments import (
    Commands,
    add_command,
    add_commands,
    add_id_statements,
    existing_place,
    file_of,
    id_statements_of,
    path_of,
    whole,
)
from mmclip_jax.errors import LeakageError, UserError


def _inspect(args: argparse.Namespace) -> None:
    from mmclip_jax.data.builders import inspect

    found = inspect.inspect(
        args.table, args.images, name=args.name, data_dir=str(args.data_dir), read_images=args.read_images
    )
    print(found)
    if not found.command:
        raise UserError(f"{args.table}: no command can be proposed before these problems are solved")


def _info(args: argparse.Namespace) -> None:
    from mmclip_jax.data import info, page

    print(info.describe(args.path))
    if args.html is not None:
        print(f"\nPage: {page.write_page(args.path, args.html, show_text=args.show_text)}")


def _audit(args: argparse.Namespace) -> None:
    from mmclip_jax.data.leakage import audit

    looks = not args.no_pixels
    train = [audit.read_set(s, ("train",), looks=looks, patient_pattern=args.patient_pattern) for s in args.train]
    held_out = ("validation", "test")
    test = [audit.read_set(s, held_out, looks=looks, patient_pattern=args.patient_pattern) for s in args.against]
    found = audit.audit(train, test, id_statements_of(args))
    print(audit.describe(found, train, test, args.show_ids))
    if args.out is not None:
        audit.write_csv(found, train, test, args.out)
    if any(each.is_leak for each in found):
        raise LeakageError("the test sets share images, studies or patients with the training sets")
    if any(each.is_open for each in found):
        raise LeakageError("ids of test and training sets agree: say with --same-ids or --other-ids what they mean")


def add(top: Commands) -> None:
    """Adds `mmclip data` and all of its commands."""
    data = add_commands(add_command(top, "data", "build data sets and look at them"))
    build.add(data)
    look = add_command(
        data, "inspect", "say how a table and its images would be read, what is wrong, and the command", _inspect
    )
    look.add_argument("table", metavar="TABLE", help="CSV, TSV, Excel or Parquet file")
    look.add_argument("--images", required=True, metavar="DIR", help="folder of its images")
    look.add_argument("--name", default="", help="of the data set; default: made of the table's name")
    look.add_argument("--data-dir", type=path_of, default=Path("DATA"), help="where the data set's directory will go")
    look.add_argument("--read-images", type=whole(), default=2000, metavar="N", help="images that are decoded; 0: none")

    info = add_command(data, "info", "show what a data set holds", _info)
    info.add_argument("path", metavar="PATH", type=existing_place, help="directory of a built data set")
    info.add_argument("--html", metavar="FILE", type=file_of, help="also write a page with examples as pictures")
    info.add_argument("--show-text", action="store_true", help="show ids and reports on the page")

    check = add_command(data, "audit", "look for anything of test sets in training sets; exit 1 if there is", _audit)
    check.add_argument(
        "train", nargs="+", metavar="TRAIN", help="a built data set (its train split, or DIR:SPLIT), or FILE.csv:COLUMN"
    )
    check.add_argument(
        "--against", nargs="+", required=True, metavar="TEST", help="likewise (validation and test, or DIR:SPLIT)"
    )
    check.add_argument("--patient-pattern", default="", metavar="REGEX", help="finds the patient in the ids of a list")
    check.add_argument("--no-pixels", action="store_true", help="do not decode images to find those that are alike")
    add_id_statements(check)
    check.add_argument("--show-ids", action="store_true", help="name an example of each kind of leak")
    check.add_argument("--out", type=file_of, metavar="FILE.csv", help="write every pair")
