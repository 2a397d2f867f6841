"""Train a model that comes apart: KIND's pre-training with diversion, and its transfer to new classes.

    accelerate launch train/kind.py train/configs/tiny-kind.toml --surgery.learngenes 0.4

Kernels are sums of components: learngenes are on for every image, the tailor of a class for its images only, so that
what classes share and what sets them apart end up in different parameters. Afterwards genflow kind takes the model
apart (extract, merge), and grows it new tailors, which tiny-kind-transfer trains with the learngenes frozen.
A minute on a CPU: accelerate launch train/kind.py tiny-kind --train.steps 200
The same command again continues the run; --help lists every option.
Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models", arXiv 2408.07337.
"""

import sys

from genflow.cli.main import guard
from genflow.cli.train import train

if __name__ == "__main__":
    sys.exit(guard(lambda: train(sys.argv[1:], prog="train/kind.py")))
