"""`mmclip data build`: the phantom, a user's table, and the published collections."""

import argparse
import dataclasses
import os
import typing
from pathlib import Path

from mmclip_jax import ranges
from mmclip_jax.cli.arguments import (
    Commands,
    Number,
    Parser,
    add_beam,
    add_build,
    add_command,
    add_commands,
    add_options,
    whole,
)

if typing.TYPE_CHECKING:
    from mmclip_jax.data.records import Make


def _phantom(args: argparse.Namespace) -> None:
    print(build_phantom(args.data_dir, args.image_size, args.seed, args.scale, args.workers, args.overwrite))


def build_phantom(
    data_dir: Path, image_size: int, seed: int, scale: float, workers: int | None, overwrite: bool = False
) -> Path:
    """Builds the phantom; `workers`: None is one a core."""
    from mmclip_jax.data import records
    from mmclip_jax.data.builders.phantom import Phantom
    from mmclip_jax.data.phantom import PhantomConfig, scaled_patients

    workers = os.cpu_count() or 1 if workers is None else workers
    options = PhantomConfig(seed, image_size, scaled_patients(scale))
    builder = Phantom(data_dir, options, workers=workers)
    return records.build(builder, overwrite=overwrite, progress=True)


def _table(args: argparse.Namespace) -> None:
    from mmclip_jax.data.builders import table
    from mmclip_jax.data.builders.table_options import TableOptions

    names = [field.name for field in dataclasses.fields(TableOptions)]
    options = TableOptions(**{name: getattr(args, name) for name in names})
    made = table.build_table(options, args.data_dir, overwrite=args.overwrite, progress=True, make=_make_of(args.beam))
    print(made)


def _collection(args: argparse.Namespace) -> None:
    from mmclip_jax.data.builders import registry

    options_class = registry.load(args.collection).Options
    options = options_class(**{field.name: getattr(args, field.name) for field in dataclasses.fields(options_class)})
    made = registry.build(
        args.collection, options, args.data_dir, overwrite=args.overwrite, progress=True, make=_make_of(args.beam)
    )
    print(made)


def _make_of(beam_options: str | None) -> "Make | None":
    """What `records.build` takes as `make`."""
    if beam_options is None:
        return None
    import functools
    import shlex

    from mmclip_jax.data.builders import beam

    return functools.partial(beam.make, options=shlex.split(beam_options))


def _add_table_options(parser: Parser) -> None:
    from mmclip_jax.data.builders.table_options import TableOptions

    add_options(parser, TableOptions)
    parser.epilog = (
        "A column option takes the name of a column, or - to leave it unused: --labels-column - where a column named "
        "like labels holds diagnoses or codes, --label-columns - where columns are only named like labels. "
        "`mmclip data inspect TABLE --images DIR` proposes all options."
    )


def _add_collection_options(parser: Parser) -> None:
    import textwrap

    from mmclip_jax.data.builders import registry

    collection = registry.load(parser.get_default("collection"))
    add_options(parser, collection.Options)
    text = f"{collection.description} To get it: {collection.instructions} Licence: {collection.licence}"
    parser.epilog = textwrap.fill(" ".join(text.split()), 78, break_on_hyphens=False)


def add(data: Commands) -> None:
    """Adds the command to those of `mmclip data`."""
    from mmclip_jax.data.builders import registry

    build = add_commands(add_command(data, "build", "write a data set"))
    phantom = add_command(build, "phantom", "write procedural chest X-rays with reports", _phantom)
    add_build(phantom)
    phantom.add_argument("--seed", type=Number(ranges.SEED), default=0, help="another seed, other patients")
    phantom.add_argument("--image-size", type=whole(8, 4096), default=64, help="pixels a side")
    phantom.add_argument(
        "--scale", type=Number(ranges.positive(1000)), default=1.0, help="factor on the number of patients"
    )
    phantom.add_argument("--workers", type=whole(1, 1024), help="processes that draw; default: one a core")
    table = add_command(build, "table", "read your own table and images", _table)
    add_build(table)
    add_beam(table)
    table.more = _add_table_options
    for name, what in registry.COLLECTIONS.items():
        collection = add_command(build, name, what, _collection)
        add_build(collection)
        add_beam(collection)
        collection.set_defaults(collection=name)
        collection.more = _add_collection_options
