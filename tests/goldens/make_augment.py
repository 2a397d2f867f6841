"""Make the golden of test_augmentation.py: what the published augmentation makes of images, and its labels.

    git clone https://github.com/NVlabs/edm
    PYTHONPATH=tests python tests/goldens/make_augment.py --edm edm

augment.npz has the outputs and the labels for the images of `images`, with every operation done. The published code
pads by no more than an image's own size and fills what lies beyond with zeros, where the paper mirrors: the golden is
refused if an image sees so far.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from goldens.weights import fill
from torch import Tensor

FILE = Path(__file__).parent / "augment.npz"


def images() -> Tensor:
    return 20 * fill({"images": (12, 2 * 24 * 20)})["images"].view(12, 2, 24, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edm", required=True, type=Path, help="a checkout of NVlabs/edm")
    sys.path.insert(0, str(parser.parse_args().edm))
    from training.augment import AugmentPipe  # the published augmentation

    pipe = AugmentPipe(p=1, xflip=1, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)
    torch.manual_seed(3)
    out, labels = pipe(images())
    torch.manual_seed(3)
    brighter, _ = pipe(images() + 1)
    torch.testing.assert_close(brighter, out + 1, rtol=0, atol=1e-3)  # no zeros
    np.savez_compressed(FILE, labels=labels.numpy(), out=out.numpy())


if __name__ == "__main__":
    main()
