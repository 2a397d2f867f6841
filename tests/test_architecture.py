"""The rules that the design sets for the code as a whole."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "genflow"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if not {"_assets", "recipes"} & set(p.relative_to(PACKAGE).parts))
LEVELS = [
    {
        "schedules",
        "parameterizations",
        "nn",
        "kind",
        "config",
        "config_files",
        "config_adapters",
        "config_consistency",
        "config_findings",
        "config_method",
        "config_surgery",
        "pixels",
        "units",
        "files",
        "assets",
        "pictures",
        "processes",
    },
    {"denoiser", "denoiser_parts", "adapters"},
    {"objectives", "sampling", "data"},
    {"training", "evaluation", "pipeline", "published"},
    {"build", "build_objective", "build_start", "build_surgery", "card", "card_method"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
# what may be used by a neighbour of the same level; everything else is used from above only
NEIGHBOURS = {
    ("parameterizations", "schedules"),
    ("pictures", "files"),
    ("kind", "nn"),
    ("config_files", "config"),
    ("config", "config_method"),
    ("config", "config_consistency"),
    ("config", "config_adapters"),
    ("config", "config_surgery"),
    ("config_adapters", "config_method"),
    ("config_consistency", "config_method"),
    ("config_surgery", "config_adapters"),
    ("config_surgery", "config_method"),
    ("config_findings", "config"),
    ("config_findings", "config_consistency"),
    ("build", "build_objective"),
    ("build_objective", "build_start"),
    ("build", "build_start"),
    ("build", "build_surgery"),
    ("build_surgery", "build_start"),
    ("card", "card_method"),
    ("data", "sampling.noise"),
    ("denoiser", "denoiser_parts"),
}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__")


@pytest.fixture(params=FILES, ids=name_of)
def file(request) -> Path:
    return request.param


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; names of genflow's own are resolved to modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inner = PACKAGE.parent / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def own(path: Path) -> set[str]:
    """The modules of genflow that a file imports, without the first word."""
    return {m.removeprefix("genflow.") for m in imports(path) if m.startswith("genflow.")}


def test_every_part_has_a_level() -> None:
    parts = {name_of(p).split(".")[0] for p in FILES} - {"__init__"}
    assert parts <= LEVEL.keys()


def test_imports_run_one_way(file: Path) -> None:
    """Those inside functions too, which would only hide a circle; the package itself names its public classes."""
    part = name_of(file).split(".")[0]
    if part == "__init__":
        return
    for module in own(file):
        other = module.split(".")[0]
        allowed = (
            LEVEL[other] < LEVEL[part] or other == part or (part, other) in NEIGHBOURS or (part, module) in NEIGHBOURS
        )
        assert allowed, f"genflow/{file.relative_to(PACKAGE)} may not import genflow.{module}"


def test_the_rule_sees_an_import_that_it_forbids(tmp_path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from genflow.sampling import noise\n    import genflow.data.images\n")
    assert own(tmp_path / "x.py") == {"sampling.noise", "data.images"}


def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} has over 60 lines"


def test_everything_public_says_what_it_is(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if name_of(file) != "__init__":
        assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_no_file_reads_or_writes_pickles(file: Path) -> None:
    """Weights of others come as torch's archives at times: two files read them, and only plain tensors."""
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    used = {module.split(".")[0] for module in imports(file)}
    assert not used & banned
    # statistics and networks of others come as pickles: two files parse them, and run nothing that is found there
    parsers = ("evaluation.plain_pickle", "evaluation.networks.torchscript")
    assert "pickletools" not in used or name_of(file) in parsers
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        called = ast.unparse(node.func)
        if called in ("torch.load", "torch.save"):
            assert name_of(file) in (
                "evaluation.networks.weights",
                "evaluation.networks.inception",
                "published.weights",
            )
            safe = [ast.unparse(k.value) for k in node.keywords if k.arg == "weights_only"]
            assert called == "torch.save" or safe == ["True"]
        if called in ("np.load", "numpy.load"):
            assert not [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import genflow", ("torch", "numpy", "diffusers")),
        ("from genflow.cli.main import main; main(['--help'])", ("torch", "numpy", "pydantic", "tyro")),
        ("from genflow.cli.main import main; main(['--version'])", ("torch", "numpy", "pydantic", "tyro")),
        ("from genflow.cli.main import main; main(['train', 'tiny-edm', '--nonsense'])", ("torch", "accelerate")),
        pytest.param(
            "import genflow; genflow.Denoiser",
            ("lpips", "torch_fidelity", "torchvision", "sklearn"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, absent: tuple[str, ...]) -> None:
    script = f"import sys\n{code}\nfound = [m for m in {absent!r} if m in sys.modules]\nsys.exit(', '.join(found) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
