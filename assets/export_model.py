"""Make the small model that comes with genflow, and the pictures of the README, from a finished demo.

    make demo
    .venv/bin/python assets/export_model.py runs/demo

The weights are rounded to float16 for their size; they are loaded as float32.
"""

import shutil
import sys
from pathlib import Path

import torch

from genflow import Denoiser, GenflowPipeline

ASSETS = Path(__file__).parent


def main(run: Path) -> None:
    """Round the weights of a finished demo, and copy its pictures."""
    denoiser = Denoiser.from_pretrained(run / "model")
    target = ASSETS / "models" / "digits-rf"
    shutil.rmtree(target, ignore_errors=True)
    GenflowPipeline(denoiser.to(torch.float16)).save_pretrained(str(target))
    for file in target.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    (ASSETS / "pictures").mkdir(exist_ok=True)
    for name in ("samples-1", "samples-4", "samples-32", "real"):
        shutil.copyfile(run / f"{name}.png", ASSETS / "pictures" / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
