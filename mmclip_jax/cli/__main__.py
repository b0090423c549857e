"""`python -m mmclip_jax.cli`."""

import sys

from mmclip_jax.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
