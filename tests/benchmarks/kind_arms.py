"""The arms of ``kind.py``: what is trained before, and how it is fitted to new classes."""

from __future__ import annotations

from dataclasses import dataclass

from genflow.config import IntactConfig, KINDConfig, SurgeryConfig, TransferConfig
from genflow.config_adapters import (
    BitFitConfig,
    ClassLoRAConfig,
    DoRAConfig,
    FineTuningConfig,
    IA3Config,
    LoHaConfig,
    LoRAConfig,
    OFTConfig,
    PiSSAConfig,
    TruncationConfig,
)

BASE = (0, 1, 2, 3, 4, 5)  # the digits of pre-training
NOVEL = (6, 7, 8, 9)
WIDTH = 64
LEARNGENES, TAILOR = 24, 4  # components of a kernel; with one tailor on, 28 of 64 are active
SHARED = TAILOR * len(NOVEL)  # rank of an adapter that all classes share, for as many trained numbers
SHARE = LEARNGENES / WIDTH


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model that is trained on the base classes; ``every_seed`` has it trained with all seeds, or the first only."""

    what: str
    surgery: SurgeryConfig
    every_seed: bool


STARTS = {
    "dense": Start(what="dense", surgery=IntactConfig(), every_seed=True),
    "kind": Start(
        what="KIND: learngenes and a tailor for each class",
        surgery=KINDConfig(learngenes=SHARE, tailor_rank=TAILOR),
        every_seed=True,
    ),
    "ungated": Start(
        what="as many active components, without a gate",
        surgery=KINDConfig(class_to_tailor=(-1,) * len(BASE), learngenes=(LEARNGENES + TAILOR) / WIDTH),
        every_seed=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to new classes: from the model of which start, in which form of it, by what."""

    what: str
    start: str  # of STARTS; "" is none
    surgery: SurgeryConfig
    form: str = "model"  # the folder that a start leaves: as trained, or changed for this
    every_seed: bool = False


TRUNCATED = TruncationConfig(learngenes=SHARE, tailor_rank=TAILOR)
ARMS = {
    "KIND": Arm(
        what="learngenes frozen, a new tailor for each class",
        start="kind",
        form="grown",
        surgery=TransferConfig(),
        every_seed=True,
    ),
    "LoRA per class": Arm(
        what="dense, a LoRA for each class under KIND's gate",
        start="dense",
        surgery=ClassLoRAConfig(rank=TAILOR, alpha=TAILOR),
        every_seed=True,
    ),
    "LoRA": Arm(what="dense, one LoRA", start="dense", surgery=LoRAConfig(rank=SHARED, alpha=SHARED), every_seed=True),
    "SVD": Arm(
        what="dense, truncated to as many components as there are learngenes, a new tailor for each class",
        start="dense",
        surgery=TRUNCATED,
        every_seed=True,
    ),
    "full": Arm(what="dense, everything trained", start="dense", surgery=FineTuningConfig(), every_seed=True),
    "scratch": Arm(what="dense, from scratch", start="", surgery=IntactConfig(), every_seed=True),
    "KIND all": Arm(what="KIND, everything trained", start="kind", form="grown", surgery=TransferConfig(trains="all")),
    "KIND random": Arm(
        what="KIND with random learngenes of the same sizes", start="kind", form="random", surgery=TransferConfig()
    ),
    "no gate": Arm(
        what="the largest components of the model without a gate, a new tailor for each class",
        start="ungated",
        form="merged",
        surgery=TRUNCATED,
    ),
    "SVD, trained": Arm(
        what="the same as SVD, the truncated model trained on the base classes before for a fifth of the steps",
        start="dense",
        form="truncated",
        surgery=TRUNCATED,
    ),
    "PiSSA": Arm(what="dense, one PiSSA", start="dense", surgery=PiSSAConfig(rank=SHARED)),
    "DoRA": Arm(what="dense, one DoRA", start="dense", surgery=DoRAConfig(rank=SHARED, alpha=SHARED)),
    "LoHa": Arm(what="dense, one LoHa", start="dense", surgery=LoHaConfig(rank=SHARED // 2, alpha=SHARED // 2)),
    "OFT": Arm(what="dense, OFT", start="dense", surgery=OFTConfig(block_size=WIDTH)),
    "(IA)³": Arm(what="dense, (IA)³", start="dense", surgery=IA3Config()),
    "BitFit": Arm(what="dense, biases", start="dense", surgery=BitFitConfig()),
}
SHARES = (2, 4, 5, 20, 100)  # per cent of the steps on the base classes, after which new ones are measured
FEW_SHARES = (2, 5)  # after which fits to few images are measured
FEW_ARMS = ("KIND", "LoRA per class", "LoRA", "SVD", "full")  # that are fitted to few images, too
FEW = (5, 20)  # images of each new class
ONE_STEP = {
    "iCT, dense": "improved consistency training of the dense network",
    "iCT, KIND": "the same of the decomposed one",
    "2-RF++, dense": "2-RF++ of the dense start and its pairs",
    "2-RF++, KIND": "2-RF++ of the decomposed start and its pairs",
}
