"""From launch to the first collective: the program against a C program that does nothing else.

The C program (hello.c, compiled here with mpicc) calls MPI_Init and one all-reduce, then rank 0
prints a line. Ours is `trainer inspect` of a table of one protein: its ranks start MPI, compare
program and command with each other, which takes several collectives, then rank 0 reads the table
and prints. So our figure is an upper bound. The clock stops at the first byte on standard output.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from common import HERE, arguments, at_most, fail, header, measured, mpirun, program, run, save


def first_byte(command):
    """Seconds from launch to the first byte on standard output; waits for a clean end."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    byte = child.stdout.read(1)
    taken = time.perf_counter() - start
    _, said = child.communicate()
    if child.returncode != 0 or not byte:
        fail(f"{' '.join(command)} ended with {child.returncode}\n{said.decode()[-3000:]}")
    return taken


def main():
    args = arguments(__doc__, repetitions=9)
    record = header("launch to the first collective")
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        hello, table = Path(work) / "hello", Path(work) / "one.csv"
        run(["mpicc", "-O2", "-o", str(hello), str(HERE / "hello.c")])
        table.write_text("unique_id,ori_seq,ptm_seq\nP,MKS,MK<Phosphoserine>\n")
        for ranks in (2, 8):
            theirs, mine = [], []
            for _ in range(args.repetitions + 1):
                theirs.append(first_byte([*mpirun(ranks), str(hello)]))
                if not args.peer_only:
                    mine.append(first_byte([*mpirun(ranks), program(), "inspect", str(table)]))
            # The first of each fills the page cache.
            peer_s = measured(record, f"C, {ranks} ranks", theirs[1:], "starts")
            if not args.peer_only:
                own_s = measured(record, f"ours, {ranks} ranks", mine[1:], "starts")
                at_most(record, f"ours over C, {ranks} ranks", own_s / peer_s, 2.2)
    save(record, "launch")


if __name__ == "__main__":
    main()
