"""KIND: backbones whose kernels are learngenes for every class and tailors for some, to be taken apart and recombined.

`decompose` turns a backbone into a `Decomposed` one, trained and sampled like any other; `merge`, `extract`,
`recombine`, `add_tailors` and `remove_tailors` make others of it, and leave the one they are given as it is.

Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337). No code of the
authors was found: what is said to be unconfirmed here is a choice of ours.
"""

from genflow.kind.class_lora import ClassLoRA as ClassLoRA
from genflow.kind.class_lora import class_lora as class_lora
from genflow.kind.class_lora import merge_class as merge_class
from genflow.kind.cost import Cost as Cost
from genflow.kind.cost import Info as Info
from genflow.kind.cost import info as info
from genflow.kind.gate import Assigned as Assigned
from genflow.kind.gate import ClassGate as ClassGate
from genflow.kind.gate import Closed as Closed
from genflow.kind.gate import Mixed as Mixed
from genflow.kind.lazy import lazy_tailors as lazy_tailors
from genflow.kind.learngenes import add_tailors as add_tailors
from genflow.kind.learngenes import extract as extract
from genflow.kind.learngenes import freeze as freeze
from genflow.kind.learngenes import recombine as recombine
from genflow.kind.learngenes import remove_tailors as remove_tailors
from genflow.kind.linear import KINDLinear as KINDLinear
from genflow.kind.model import Decomposed as Decomposed
from genflow.kind.model import Layout as Layout
from genflow.kind.model import blank as blank
from genflow.kind.orthogonality import Departure as Departure
from genflow.kind.orthogonality import departures as departures
from genflow.kind.surgery import KINDConfig as KINDConfig
from genflow.kind.surgery import decompose as decompose
from genflow.kind.surgery import merge as merge
from genflow.kind.swap import with_gate_of as with_gate_of
