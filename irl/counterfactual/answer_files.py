"""An answer as files: what it was asked of, and what is written at its end, small segments withheld."""

from __future__ import annotations

from pathlib import Path

import yaml

from irl import runs
from irl.counterfactual import kept
from irl.counterfactual.outcomes import Answer, Question


def asked(question: Question, run: Path) -> dict[str, str]:
    """What an answer depends on, by which one that was stopped is known again.

    Raises
    ------
    InputError
        If there are too few members for any figure to be written.
    """
    question.withheld.refuse_nothing()
    starts = question.starts
    return {
        "scenario": question.scenario.model_dump_json(),
        "run": str(run),
        "model": runs.fingerprint(run / "model" / "model.json"),
        "members": runs.fingerprint(starts.state, starts.segment, question.rows.state, question.rows.weight),
    }


def write_answer(folder: Path, question: Question, found: Answer, *, seconds: float) -> None:
    """``scenario.yaml``, ``outcomes.parquet`` and, last, ``metrics.json``, without figures of withheld segments."""
    withheld = question.withheld
    content = question.scenario.model_dump(mode="json", exclude_none=True)
    runs.atomic_write(folder / "scenario.yaml", yaml.safe_dump(content, sort_keys=False))
    shown = found.outcomes[~found.outcomes["segment"].isin(withheld.names)]
    runs.atomic_write(folder / "outcomes.parquet", shown.to_parquet(index=False))
    about = {"solved": found.solved, "members": found.members, "seconds": seconds, "money": found.money}
    runs.write_json(folder / runs.LAST, withheld.left(about) | {"withheld": withheld.plain()})
    (folder / kept.FILE).unlink(missing_ok=True)
