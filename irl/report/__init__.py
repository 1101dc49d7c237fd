"""The report of a run: what was estimated, from what, how well, and what the scenarios answered."""

from irl.report.html import write_report
from irl.report.latex import write_latex
from irl.report.record import load_record
from irl.report.terminal import print_report
from irl.report.truth import against_truth, recovery

__all__ = ["against_truth", "load_record", "print_report", "recovery", "write_latex", "write_report"]
