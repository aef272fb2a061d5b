"""Runs us and our peers in turn and writes down the ratios.

    hatch run bench:run [--rows decode1,train] [--rounds 7] [--contenders lm,transformers]

Absolute times of a shared machine mean little, so every round runs all contenders one after the
other and only ratios within a round are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import preparing
import report
from bench import Bench
from driver import ContenderError
from rows import ROWS

HERE = Path(__file__).parent
CONTENDERS = ("lm", "transformers", "llama.cpp")


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, and stores it in results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = [name for name, row in ROWS.items() if row.measure != "preparation" or preparing.here()]
    parser.add_argument("--rows", default=",".join(here), help="default: %(default)s")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="two rounds; nothing is stored")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="where to store")
    args = parser.parse_args(argv)
    rows = args.rows.split(",")
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    args.output.mkdir(parents=True, exist_ok=True)
    store = args.output / "results.json"
    results = json.loads(store.read_text()) if store.exists() and not args.quick else {}
    with tempfile.TemporaryDirectory(prefix="lm-bench-") as scratch:
        rounds = 2 if args.quick else args.rounds
        bench = Bench(Path(scratch), args.contenders.split(","), rounds)
        for name in rows:
            print(f"-- {name}: {ROWS[name].title}", file=sys.stderr, flush=True)
            try:
                results[name] = bench.measure(name)
            except ContenderError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(report.table({name: results[name]}), flush=True)
            if not args.quick:  # at once: a later row may fail
                store.write_text(json.dumps(results, indent=1) + "\n")
                report.write(args.output / "RESULTS.md", results)
    print(report.table({name: results[name] for name in rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
