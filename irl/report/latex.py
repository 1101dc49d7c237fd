"""The tables of estimates as LaTeX, for papers: ``RUN/tables/NAME.tex``, each a ``tabular`` in booktabs style.

Use: ``\\usepackage{booktabs}`` and ``\\input{coefficients.tex}`` inside a table.
"""

from __future__ import annotations

from pathlib import Path

from irl import runs
from irl.report import attention, attribution, backtest, contracts, estimates, falsification, sensitivity, types
from irl.report.record import Record
from irl.report.tables import Table

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "χ²": r"$\chi^2$",
    "<": "$<$", ">": "$>$",
}  # fmt: skip


def write_latex(record: Record) -> list[Path]:
    """Write every table of estimates that the run has; the paths."""
    found = {
        "rewards": estimates.reward_table(record),
        "contributions": estimates.contribution_table(record),
        "coefficients": estimates.coefficient_table(record),
        "wald": estimates.wald_table(record),
        "contracts": contracts.contract_table(record),
        "types": types.type_table(record),
        "number_of_types": types.number_table(record),
        "attention": attention.attention_table(record),
        "always_decided": attention.always_table(record),
        "discount": sensitivity.profile_table(record),
        **sensitivity.tables_by_discount(record),
        **sensitivity.tables_by_shift(record),
        "bootstrap": estimates.bootstrap_table(record),
        "falsification": falsification.falsification_table(record),
        "attribution": attribution.attribution_table(record),
        "attribution_shares": attribution.share_table(record),
        **{f"{part}_errors": backtest.error_table(part, answer) for part, answer in backtest.parts(record).items()},
    }
    paths = []
    for name, table in found.items():
        if table is not None:
            path = record.folder / "tables" / f"{name}.tex"
            path.parent.mkdir(exist_ok=True)
            runs.atomic_write(path, latex(table))
            paths.append(path)
    return paths


def latex(table: Table) -> str:
    """The table as a LaTeX ``tabular``; its title and note as comments above it."""
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [f"% {line}" for line in (table.title, *table.note.splitlines())]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(table.header), r"\midrule"]
    lines += [_row(row) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _row(cells: tuple[str, ...]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + r" \\"


def _escaped(text: str) -> str:
    text = text.replace("χ²", "\0")
    return "".join(SPECIAL.get(c, c) for c in text).replace("\0", SPECIAL["χ²"])
