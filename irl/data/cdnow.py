"""Purchases of CDs as a study: the customers who came to CDNOW in the first quarter of 1997, month by month.

Source: Fader & Hardie (2001), *Forecasting Repeat Sales at CDNOW*, Interfaces 31, S94-S107, as it ships in the PyPI
package ``Lifetimes``: 23,570 customers up to June 1998, and the 1/10 sample that the literature uses. The choice of a
month is to buy not at all, once, or more often. The month of the first purchase is what makes a customer, and no row:
rows begin in the month after, and `last` of the first says whether that month had more than one purchase.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from irl.config import InputError
from irl.data.packaged import packaged

MONTHS = 18
MOST_MONTHS = 12
"""Months with a purchase from which on they are no longer counted."""
FILES = {True: "CDNOW_sample.txt", False: "CDNOW_master.txt"}


def transactions(file: Path | None = None, *, sample: bool = True) -> pd.DataFrame:
    """One row per purchase: customer, date, value (dollars).

    Parameters
    ----------
    file : the text file, if not the package's: customer, (number in the sample,) date, number of CDs, dollars.
    sample : the 1/10 sample, or all customers.

    Raises
    ------
    InputError
        If the package ``Lifetimes`` is not installed, or the file is not of this form.
    """
    path = file or packaged("lifetimes", f"datasets/{FILES[sample]}", extra="bench", what="the CDNOW purchases")
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    numbered = [line for line in lines if line and line[0].isdigit()]
    widths = {len(line) for line in numbered}
    if widths not in ({4}, {5}):
        raise InputError(f"{path}: lines should have 4 or 5 numbers: customer, (number,) date, CDs, dollars")
    raw = pd.DataFrame(numbered)
    date = pd.to_datetime(raw.iloc[:, -3], format="%Y%m%d", errors="coerce")
    value = pd.to_numeric(raw.iloc[:, -1], errors="coerce")
    if date.isna().any() or value.isna().any():
        raise InputError(f"{path}: {int((date.isna() | value.isna()).sum())} lines have no date or no amount")
    return pd.DataFrame({"customer": raw[0].astype(np.int64), "date": date, "value": value})


def cdnow(bought: pd.DataFrame) -> pd.DataFrame:
    """One row per customer and month after the first purchase's: customer, month (1: January 1997), choice, recency
    (months since the last with a purchase), away (its logarithm, to two decimals), last (what was chosen then: once or
    more), frequency (months with one so far, up to ``MOST_MONTHS``), tenure (months since the first), purchases (days
    with one in the month: what the choice came to), spent (dollars).

    ``bought``: the purchases, as :func:`transactions` gives them.
    """
    start = bought["date"].min()
    month = 12 * (bought["date"].dt.year - start.year) + bought["date"].dt.month
    by_month = bought.assign(month=month).groupby(["customer", "month"])
    months = range(1, MONTHS + 1)
    spent = by_month["value"].sum().unstack(fill_value=0).reindex(columns=months, fill_value=0.0)
    counted = by_month["date"].nunique().unstack(fill_value=0).reindex(columns=months, fill_value=0).to_numpy()
    first, recency = (counted > 0).argmax(1), np.zeros(len(counted), dtype=np.int64)
    frequency, last, rows = np.zeros_like(recency), np.zeros_like(recency), []
    for t in range(MONTHS):
        buys, here = counted[:, t] > 0, first < t
        rows.append(
            pd.DataFrame(
                {
                    "customer": spent.index,
                    "month": t + 1,
                    "choice": np.array(["none", "once", "more"])[counted[:, t].clip(0, 2)],
                    "recency": recency + 1,
                    "away": np.log(recency + 1).round(2),
                    "last": np.where(last > 1, "more", "once"),
                    "frequency": frequency.clip(0, MOST_MONTHS),
                    "tenure": t - first,
                    "purchases": counted[:, t],
                    "spent": spent[t + 1].to_numpy(),
                }
            )[here]
        )
        recency = np.where(buys, 0, recency + 1)
        frequency, last = frequency + buys, np.where(buys, counted[:, t], last)
    found: pd.DataFrame = pd.concat(rows).sort_values(["customer", "month"], ignore_index=True)
    return found
