"""Which implementations there are (choices of `dispatch`), and why one cannot run here."""

from __future__ import annotations

import torch

from gpu_stages.session import Session
from tokenreduce.ops.native import dispatch

NOT_HERE = {False: ("cpu",), True: ("cuda",)}  # by whether the run is a tiny one on a CPU


def choices(session: Session) -> list[str]:
    """The choices that can run here, the reference first: those for which some kernel says no reason against it."""
    absent = (*NOT_HERE[session.tiny], *session.left_out, "reference")
    known = [name for name in dispatch.CHOICES if name not in absent]
    return ["reference", *(name for name in known if name == "auto" or not all(reasons(name, session).values()))]


def reasons(choice: str, session: Session) -> dict[str, str]:
    """For each kernel why it is not taken, empty if it is."""
    x = torch.zeros(1, 8, 64, device=session.device, dtype=session.dtype)
    sizes = torch.ones(1, 8, device=session.device)
    with dispatch.using(choice), torch.inference_mode():
        return {name: dispatch.why_not(name, sizes if name == "size_bias" else x) for name in dispatch.KERNELS}
