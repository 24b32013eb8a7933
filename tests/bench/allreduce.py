"""A large all-reduce over ranks of one machine: ours, exact and fast, against MPI_Allreduce.

The example `bench_allreduce` does all three in turn in the same processes, on a buffer of --mb MB,
and prints the seconds of the slowest rank. MPI_Allreduce goes from one buffer to another; ours sums
in place. Over 4 ranks it is for information where there are fewer cores.
"""

import os
from pathlib import Path

from common import arguments, at_most, example, header, json_line, measured, pinned, run, save


def main():
    args = arguments(__doc__, repetitions=9, mb=256)
    if args.peer_only:
        return print(f"# {Path(__file__).stem}: nothing to measure without our build")
    record = header(f"all-reduce of {args.mb} MB")
    for ranks in (2, 4):
        command = [*pinned(ranks), example("bench_allreduce"), "--mb", str(args.mb), "--repeats", str(args.repetitions)]
        said = json_line(run(command)[1], "exact")
        median = {
            way: measured(record, f"{way}, {ranks} ranks", said[way], "MB", args.mb)
            for way in ("library", "exact", "fast")
        }
        limit = 1.25 if ranks <= os.cpu_count() else None
        at_most(record, f"exact over MPI_Allreduce, {ranks} ranks", median["exact"] / median["library"], limit)
        at_most(record, f"fast over MPI_Allreduce, {ranks} ranks", median["fast"] / median["library"])
    save(record, "allreduce")


if __name__ == "__main__":
    main()
