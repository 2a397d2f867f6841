"""``genflow push``: a model with its card, to the Hugging Face hub or to a folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import tyro

from genflow.config_files import load_config, parse_arguments, to_toml
from genflow.files import atomic_folder

if TYPE_CHECKING:
    from genflow.card import Imported, Training
    from genflow.denoiser import Denoiser
    from genflow.evaluation.protocol import Result

# what an upload writes; what an earlier one left of it, under other names or without need, is removed
_OURS = ["denoiser/diffusion_pytorch_model*", "config.toml", "preview.png", "import.json"]


@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """What ``genflow push`` takes."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder, its model/ or best/, or a saved model."""
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
    from genflow.card import Imported
    from genflow.denoiser import Denoiser, weights_hash

    model = options.run / "model" if (options.run / "model").is_dir() else options.run
    denoiser = Denoiser.from_pretrained(model)
    weights = weights_hash(denoiser)
    figures = _read_figures(options, weights)
    origin = _read_import(model / "import.json") or _read_training(options.run)
    if isinstance(origin, Imported):
        print(
            "note: others published these weights, and their terms apply (the repositories of EDM, 2-RF++ and DiT carry"
            " their own, partly non-commercial): --license must agree with them"
        )
    if options.dry_run:
        with atomic_folder(out) as folder:
            _assemble(folder, denoiser, origin, figures, options)
        shown = options.repo + (" (private)" if options.private else "")
        print(f"{out}: what would be uploaded to {shown}")
        print("\n".join(f"  {name}  {size:,} bytes" for name, size in _listing(out)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        _assemble(Path(temporary), denoiser, origin, figures, options)
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


def _run_of(folder: Path) -> Path:
    """Return the run whose model/ or best/ this folder is, or the folder itself."""
    place = Path(os.path.abspath(folder))
    own = (folder / "config.toml").is_file() or (folder / "import.json").is_file()
    if own or place.name not in ("model", "best") or not (place.parent / "config.toml").is_file():
        return folder
    return folder.parent if folder.name == place.name else place.parent


def _read_figures(options: PushArguments, weights: str) -> list[Result]:
    """Return the results given, and those of models that lie in the run's folder, without local paths.

    For model/ or best/ of a run, those of the other one are left out.
    """
    from genflow.evaluation.comparison import read_entries

    found: list[Result] = []
    for path in options.figures:
        for result in (entry.result for entry in read_entries(path)):
            _check_figure(result, path, weights)
            found.append(result)
    given = {path.resolve() for path in options.figures}
    run = _run_of(options.run)
    for path in sorted({*options.run.glob("*.json"), *run.glob("*.json")}):
        if path.resolve() in given or not _holds_figures(path):
            continue
        for result in (entry.result for entry in read_entries(path)):
            sampling = result.protocol.samples.sampling
            if sampling is not None and (run == options.run or sampling.weights == weights):
                _check_figure(result, path, weights)
                found.append(result)
    from genflow.cli.local_paths import result_without_local_paths

    return [result_without_local_paths(result) for result in found]


def _holds_figures(path: Path) -> bool:
    """Tell figures, also those of a format that is not read any more, from other files of a run."""
    record = _read_json(path)
    return isinstance(record, dict) and ("results" in record or {"distance", "weights"} <= record.keys())


def _check_figure(result: Result, source: Path, weights: str) -> None:
    """Refuse what was not measured of the model with these weights, or cannot be read, naming ``source``."""
    samples, network = result.protocol.samples, result.protocol.network
    if samples.sampling is None:
        raise ValueError(f"{source} measured a folder of images, not a model: give figures of `genflow fid MODEL`")
    if samples.sampling.weights != weights:
        raise ValueError(f"{source} holds figures of another model: measure this one with `genflow fid --out`")
    needed = {"samples.n": samples.n, "samples.quantisation": samples.quantisation, "network.weights": network.weights}
    lacking = [name for name, value in needed.items() if value is None]
    if lacking:
        raise ValueError(f"{source} lacks {' and '.join(lacking)}, without which its figure cannot be read")


def _is_finite(value: Any) -> TypeGuard[int | float]:
    """Tell numbers from NaN, infinities, integers beyond all floats, booleans and everything else."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _assemble(
    folder: Path, denoiser: Denoiser, origin: Training | Imported | None, figures: list[Result], options: PushArguments
) -> None:
    """Write what is shared: the pipeline folder anew, where it came from, a preview and the card."""
    from genflow.card import PREVIEW, Imported, Training, model_card
    from genflow.pictures import read_image, write_image
    from genflow.pipeline import GenflowPipeline

    GenflowPipeline(denoiser).save_pretrained(str(folder))
    match origin:
        case Training(config=config, versions=versions):
            made = f"# {versions}\n" if versions else ""
            (folder / "config.toml").write_text(made + to_toml(config), encoding="utf-8")
        case Imported():
            (folder / "import.json").write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")
        case None:
            pass
    preview, caption = _find_preview(options.run, origin.steps if isinstance(origin, Training) else None)
    if preview is not None:
        write_image(folder / PREVIEW, read_image(preview))  # the pixels alone
    card = model_card(denoiser, options.repo, origin=origin, figures=figures, license=options.license, preview=caption)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _read_import(path: Path) -> Imported | None:
    """Return what ``genflow import`` wrote beside a model, without local paths, or None."""
    from genflow.card import Imported, last_name

    if not path.is_file():
        return None
    match _read_json(path):
        case {"source": str(source), "sha256": str(sha256), "method": str(method), "notes": list(notes)} if all(
            isinstance(note, str) for note in notes
        ):
            name = last_name(source, "weights")
            return Imported(method=method, source=name, sha256=sha256, notes=tuple(notes))
        case _:
            raise ValueError(f"{path} is not what `genflow import` writes: import the weights anew")


def _read_training(folder: Path) -> Training | None:
    """Return what the run of this folder says of its training, without local paths, or None."""
    from genflow.card import Training
    from genflow.cli.local_paths import without_local_paths

    run = _run_of(folder)
    path = run / "config.toml"
    if not path.is_file():
        return None
    config = load_config(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    versions = re.fullmatch(r"# (genflow \S+(?:, [\w-]+ [\w.+-]+)*)", first)
    best = run != folder and Path(os.path.abspath(folder)).name == "best"
    return Training(
        config=without_local_paths(config),
        steps=_step_of_best(run) if best else _step_of_model(run, config.train.steps),
        versions=versions[1] if versions else "",
        best=best,
    )


def _step_of_model(run: Path, total: int) -> int | None:
    """Return the steps of model/: those of the newest checkpoint, written with it, or of a log that is complete."""
    saved = _numbered(run / "checkpoints", "")
    if saved:
        return max(saved)
    log = _read_log(run)
    return total if log and log[-1]["step"] == total else None


def _step_of_best(run: Path) -> int | None:
    """Return the step at which the log has the lowest in-training distance, the first one of equals, if it has any."""
    found = [(r["frechet_train"], r["step"]) for r in _read_log(run) if _is_finite(r.get("frechet_train"))]
    return min(found)[1] if found else None


def _read_log(run: Path) -> list[dict[str, Any]]:
    """Return the records of log.jsonl; half a line, which a killed run leaves, is none."""
    path = run / "log.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int)]


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return what a folder holds for single steps, by step."""
    names = ((re.fullmatch(r"step-(\d+)", path.name.removesuffix(suffix)), path) for path in folder.glob(f"*{suffix}"))
    return {int(match[1]): path for match, path in names if match}


def _find_preview(folder: Path, steps: int | None) -> tuple[Path | None, str]:
    """Return the newest picture of a run that is not newer than its model, or the one shared before, with a caption."""
    drawn = _numbered(_run_of(folder) / "previews", ".png")
    if drawn:
        step = max((step for step in drawn if steps is not None and step <= steps), default=None)
        if step is None:
            return None, ""
        return drawn[step], f"Drawn by the run itself after step {step:,}, with the default sampler; nothing picked."
    shared = folder / "preview.png"
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
            delete_patterns=_OURS,  # but for those that are uploaded
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
