"""What members value, learned from what they chose, and what they would choose if the programme were different.

``irl.load("RUN")`` gives the fitted model of a run; ``irl.simulate(model, scenario, frame)`` the outcomes of a
scenario. Both are imported on first use, so that ``import irl`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irl.counterfactual import simulate
    from irl.fitted import load

__all__ = ["__version__", "load", "simulate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from irl.fitted import load

        return load
    if name == "simulate":
        from irl.counterfactual import simulate

        return simulate
    raise AttributeError(f"module 'irl' has no attribute {name!r}")
