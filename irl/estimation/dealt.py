"""The members of one study dealt out to several processes.

All have the same schema, encoders and members held out. Of a large panel store every process reads its own buckets; of
another panel, all, and then keeps its own members (:func:`irl.data.panel.part_of`). What is estimated from rows is a
sum over those of all processes; networks are trained by Lightning's DDP strategy (:mod:`irl.estimation.training`);
small systems of equations are solved by each process alike. With the same number of processes the numbers are the same
again; with another they differ as they do from another order of the rows, and by the random numbers that each process
draws for itself.

Limits: hidden types, attention and the tests of assumptions are not dealt out (the tests run afterwards, in one
process); machines should be of one kind, since processes that round differently would in time decide differently. Where
each process reads its own buckets, what is said of the sampling (:mod:`irl.data.sampling`) is of the first one's, which
are a random sample of the members.
"""

from __future__ import annotations

import os

import torch

from irl import processes
from irl.config import Config, InputError
from irl.data.panel import Panel, part_of


def dealt(config: Config, panel: Panel, device: torch.device) -> Panel:
    """This process's part of the panel: all of it, if there is one process.

    Raises
    ------
    InputError
        If the study cannot be estimated by several processes, or not by so many.
    """
    process, number = processes.group()
    if number == 1:
        return panel
    problems = []
    if config.types.number > 1:
        problems.append("`types`: hidden types are estimated by one process so far")
    if config.attention is not None:
        problems.append("`attention` is estimated by one process so far")
    if config.estimation.falsification:
        problems.append("`estimation.falsification`: set it to false, and run scripts/falsify.py afterwards")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ":" in str(device):
        problems.append(f"--device {device}: every process takes a GPU of its own; give auto or cuda")
    if device.type == "cuda" and here > torch.cuda.device_count():
        problems.append(f"{here} processes for {torch.cuda.device_count()} GPUs: start one for each")
    if problems:
        raise InputError("the study cannot be trained by several processes as it is:\n  " + "\n  ".join(problems))
    part = panel if panel.origin is not None else part_of(panel, process, number)
    for what, rows in {"row with a choice": part.free, "pair of consecutive rows": part.next_row >= 0}.items():
        if processes.anywhere(not bool(rows.any())):
            raise InputError(f"{number} processes are too many for this panel: one of them has no {what}; start fewer")
    return part
