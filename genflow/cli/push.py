"""``genflow push``: a model with its card, to the Hugging Face hub or to a folder."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from genflow.config_files import load_config, parse_arguments, to_toml
from genflow.files import atomic_folder

if TYPE_CHECKING:
    from genflow.card import Training
    from genflow.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """What ``genflow push`` takes."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a saved model."""
    repo: str
    """Hub repository, OWNER/NAME; it is created if there is none."""
    private: bool = False
    """Only its owner can see the repository."""
    dry_run: bool = False
    """Write what would be uploaded to a folder, and upload nothing."""
    out: Path | None = None
    """Folder for --dry-run; by default RUN/hub."""
    figures: tuple[Path, ...] = ()
    """Files that genflow fid --out wrote about this model; those in RUN are found."""
    license: str = ""
    """License of the model, as the hub calls it (apache-2.0, ...); without it the card says that none is chosen."""


def push(arguments: Sequence[str], *, prog: str = "genflow push") -> None:
    """Assemble what is shared of a run, and upload it."""
    options = parse_arguments(
        PushArguments,
        arguments,
        prog=prog,
        about="Share a model: weights, card, recipe and a preview, without the local paths of whoever trained it.",
    )
    _check_options(options)
    out = options.out or options.run / "hub"
    if options.dry_run and out.exists():
        raise ValueError(f"{out} exists: remove it, or give another --out")
    if not options.dry_run:
        _check_token()
    from genflow.card import check_figure
    from genflow.cli.models import weights_hash
    from genflow.denoiser import Denoiser

    inner = options.run / "model"
    denoiser = Denoiser.from_pretrained(inner if inner.is_dir() else options.run)
    weights = weights_hash(denoiser)
    figures = _read_figures(options)
    for path, record in figures.items():
        check_figure(record, str(path), weights)
    if options.dry_run:
        with atomic_folder(out) as folder:
            _assemble(folder, denoiser, list(figures.values()), options)
        shown = options.repo + (" (private)" if options.private else "")
        print(f"{out}: what would be uploaded to {shown}")
        print("\n".join(f"  {name}  {size:,} bytes" for name, size in _listing(out)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        _assemble(Path(temporary), denoiser, list(figures.values()), options)
        print(f"{_upload(Path(temporary), options)}: {len(_listing(Path(temporary)))} files uploaded")


def _check_options(options: PushArguments) -> None:
    """Refuse what needs no model to be refused."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not options.run.is_dir():
        raise ValueError(f"there is no run {options.run}: give the folder of a run or of a saved model")
    if not any(
        (options.run / name).is_file() for name in ("model/model_index.json", "model_index.json", "config.json")
    ):
        raise ValueError(f"{options.run} holds no model: train it first, or give the folder of a saved model")
    try:
        validate_repo_id(options.repo)
        well_formed = options.repo.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise ValueError(f"--repo {options.repo!r} is not OWNER/NAME (letters, digits, '-', '_', '.')")
    if options.out is not None and not options.dry_run:
        raise ValueError("--out is where --dry-run writes: add --dry-run, or leave --out away")
    if options.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", options.license):
        raise ValueError(
            f"--license {options.license!r} is not a name of the hub's: such as apache-2.0, mit, cc-by-4.0"
        )


def _read_figures(options: PushArguments) -> dict[Path, Any]:
    """Return the records given, and those of models that lie in the run's folder, by file."""
    found = {path: _read_json(path) for path in options.figures}
    given = {path.resolve() for path in found}
    for path in sorted(options.run.glob("*.json")):
        record = _read_json(path)
        if path.resolve() not in given and isinstance(record, dict) and {"distance", "weights"} <= record.keys():
            found[path] = record
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _assemble(folder: Path, denoiser: Denoiser, figures: list[Any], options: PushArguments) -> None:
    """Write what is shared: the pipeline folder anew, the recipe, a preview and the card."""
    from genflow.card import PREVIEW, model_card
    from genflow.pictures import read_image, write_image
    from genflow.pipeline import GenflowPipeline

    GenflowPipeline(denoiser).save_pretrained(str(folder))
    training = _read_training(options.run)
    if training is not None:
        made = f"# {training.versions}\n" if training.versions else ""
        (folder / "config.toml").write_text(made + to_toml(training.config), encoding="utf-8")
    preview, caption = _find_preview(options.run)
    if preview is not None:
        write_image(folder / PREVIEW, read_image(preview))  # the pixels alone
    card = model_card(
        denoiser, options.repo, training=training, figures=figures, license=options.license, preview=caption
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _read_training(run: Path) -> Training | None:
    """Return what a run says of its training, without local paths, or None."""
    from genflow.card import Training, without_local_paths

    path = run / "config.toml"
    if not path.is_file():
        return None
    config = load_config(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    versions = re.fullmatch(r"# (genflow \S+(?:, [\w-]+ [\w.+-]+)*)", first)
    return Training(
        config=without_local_paths(config),
        steps=_steps_taken(run),
        versions=versions[1] if versions else "",
    )


def _steps_taken(run: Path) -> int | None:
    """Return the steps of the model: those of the newest checkpoint, written with it, or else of the log's end."""
    saved = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")]
    if saved:
        return max(saved)
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return json.loads(lines[-1])["step"] if lines else None


def _find_preview(run: Path) -> tuple[Path | None, str]:
    """Return the newest picture of a run and its caption; or the one that was shared before."""
    drawn = sorted((run / "previews").glob("step-*.png"))
    if drawn:
        step = int(drawn[-1].stem.removeprefix("step-"))
        return drawn[-1], f"Drawn by the run itself after step {step:,}, with the default sampler; nothing picked."
    shared = run / "preview.png"
    return (shared, "Drawn in training.") if shared.is_file() else (None, "")


def _listing(folder: Path) -> list[tuple[str, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def _check_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError("there is no Hugging Face token here: run `hf auth login`, or look at it with --dry-run")


def _upload(folder: Path, options: PushArguments) -> str:
    """Create the repository if need be, replace what it holds of the model, and return its address.

    Raises ``RuntimeError`` for a hub that cannot be reached or refuses, ``ValueError`` for a repository that is public
    where a private one was asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.errors import HTTPError as TransportError  # pyright: ignore[reportPrivateImportUsage]

    api = HfApi(library_name="genflow")
    try:
        url = api.create_repo(options.repo, private=options.private or None, exist_ok=True)
        if options.private and not api.model_info(options.repo).private:
            raise ValueError(f"{options.repo} exists and is public: make it private first, or leave --private away")
        api.upload_folder(
            repo_id=options.repo,
            folder_path=folder,
            commit_message="Share a genflow model",
            delete_patterns=["denoiser/*"],  # weights of an earlier upload under other file names
        )
    except LocalTokenNotFoundError:
        raise ValueError("the hub wants a token: run `hf auth login`") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = "the token is not valid: run `hf auth login`" if status == 401 else _first_line(error)
        raise RuntimeError(f"the hub refused {options.repo} ({status}): {why}") from None
    except (TransportError, ConnectionError) as error:
        raise RuntimeError(f"cannot reach the hub ({_first_line(error)}): nothing was shared, try again") from None
    return str(url)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
