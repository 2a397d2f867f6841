"""What a model card says of the method: schedule, parameterization, objective, network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from genflow.config import (
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    IntactConfig,
    KINDConfig,
    RegressionConfig,
    TransferConfig,
)
from genflow.denoiser import Denoiser
from genflow.evaluation.wording import CLASSES, plural
from genflow.kind import ClassGate, ClassLoRA, Decomposed
from genflow.kind.gate import LEARNGENES_ONLY


def method(denoiser: Denoiser, run: Config | None) -> str:
    """Return the method in words and as a table; ``run`` is None where nothing is known of the training."""
    config: Any = denoiser.config
    objective = "not recorded" if run is None else f"`{_show(run.objective)}`"
    count = sum(p.numel() for p in denoiser.parameters())
    words = _words(config["schedule"]["class"], config["parameterization"]["class"])
    rows = [
        "| schedule | parameterization | objective | network | parameters |",
        "|---|---|---|---|---|",
        f"| `{_call(config['schedule'])}` | `{_call(config['parameterization'])}` | {objective} |"
        f" `{_call(config['network'])}` | {count:,} |",
    ]
    learned = "" if run is None else _learned(run.objective)
    told = " ".join(filter(None, [words, learned, _gated(denoiser), "" if run is None else _fitted(run)]))
    return "\n\n".join(filter(None, [told, "\n".join(rows)]))


def _gated(denoiser: Denoiser) -> str:
    """Say of a model with a gate what it is made of, and which classes it has; nothing of others."""
    match denoiser.backbone:
        case Decomposed() as model:
            gate, layers = model.gate, model.linears().values()
            counts = [
                sum(part.numel() for each in groups for part in (each.u, each.sigma, each.v))
                for groups in ([layer.learngenes for layer in layers], [layer.tailors for layer in layers])
            ]
            lost = len(gate.kept) < gate.num_classes
            has = f"; of {gate.num_classes} classes it has {', '.join(map(str, gate.kept))}" if lost else ""
            return (
                "Its kernels are decomposed by KIND (arXiv 2408.07337) into learngenes, which all classes share"
                f" ({counts[0]:,} parameters), and {_tailors(gate, counts[1])}{has}. `genflow kind` takes it apart"
                " and merges it."
            )
        case ClassLoRA() as model:
            count = sum(part.lora_a.numel() + part.lora_b.numel() for part in model.linears().values())
            return f"Each class has a LoRA (arXiv 2106.09685) of its own in its kernels ({count:,} parameters)."
        case _:
            return ""


def _tailors(gate: ClassGate, parameters: int) -> str:
    """Say how many tailors there are, and whose they are, by the class map."""
    owners = [
        [c for c in gate.kept if gate.class_to_tailor[c] == tailor]
        for tailor in gate.tailors
        if tailor != gate.no_class
    ]
    bare = [c for c in gate.kept if gate.class_to_tailor[c] == LEARNGENES_ONLY]
    counts = [len(classes) for classes in owners]
    told = plural(len(owners), "tailor")
    if max(counts, default=1) == 1:
        told += " of single classes"
    elif len(gate.kept) <= CLASSES:
        told += f" of the classes {', '.join(map(_set, owners))}"
    else:
        told += f" of {' to '.join(map(str, sorted({min(counts), max(counts)})))} classes each"
    if gate.no_class != LEARNGENES_ONLY:
        told += ' and one of "no class"'
    told += f" ({parameters:,})"
    if bare:
        told += f", none of them of {_set(bare) if len(bare) <= CLASSES else f'the other {len(bare)}'}"
    return told


def _set(classes: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, classes))}}}"


def _fitted(run: Config) -> str:
    """Say what a network was made of that was changed before it was trained, and how it was fitted."""
    start = run.init.removeprefix("hf:")
    match run.surgery:
        case IntactConfig():
            return ""
        case KINDConfig():
            return f"What was decomposed are the weights of `{start}`." if start else ""
        case TransferConfig(trains=trains):
            shared = "the learngenes and all else that is shared were"
            parts = {"tailors": "the tailors and label rows alone were", "learngenes": shared, "all": "everything was"}
            part = parts[trains]
            return f"It is KIND's transfer of the decomposed model `{start}`, of which {part} trained."
        case adapter:
            return f"It was fitted to its classes from the model `{start}`, by `{_show(adapter)}`."


def _learned(objective: RegressionConfig | ConsistencyConfig) -> str:
    """Name the kind of consistency model; nothing is said of a regression, which the pair names already."""
    match objective:
        case ConsistencyConfig(descent=ByTeacherConfig(teacher=teacher, solver=solver)):
            return (
                f"Consistency distillation (CD, arXiv 2303.01469): taught by the flow of the model `{teacher}`, a step"
                f" of {solver.capitalize()} at a time."
            )
        case ConsistencyConfig(levels=EasyLevelsConfig()):
            return "A diffusion model that was tuned into a consistency model (ECT, arXiv 2406.14548)."
        case ConsistencyConfig(levels=GridLevelsConfig(curriculum=DoublingConfig())):
            return "Improved consistency training, without a teacher (iCT, arXiv 2310.14189)."
        case ConsistencyConfig():
            return "Consistency training, without a teacher (CT, arXiv 2303.01469)."
        case RegressionConfig():
            return ""


def _words(schedule: str, parameterization: str) -> str:
    """Describe the pair of schedule and parameterization; nothing is said of pairs that have no name."""
    match schedule, parameterization:
        case "VE", "Karras":
            return "Variance-exploding noise and EDM's preconditioning (arXiv 2206.00364)."
        case "VE", "ConsistencyKarras":
            return "Variance-exploding noise and the preconditioning of consistency models (arXiv 2303.01469)."
        case "DiscreteVP" | "VP" | "Cosine", "PredictNoise":
            return "Variance-preserving diffusion whose network predicts the noise, as in DDPM (arXiv 2006.11239)."
        case "DiscreteVP" | "VP" | "Cosine", "PredictV":
            return "Variance-preserving diffusion whose network predicts v (arXiv 2202.00512)."
        case "Linear", "PredictVelocity":
            return "Rectified flow: the network predicts the velocity of straight paths (arXiv 2209.03003)."
        case "Linear", "Karras":
            return "The straight paths of rectified flow with EDM's preconditioning (arXiv 2405.20320)."
        case "Linear", "Converted":
            return "Rectified flow by a diffusion model's network, its time and scale converted (arXiv 2405.20320)."
        case "Trig", "PredictVelocity":
            return "TrigFlow (arXiv 2410.11081)."
        case _:
            return ""


def _call(part: Mapping[str, Any]) -> str:
    """Write a part of the model's configuration as the call that makes it; a long table by its ends."""
    if part["class"] in ("Decomposed", "ClassLoRA"):  # whose layout is told in words
        return f"{part['class']}({_call(part['arguments']['network'])})"
    shown = []
    for key, value in part["arguments"].items():
        if isinstance(value, Mapping):  # a part of a part
            value = _call(value)
        elif isinstance(value, list | tuple) and len(value) > 8:
            value = f"{len(value)} from {value[0]:g} to {value[-1]:g}"
        shown.append(f"{key}={value}")
    return f"{part['class']}({', '.join(shown)})"


def _show(part: Any) -> str:
    """Write a section of a configuration on one line."""
    fields = [f.name for f in dataclasses.fields(part) if f.name != "type"]
    values = {name: vars(part)[name] for name in fields}
    shown = [f"{k}={_show(v) if dataclasses.is_dataclass(v) else v}" for k, v in values.items()]
    return f"{part.type}({', '.join(shown)})"
