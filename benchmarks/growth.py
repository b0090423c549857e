"""How much memory a training run holds, step by step. Prints one table.

    python benchmarks/growth.py --data runs/demo/data/phantom                          # configs/demo.py, 2,000 steps
    python benchmarks/growth.py --data runs/demo/data/phantom --config demo:runlocal   # a tiny model: minutes

Starts `mmclip train` and reads the resident memory of its process (Linux, /proc) whenever a step is logged. It
evaluates and saves as the config says. A run that keeps what it should not grows from row to row; one that does not is
as large at its end as after its first evaluation. What else is on the command line goes on to `mmclip train`.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = 10


def resident(process: int) -> int:
    """Megabytes (2**20 bytes) of a process that lie in memory now."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) >> 10  # type: ignore[index]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", required=True, help="a built data set")
    parser.add_argument("--config", default="demo", metavar="NAME|FILE.py")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    options, overrides = parser.parse_known_args()
    every = max(options.steps // ROWS, 1)
    command = [sys.executable, "-m", "mmclip_jax.cli", "train", "--config", options.config, *overrides]
    command += [f"--config.train.steps={options.steps}", f"--config.train.log_every={every}"]
    command += [f'--config.data.train=("{Path(options.data).resolve()}",)']
    found: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        command += ["--workdir", folder]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, **pipe) as process:  # type: ignore[call-overload]
            said = []
            for line in process.stdout:
                said.append(line)
                if step := re.search(r"\bstep +(\d+)/\d+ ", line):
                    found.append((int(step[1]), resident(process.pid)))
        if process.returncode:
            sys.exit("".join(said[-20:]))
    print("| step | resident memory, MiB |\n|---:|---:|")
    for number, megabytes in found:
        print(f"| {number:,} | {megabytes:,} |")
    if options.json:
        options.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
