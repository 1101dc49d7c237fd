"""Write RUN/report.html, RUN/model_card.md and RUN/tables/*.tex of a finished run and its scenarios; print its tables.

python scripts/report.py --run RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irl.command import user_errors
from irl.report import against_truth, load_record, print_report, write_card, write_latex, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    record = load_record(parser.parse_args().run)
    truth = against_truth(record)
    paths = [write_report(record, truth), write_card(record, truth)]
    write_latex(record)
    print_report(record, truth)
    print(f"model card: {paths[1]}\nreport: {paths[0]}")


if __name__ == "__main__":
    with user_errors():
        main()
