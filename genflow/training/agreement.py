"""Whether the processes of a run mean the same run."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from accelerate import Accelerator


def agree(what: str, value: str, accelerator: Accelerator) -> None:
    """Make sure that all processes hold the same value.

    Raises ``RuntimeError`` naming ``what``, in every process, if they do not.
    """
    words = hashlib.sha256(value.encode()).digest()
    mine = torch.tensor(
        [[int.from_bytes(words[k : k + 4], "big") for k in (0, 4)]], device=accelerator.device
    )  # (1, 2)
    everyone: Any = accelerator.gather(mine)  # from (1, 2) in each to (processes, 2)
    other = (everyone != everyone[:1]).any(dim=1).nonzero().flatten().tolist()
    if other:
        raise RuntimeError(
            f"the processes differ in {what} (process {other[0]} from process 0; this one has {value}): give all"
            " machines the same options, data and, for runs, a shared folder"
        )
