"""How much of the time for summing gradients over two ranks is hidden behind backward.

The example `bench_overlap` takes steps of PTM-Mamba in turn: without any sum over ranks, with one
after backward (`distributed.overlap: false`), with one during backward. The hidden share is
(after - during) / (after - none), of the medians. Every rank has one core and one thread.

The ranks talk over TCP, through a link of --gbit Gbit/s for both directions together: a network
namespace whose loopback `tc` slows down, which needs root. With --gbit 0 they talk through the
node's memory. There the sum is itself work for the cores that backward uses, and little can be hidden.
"""

import contextlib
import os
from pathlib import Path

from common import arguments, example, header, json_line, measured, pinned, ratio, run, save


@contextlib.contextmanager
def link(gbit):
    """How to start two ranks on either side of a link: (words in front of mpirun, options of it)."""
    if not gbit:
        yield [], []
        return
    space = f"bench-{os.getpid()}"
    inside = ["ip", "netns", "exec", space]
    run(["ip", "netns", "add", space])
    try:
        run([*inside, "ip", "link", "set", "lo", "up"])
        run([*inside, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", f"{gbit}gbit",
             "burst", "1mb", "latency", "200ms"])
        yield inside, ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
    finally:
        run(["ip", "netns", "del", space])


def main():
    args = arguments(__doc__, repetitions=15, layers=4, d_model=768, batch=6, length=192, micro_batches=1, gbit=2)
    if args.peer_only:
        return print(f"# {Path(__file__).stem}: nothing to measure without our build")
    record = header("sum of gradients during backward, 2 ranks")
    print(f"# through a link of {args.gbit} Gbit/s" if args.gbit else "# through the node's memory")
    with link(args.gbit) as (inside, options):
        measure(args, record, inside, options)
    save(record, "overlap" if args.gbit else "overlap-memory")


def measure(args, record, inside, options):
    for kind in ("exact", "fast"):
        mpirun, *rest = pinned(2)
        command = [*inside, mpirun, *options, *rest, example("bench_overlap"), "--repeats", str(args.repetitions)]
        for key in ("layers", "d_model", "batch", "length", "micro_batches"):
            command += ["--" + key.replace("_", "-"), str(getattr(args, key))]
        said = json_line(run(command + (["--fast"] if kind == "fast" else []))[1], "during")
        print(f"# {said['gradient_bytes'] / 2**20:.0f} MB of gradient")
        none, after, during = (
            measured(record, f"{kind}: {what}", said[key], "steps", 1)
            for what, key in (("no sum", "none"), ("sum after backward", "after"), ("sum during backward", "during"))
        )
        ratio(record, f"{kind}: hidden share", (after - during) / (after - none), 1 / 3)


if __name__ == "__main__":
    main()
