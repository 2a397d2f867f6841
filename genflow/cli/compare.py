"""``genflow compare``: results beside each other, if they were measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from genflow.config_files import parse_arguments
from genflow.evaluation.comparison import Entry, compare, read_entries, to_markdown
from genflow.files import write_text

ABOUT = (
    "Rank results of genflow fid, the best first. Results of different protocols (another number of samples, another"
    " reference, other features ...) are refused, since their order would mean nothing: the refusal names what differs."
)


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """What ``genflow compare`` takes."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULT.json ...")]
    """Files that genflow fid --out wrote; each may hold several results, one for each number of steps."""
    ignore: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Field of the protocol that may differ, such as samples.n; give it again for more. The table tells of it."""
    out: Path | None = None
    """Markdown file for the table too."""


def compare_files(arguments: Sequence[str], *, prog: str = "genflow compare") -> None:
    """Print a table of the results in files."""
    options = parse_arguments(CompareArguments, arguments, prog=prog, about=ABOUT)
    entries: list[Entry] = []
    for path in dict.fromkeys(options.files):
        entries += read_entries(path, _short(path, options.files))
    table = to_markdown(compare(entries, options.ignore))
    print(table)
    if options.out is not None:
        write_text(options.out, table + "\n")


def _short(path: Path, others: Sequence[Path]) -> str:
    """Return the name of a file, with the folders that lead to it where another one is called the same."""
    return str(path) if sum(other.name == path.name for other in {*others}) > 1 else path.name
