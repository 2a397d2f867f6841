"""Whether the processes of a run mean the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


def agree(what: str, values: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Make sure that all processes hold the same values (of JSON).

    Raises ``RuntimeError`` naming ``what`` and a value that differs, in every process, if they do not.
    """
    text = json.dumps(dict(values), sort_keys=True)
    words = hashlib.sha256(text.encode()).digest()
    mine = torch.tensor([[int.from_bytes(words[k : k + 4], "big") for k in (0, 4)]], device=accelerator.device)
    everyone: Any = accelerator.gather(mine)  # from (1, 2) in each to (processes, 2)
    if (everyone == everyone[:1]).all():
        return
    first, *others = (json.loads(each) for each in gather_object([text]))
    rank, key = next((k, key) for k, other in enumerate(others, 1) for key in first if other.get(key) != first[key])
    raise RuntimeError(
        f"the processes differ in {what}: {key} is {first[key]} in process 0 and {others[rank - 1].get(key)} in process"
        f" {rank}; give all machines the same options and data, and runs a shared folder"
    )
