"""`mmclip config`."""

import argparse
import ast

from mmclip_jax.cli.arguments import OVERRIDES_HELP, Commands, add_command
from mmclip_jax.errors import UserError
from mmclip_jax.settings import as_yaml, packaged_configs, read_config


def _config(args: argparse.Namespace) -> None:
    if args.name:
        print(as_yaml(read_config(args.name, args.overrides)), end="")
        return
    if args.overrides:
        raise UserError(f"{args.overrides[0]} changes a configuration: say which, such as mmclip config demo")
    known = packaged_configs()
    width = max(map(len, known))
    for name, file in known.items():
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        print(f"{name:<{width}}  {about.partition(chr(10))[0]}")


def add(top: Commands) -> None:
    """Adds the command."""
    config = add_command(top, "config", "list the configurations, or print the settings of one as YAML", _config)
    config.add_argument(
        "name",
        nargs="?",
        metavar="NAME[:ARGUMENT]",
        help="as --config of mmclip train, which also takes the YAML that is printed",
    )
    config.takes_overrides = True
    config.epilog = OVERRIDES_HELP
