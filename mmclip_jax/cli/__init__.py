"""The `mmclip` command: a file for each of its commands, with the flags beside the function that uses them."""

from mmclip_jax.cli.entry import main

__all__ = ["main"]
