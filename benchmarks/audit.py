"""Time and memory of the audit at the size of the largest public sets, on made-up rows and looks.

    python benchmarks/audit.py --train 400000 --test 25000

Hashes are drawn so that as many pairs are close (0.9 %) as of real radiographs, and thumbnails so that they correlate
as these do (0.67 in the mean); ids are those of MIMIC-CXR. Nothing is
shared but 1 % of the test images' looks, which must be found.
"""

import argparse
import pathlib
import resource
import tempfile
import time

import numpy as np

from mmclip_jax.data.leakage import likeness as likeness_lib
from mmclip_jax.data.leakage import overlaps
from mmclip_jax.data.leakage.overlaps import AuditSet, Row

FLIPPED = 0.205  # of a hash's bits, from one common hash: 0.9 % of pairs then differ in at most 12 of 63


def make_looks(file: pathlib.Path, count: int, rng: np.random.Generator, copies: np.ndarray) -> np.ndarray:
    """Looks [count] in a file mapped into memory; the last ones are `copies` with other brightness."""
    common = np.random.default_rng(1).normal(size=(8, 8)) / np.sqrt(2)
    with open(file, "wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(likeness_lib.TYPE), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, count - len(copies), 1_000):
            made = np.zeros(min(1_000, count - len(copies) - start), likeness_lib.TYPE)
            flips = rng.random((len(made), 63)) < FLIPPED
            padded = np.concatenate([flips, np.zeros((len(made), 1), bool)], axis=1)
            made["bits"] = np.packbits(padded, axis=1).view(">u8").ravel()
            rough = (2.5 * common + rng.normal(size=(len(made), 8, 8))).repeat(8, axis=1).repeat(8, axis=2)
            grey = 128 + 20 * rough + 8 * rng.normal(size=(len(made), 64, 64))
            made["thumbnail"] = np.clip(grey, 0, 255).reshape(len(made), -1)
            stream.write(made.tobytes())
        copies = copies.copy()
        copies["thumbnail"] = copies["thumbnail"] * 0.9
        stream.write(copies.tobytes())
    return np.load(file, mmap_mode="r")


def make_rows(count: int, first: int) -> list[Row]:
    """Rows of patients from the number `first` on, with two studies and four images each."""
    return [
        Row(f"{n:08x}-bde0afdd-112c0b34-7bc16630-{n:08x}", "mimic_cxr", f"{10_000_032 + n // 4}",
            f"{50_000_000 + n // 2}", f"{n:064x}", f"{n:032x}")
        for n in range(first, first + count)
    ]  # fmt: skip


def seconds() -> float:
    """Of this process on a core: what else the machine does takes no part in it."""
    return time.process_time()


def peak() -> str:
    """The largest resident size of this process so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def main() -> None:
    """Prints the seconds and the memory of each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=400_000)
    parser.add_argument("--test", type=int, default=25_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        train = make_looks(place / "train.npy", args.train, rng, np.zeros(0, likeness_lib.TYPE))
        known = np.array(train[:: max(1, args.train * 100 // args.test)][: args.test // 100])
        test = make_looks(place / "test.npy", args.test, rng, known)
        print(f"before: {peak()}")
        start = seconds()
        found = likeness_lib.alike(train, test)
        print(f"looks of {args.train:,} x {args.test:,}: {seconds() - start:.0f} s, {len(found)} alike, {peak()}")
        assert len(found) == len(known)
        start = seconds()
        sets = [AuditSet("train", make_rows(args.train, 0)), AuditSet("test", make_rows(args.test, 10**7))]
        shared = overlaps.audit(sets[:1], sets[1:])
        print(f"ids, pixels and reports: {seconds() - start:.0f} s, {len(shared)} shared, {peak()}")


if __name__ == "__main__":
    main()
