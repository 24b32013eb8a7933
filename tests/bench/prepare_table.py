"""`trainer prepare` of a table of 1,000,000 alloys: rows a second, and memory that the table does not fill.

The table is made here: as many columns as the MPEA table, a third of its rows with a composition of
their own, the others drawn from 2,000; some cells blank. Each repetition prepares one target anew, texts
in the elaborate style with element facts, from the process's start to its end. Peak memory is the largest
resident set of that process, libtorch included; a table of a tenth of the rows shows how much of it
the rows are responsible for.
"""

import csv
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from common import arguments, at_most, fail, header, measured, program, ratio, save

ELEMENTS = "Al Co Cr Fe Ni Ti Nb Mo Ta W Hf Zr V Cu Mn Si".split()
HEADER = [
    "IDENTIFIER: Reference ID", "FORMULA", "PROPERTY: Microstructure", "PROPERTY: Processing method",
    "PROPERTY: BCC/FCC/other", "PROPERTY: grain size ($\\mu$m)", "PROPERTY: Exp. Density (g/cm$^3$)",
    "PROPERTY: Calculated Density (g/cm$^3$)", "PROPERTY: HV", "PROPERTY: Type of test",
    "PROPERTY: Test temperature ($^\\circ$C)", "PROPERTY: YS (MPa)", "PROPERTY: UTS (MPa)",
    "PROPERTY: Elongation (%)", "PROPERTY: Elongation plastic (%)", "PROPERTY: Exp. Young modulus (GPa)",
    "PROPERTY: Calculated Young modulus (GPa)", "PROPERTY: O content (wppm)", "PROPERTY: N content (wppm)",
    "PROPERTY: C content (wppm)", "REFERENCE: doi", "REFERENCE: year", "REFERENCE: title",
]
ASKED = 50_000  # rows a second
CONFIG = """
recipe: alloy
dataset:
  dataset_location: {table}
  prepared_dir: {out}
  targets: {{all_data_YS: 'PROPERTY: YS (MPa)'}}
text: {{style: elaborate, element_facts: true}}
"""


def formula(rng):
    picked = sorted(rng.sample(ELEMENTS, rng.randint(3, 6)))
    return " ".join(f"{element}{rng.randint(1, 20) / 10:g}" for element in picked)


def make_table(path, rows, seed=5):
    """A table of random alloys; the same for the same number of rows."""
    rng = random.Random(seed)
    common = [formula(rng) for _ in range(2000)]
    phases = ["FCC", "BCC", "FCC+BCC", "BCC+Laves"]

    def maybe(share, low, high, digits):
        return f"{rng.uniform(low, high):.{digits}f}" if rng.random() < share else ""

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for row in range(rows):
            phase = rng.choice(phases)
            writer.writerow([
                row % 300, formula(rng) if rng.random() < 1 / 3 else rng.choice(common), phase,
                rng.choice(["CAST", "WROUGHT", "POWDER", "ANNEAL"]), phase if len(phase) == 3 else "other",
                maybe(0.15, 1, 500, 1), maybe(0.07, 4, 15, 2), f"{rng.uniform(4, 15):.1f}", maybe(0.35, 100, 900, 0),
                rng.choice("CT"), f"{rng.choice([25, 400, 800, 1200]):.1f}", f"{rng.uniform(50, 3000):.1f}",
                maybe(0.35, 50, 3500, 1), maybe(0.4, 0, 60, 1), maybe(0.1, 0, 60, 1), maybe(0.1, 70, 250, 0),
                maybe(0.5, 70, 250, 0), maybe(0.04, 10, 3000, 0), maybe(0.03, 10, 500, 0), "",
                f"10.1000/made.{row % 300}", 2000 + row % 20, "A title, with a comma, of a paper that does not exist",
            ])


def prepare(work, table):
    """Wall seconds and peak resident bytes of one `trainer prepare` from nothing."""
    config = work / "config.yaml"
    out = work / "all_data"
    config.write_text(CONFIG.format(table=table, out=out))
    start = time.perf_counter()
    child = subprocess.Popen([program(), "prepare", str(config), "--quiet"], stderr=subprocess.PIPE, text=True)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    if status != 0:
        fail(f"trainer prepare ended with status {status}\n{said[-3000:]}")
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return wall, usage.ru_maxrss * 1024, written


def main():
    args = arguments(__doc__, repetitions=5, rows=1_000_000)
    record = header("trainer prepare of a table, one target, elaborate texts")
    if args.peer_only:
        print("there is no peer: upstream's notebooks hold the table in memory and were not brought here")
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        work = Path(temporary)
        tables = {rows: work / f"table-{rows}.csv" for rows in (args.rows // 10, args.rows)}
        for rows, path in tables.items():
            make_table(path, rows)
        tenth = [prepare(work, tables[args.rows // 10]) for _ in range(args.repetitions)]
        whole = [prepare(work, tables[args.rows]) for _ in range(args.repetitions)]
        read = tables[args.rows].stat().st_size
    wall = measured(record, f"prepare, {args.rows:,} rows", [w for w, _, _ in whole], "rows", args.rows)
    peaks = {name: max(peak for _, peak, _ in runs) / 1e6 for name, runs in [("tenth", tenth), ("whole", whole)]}
    print(f"   {read / 1e6:.0f} MB read, {whole[0][2] / 1e6:.0f} MB written; peak memory {peaks['whole']:.0f} MB, "
          f"{peaks['tenth']:.0f} MB for a tenth of the rows", flush=True)
    record["peak_mb"] = peaks
    ratio(record, "rows a second over 50,000", args.rows / wall / ASKED, 1.0)
    at_most(record, "memory of the rows over the table", (peaks["whole"] - peaks["tenth"]) / (read / 1e6), 0.5)
    save(record, "prepare_table")


if __name__ == "__main__":
    main()
