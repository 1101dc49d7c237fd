"""The report of a run: what was estimated, from what, how well, and what the scenarios answered."""

from irl.report.card import write_card
from irl.report.html import write_report
from irl.report.latex import write_latex
from irl.report.record import load_record
from irl.report.tensorboard import log_run, log_scenario
from irl.report.terminal import print_answer, print_report
from irl.report.truth import against_truth, recovery

__all__ = [
    "against_truth",
    "load_record",
    "log_run",
    "log_scenario",
    "print_answer",
    "print_report",
    "recovery",
    "write_card",
    "write_latex",
    "write_report",
]
