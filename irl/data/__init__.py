"""Panels of members: reading, checking, coding; what the columns mean."""

from irl.data.column import Column
from irl.data.describe import Summary, summary
from irl.data.fit import fit_schema
from irl.data.panel import Panel, panel_from_frame
from irl.data.read import read_fitted, read_frame, read_members, read_panel, read_periods_per_year, read_table
from irl.data.schema import StateSchema

__all__ = [
    "Column",
    "Panel",
    "StateSchema",
    "Summary",
    "fit_schema",
    "panel_from_frame",
    "read_fitted",
    "read_frame",
    "read_members",
    "read_panel",
    "read_periods_per_year",
    "read_table",
    "summary",
]
