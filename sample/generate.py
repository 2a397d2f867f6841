"""Sample a model: seeds to images.

    python sample/generate.py runs/tiny-rf/model --num 64 --steps 4 --out samples/
    torchrun --nproc_per_node 8 -- sample/generate.py runs/tiny-rf/model --num 50000 --out samples/

The same seed is the same image whatever else is asked for; --help lists every option.
"""

import sys

from genflow.cli.main import guard
from genflow.cli.sample import sample

if __name__ == "__main__":
    sys.exit(guard(lambda: sample(sys.argv[1:], prog="sample/generate.py")))
