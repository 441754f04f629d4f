"""Compare runs: a table of what they reached and of the settings in which they differ, the best first.

python scripts/leaderboard.py logs/dogs_resnet --sort test/acc
python scripts/leaderboard.py logs --over seed,data.fold      means and deviations over seeds and folds
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from classifier.cli import show_any_text
from classifier.errors import UserError
from classifier.tools.leaderboard import compare

WRONG_INPUT = 2  # exit code


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("logs"), help="runs lie below it (%(default)s)")
    parser.add_argument(
        "--sort", metavar="METRIC", default="", help="such as test/acc, fit_seconds (what the runs monitor)"
    )
    parser.add_argument(
        "--over", metavar="KEYS", default="", help="average runs that differ in these alone: seed,data.fold"
    )
    parser.add_argument("--name", metavar="TEXT", default="", help="only runs with TEXT in their path")
    parser.add_argument(
        "--columns", metavar="METRICS", default="", help="to show beside the first: test/acc,epoch,fit_seconds"
    )
    parser.add_argument("--limit", type=int, metavar="N", default=sys.maxsize, help="only the first N rows")
    parser.add_argument(
        "--csv", metavar="FILE", default="", help="write all metrics here, too; -: print them, no table"
    )
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    show_any_text()
    try:
        arguments = parse_arguments(words)
        lists = {key: [word for word in getattr(arguments, key).split(",") if word] for key in ("over", "columns")}
        compare(**{**vars(arguments), **lists})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)


if __name__ == "__main__":
    main(sys.argv[1:])
