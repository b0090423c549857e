"""`mmclip completion`: scripts by which a shell completes commands, options and files."""

import argparse

from mmclip_jax.cli.arguments import Commands, Parser, add_command
from mmclip_jax.settings import packaged_configs

_SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("FILE", "DIR", "IMAGE", "TABLE", "PATH", "RUN", "PLACE", "TRAIN", "TEST")  # of metavars
_PATHS = ("path_of", "file_of", "folder_of", "place_of", "existing", "existing_place")  # of arguments.py


def _completion(args: argparse.Namespace) -> None:
    import shtab

    parser = args.parser()
    _complete_values(parser)
    names = " ".join(packaged_configs())
    preamble = {
        "bash": f'_mmclip_configs() {{ local IFS=" "; compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}\n',
        "zsh": f"_mmclip_configs() {{ compadd {names}; _files }}\n",
    }
    print(shtab.complete(parser, args.shell, preamble=preamble))


def _complete_values(parser: Parser) -> None:
    """Says of every argument what completes its value: files, or the names of configurations."""
    import shtab

    if parser.more is not None:
        parser.more(parser)
    for action in parser._actions:
        words = action.metavar if isinstance(action.metavar, str) else ""
        if words.startswith("NAME[:ARGUMENT]"):
            action.complete = {"bash": "_mmclip_configs", "zsh": "_mmclip_configs", "tcsh": "f"}  # type: ignore[attr-defined]
        elif getattr(action.type, "__name__", "") in _PATHS or any(word in words for word in _FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    for command in parser.commands().values():
        _complete_values(command)


def add(top: Commands) -> None:
    """Adds the command."""
    completion = add_command(top, "completion", "print a script that completes this command's words", _completion)
    completion.add_argument("shell", choices=_SHELLS, help="bash, zsh or tcsh")
    completion.epilog = (
        'bash: put  eval "$(mmclip completion bash)"  into ~/.bashrc. zsh: write the script to a file _mmclip in a '
        "folder of $fpath. tcsh: write it to a file that ~/.tcshrc sources."
    )
