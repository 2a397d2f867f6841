"""Train a consistency model (CT, CD, iCT, ECT).

    accelerate launch train/consistency.py train/configs/tiny-ict.toml --optim.lr 3e-4

A minute on a CPU: accelerate launch train/consistency.py tiny-ict --train.steps 200
The same command again continues the run; --help lists every option.
"""

import sys

from genflow.cli.main import guard
from genflow.cli.train import train

if __name__ == "__main__":
    sys.exit(guard(lambda: train(sys.argv[1:], prog="train/consistency.py")))
