"""``genflow``: finds the subcommand, and turns errors into one line.

Nothing heavy is imported before the subcommand is known, so that ``genflow --help`` answers at once.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from genflow.processes import check_alone

USAGE = """\
usage: genflow COMMAND ...

Train and sample image generators that need one, two or many network calls.

commands:
  train RECIPE        train a model, or continue a run: the same command again resumes it
  sample MODEL        write images, one per seed
  pairs TEACHER       make reflow pairs, of seeds or of real images, for a student to train on
  invert MODEL IMAGES carry images back to noise: reconstruct them, translate them, draw what lies between
  fid SAMPLES REF     how far a model's samples, or images, are from a reference: figures with their protocol
  stats DATA          mean and covariance of a reference's features, as a file to give to fid
  straightness MODEL  how straight flows are, before and after reflow; drawn by --picture
  kind COMMAND        take KIND's decomposed models apart, grow them, put them together (genflow kind --help)
  search-times MODEL  find the noise levels between a consistency model's steps, and store them with it
  compare FILES       rank what fid --out wrote, if it was measured alike
  import WEIGHTS      turn published weights of EDM, rfpp or DiT into a model folder
  push RUN            share a model with its card on the Hugging Face hub
  demo                train on embedded digits, sample, measure, draw: a few minutes on a CPU
  demo-reflow         make that model's flow straight, for one network call: ten CPU-minutes

examples:
  genflow train tiny-rf
  genflow train tiny-edm --data.path photos/ --data.size 32 --name mine --optim.lr 3e-4
  genflow sample runs/tiny-rf/model --num 64 --steps 4 --out samples/
  genflow pairs runs/tiny-edm/model --num 10000 --out pairs/
  genflow pairs runs/tiny-edm/model --invert digits --out real-pairs/
  genflow invert runs/tiny-rf/model digits --to 3 8 --interpolate 10 --out inverted/
  genflow fid runs/tiny-rf/model digits --steps 1,2,4 --out result.json --report report.html
  genflow stats photos/ --data.size 64 -o photos.npz
  genflow straightness runs/teacher/model runs/student/model --pairs pairs/ --picture paths.png
  genflow kind extract runs/tiny-kind --classes 3,5 -o small/
  genflow search-times runs/tiny-ict/model digits --steps 2
  genflow compare before.json after.json
  genflow import edm-cifar10.safetensors --out models/edm-cifar10
  genflow push runs/mine --repo me/mine --dry-run

genflow COMMAND --help explains every option; genflow --version prints the version.
"""
COMMANDS = (
    *("train", "sample", "pairs", "invert", "fid", "stats", "straightness"),
    *("kind", "search-times", "compare", "import", "push", "demo", "demo-reflow"),
)
RESUMABLE = ("train", "sample", "pairs", "demo", "demo-reflow")
RESUMES = "stopped; the same command again continues from what is saved"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    match given:
        case [] | ["-h" | "--help", *_]:
            return guard(lambda: print(USAGE)) if given else _usage_error()
        case ["--version", *_]:
            from genflow import __version__

            print(f"genflow {__version__}")
            return 0
        case [command, *rest]:
            return guard(lambda: _run(command, rest), RESUMES if command in RESUMABLE else "stopped")
    return 2


def _usage_error() -> int:
    print(USAGE)
    return 2


def _run(command: str, rest: list[str]) -> None:
    if command not in ("train", "sample", "pairs", "fid", "stats"):
        check_alone(f"genflow {command}")
    match command:
        case "train":
            from genflow.cli.train import train

            train(rest)
        case "sample":
            from genflow.cli.sample import sample

            sample(rest)
        case "pairs":
            from genflow.cli.pairs import pairs

            pairs(rest)
        case "invert":
            from genflow.cli.invert import invert_images

            invert_images(rest)
        case "fid":
            from genflow.cli.fid import fid

            fid(rest)
        case "stats":
            from genflow.cli.stats import stats

            stats(rest)
        case "straightness":
            from genflow.cli.straightness import straightness

            straightness(rest)
        case "kind":
            from genflow.cli.kind import kind

            kind(rest)
        case "search-times":
            from genflow.cli.search_times import search_model_times

            search_model_times(rest)
        case "compare":
            from genflow.cli.compare import compare_files

            compare_files(rest)
        case "import":
            from genflow.cli.import_model import import_model

            import_model(rest)
        case "push":
            from genflow.cli.push import push

            push(rest)
        case "demo" | "demo-reflow":
            _demonstrate(command, rest)
        case _:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            raise ValueError(f"unknown command {command!r}; {hint}")


def _demonstrate(command: str, rest: list[str]) -> None:
    if command == "demo":
        from genflow.cli.demo import demo

        demo(rest)
    else:
        from genflow.cli.demo_reflow import demo_reflow

        demo_reflow(rest)


def guard(action: Callable[[], object], stopped: str = RESUMES) -> int:
    """Run an action; answer what a user can mend with one line on stderr and exit code 2, and Ctrl-C with ``stopped``.

    GENFLOW_TRACEBACK=1 in the environment shows the whole traceback instead.
    """
    if os.environ.get("GENFLOW_TRACEBACK"):
        action()
        return 0
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # read when it is imported: five retries are five lines
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")  # told to diffusers, not to our users
            action()
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (so that the interpreter's last flush fails on nothing)
        return 0
    except (ValueError, RuntimeError, OSError) as error:
        print(f"genflow: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"genflow: {stopped}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
