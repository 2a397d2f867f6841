"""``genflow kind``: finds what is to be done with a decomposed model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

USAGE = """\
usage: genflow kind COMMAND ...

Take models apart that were trained with KIND (arXiv 2408.07337), and put them together. Their kernels are made of
learngenes, which all classes share, and tailors, each of which belongs to some classes. What is written is a model
folder like any other; the models given stay as they are.

commands:
  info MODEL            parameters, products and bytes of learngenes, tailors and the rest
  extract MODEL         a smaller model of some classes, without training
  grow MODEL            new random tailors for new classes, to be trained: the transfer of learngenes
  recombine PART PART   one model with the classes of several parts of one
  merge MODEL           the dense model of one class

examples, from pre-training to transfer:
  genflow train tiny-kind                                              # digits 0 to 5
  genflow kind info runs/tiny-kind
  genflow kind extract runs/tiny-kind --classes 3,5 -o small/
  genflow sample small/                                                # threes and fives
  genflow kind grow runs/tiny-kind --classes 4 --drop -o grown/        # learngenes, and four new classes
  genflow train tiny-kind-transfer --init grown/                       # digits 6 to 9; learngenes are frozen
  genflow kind merge runs/tiny-kind --label 3 -o three/

genflow kind COMMAND --help explains every option. MODEL is a run's folder, a saved model or a hub repository.
"""
COMMANDS = ("info", "extract", "grow", "recombine", "merge")


def kind(arguments: Sequence[str]) -> None:
    """Do what the first argument names with the others."""
    match list(arguments):
        case []:
            raise ValueError(f"name what to do: genflow kind {'|'.join(COMMANDS)} (see genflow kind --help)")
        case ["-h" | "--help", *_]:
            print(USAGE)
        case ["info", *rest]:
            from genflow.cli.kind_info import show_info

            show_info(rest)
        case ["extract", *rest]:
            from genflow.cli.kind_parts import extract_classes

            extract_classes(rest)
        case ["grow", *rest]:
            from genflow.cli.kind_parts import grow

            grow(rest)
        case ["recombine", *rest]:
            from genflow.cli.kind_parts import recombine_parts

            recombine_parts(rest)
        case ["merge", *rest]:
            from genflow.cli.kind_parts import merge_class

            merge_class(rest)
        case [command, *_]:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            raise ValueError(f"unknown command {command!r} of genflow kind; {hint}")
