"""Puts the rank tables of several machines into one, for RANK_TABLE_FILE on each of them.

    python tools/merge_hccl.py hccl*.json

Servers are ordered by address and their ranks counted from 0, in whatever order the files are
given. What an earlier call wrote (hccl_2s_16p.json) is passed over.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lm_core.checkpoint.atomic import new_file
from lm_core.cli import guarded
from lm_core.errors import ConfigError
from lm_core.parallel import ranktable
from lm_core.parallel.ranktable import RankTable

OWN = re.compile(r"hccl_\d+s_\d+p\.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; the exit status."""
    return guarded(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="one of each machine")
    parser.add_argument(
        "--output_dir", type=Path, default=Path(), metavar="D", help="default: this folder"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    files = [path for path in args.files if not OWN.fullmatch(path.name)]
    for path in args.files:
        if path not in files:
            print(f"{path}: passed over, it was merged before", file=sys.stderr)
    if not files:
        raise ConfigError("files: none is left to merge; give the table of each machine")
    table = ranktable.merged(_read(files))
    problems = list(ranktable.problems(table))
    if problems:
        raise ConfigError(*problems)
    for address in ranktable.shared_addresses(table):
        print(
            f"warning: device_ip: {address} is on more than one server; devices that are to reach "
            f"each other need addresses of their own",
            file=sys.stderr,
        )
    path = args.output_dir / f"hccl_{len(table.servers)}s_{table.size}p.json"
    with new_file(path) as temporary:
        temporary.write_text(table.render(), encoding="utf-8")
    print(path)
    return 0


def _read(files: Sequence[Path]) -> list[RankTable]:
    """Every table, or the problems of all of them."""
    tables, problems = [], []
    for path in files:
        try:
            tables.append(ranktable.read(path))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return tables


if __name__ == "__main__":
    sys.exit(main())
