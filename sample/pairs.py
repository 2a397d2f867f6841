"""Make reflow pairs: the noise of a seed, and the image that a teacher's flow carries it to.

    python sample/pairs.py runs/tiny-edm/model --num 10000 --out pairs/
    torchrun --nproc_per_node 8 -- sample/pairs.py models/edm-cifar10 --num 1000000 --out pairs/
    python sample/pairs.py runs/tiny-edm/model --invert digits --out real-pairs/    # noise of images
    python train/rectified_flow.py RECIPE --data.path pairs/ --init runs/tiny-edm/model

What is there already is kept, and a larger --num adds to it; --help lists every option.
"""

import sys

from genflow.cli.main import guard
from genflow.cli.pairs import pairs

if __name__ == "__main__":
    sys.exit(guard(lambda: pairs(sys.argv[1:], prog="sample/pairs.py")))
