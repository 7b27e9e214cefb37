"""The rules of the competition as a table: what is forbidden, why, what to do instead, and who enforces it.

`docs/rules.md`, the scanner's findings, the import hook's messages and `/api/v1/rules` are all made from it. An id is never
reused for another meaning. The score rests on none of these: a file that breaks no rule and does not train fails the audit,
and a file that got past every rule still meets a judge in another process.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Group(StrEnum):
    """Chapters of the rules page; the value is the heading."""

    IMPORTS = "Imports"
    DYNAMIC = "Dynamic code and introspection"
    PATCHES = "Patches and proxies"
    SETTINGS = "Settings"
    TRAINING = "Training"
    TEXT = "The file"
    CONTRACT = "The contract"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One row."""

    id: str
    name: str
    group: Group
    what: str
    """What is forbidden, as a title."""
    why: str
    """The reason, one or two sentences."""
    instead: str
    """What an honest submission does."""
    scanner: bool = True
    """Whether `crusades check` finds it in the source."""
    hook: bool = False
    """Whether the import hook refuses it while the submission runs."""
    fault: str = "rule"
    """Name of the fault-table row that a rejection carries."""


_I, _D, _P, _S, _T, _F, _C = Group

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------------------------------------------ R1xx
    Rule(id="R101", name="system-modules", group=_I, hook=True, what="modules for files, processes and the system",
         why="A submission trains a model; it has no business with the machine that it runs on.",
         instead="take what you need from the arguments of inner_steps; keep local tooling under `if __name__ == \"__main__\":`"),
    Rule(id="R102", name="network-modules", group=_I, hook=True, what="modules that open connections",
         why="The sandbox has no network; weights, data and code come from the validator and from your file alone.",
         instead="put everything into train.py"),
    Rule(id="R103", name="interpreter-modules", group=_I, hook=True, what="modules that look into the interpreter",
         why="They find and change objects that are not yours: frames, other modules, the garbage collector's lists.",
         instead="use the objects that you were given or have made; print() instead of logging"),
    Rule(id="R104", name="concurrency-modules", group=_I, hook=True, what="threads, processes, signals and exit handlers",
         why="Work that goes on outside inner_steps is work that the clock should have seen; there is one card and one process.",
         instead="use CUDA streams inside inner_steps; they are waited for"),
    Rule(id="R105", name="native-code", group=_I, hook=True, what="native code other than kernels",
         why="C code in the process can change anything in it, and there is nobody to read it.",
         instead="write kernels in Triton, or let torch.compile write them"),
    Rule(id="R106", name="files-and-pickles", group=_I, hook=True, what="loading or saving files, decoding hidden data",
         why="Weights, data or code that come from elsewhere are not training; unpickling runs whatever the bytes say.",
         instead="compute constants in plain sight; the model and the data are arguments"),
    Rule(id="R107", name="module-alias", group=_I, what="torch under another name, or a module used as a value",
         why="Every rule about torch is read by its name; people read your file too.",
         instead="write `import torch`; name submodules as usual (`import torch.nn.functional as F`, `from torch import nn`)"),
    Rule(id="R108", name="star-import", group=_I, hook=True, what="`from module import *`",
         why="Nobody can tell which names the file then has.", instead="import the names that you use"),
    Rule(id="R109", name="unlisted-module", group=_I, hook=True, what="modules that are not on the list of allowed ones",
         why="Submissions are one file on top of torch; a list of what is allowed is shorter than one of what is not.",
         instead="use the modules listed on the rules page; ask for one that honest training needs"),
    Rule(id="R110", name="borrowed-module", group=_I, hook=True, what="a forbidden module taken from another module",
         why="`torch.os` is `os`: the same module by a side entrance.", instead="see the rule for the module itself"),
    Rule(id="R111", name="torch-internals", group=_I, hook=True, what="torch's C bindings (`torch._C`)",
         why="They change the dispatcher, the allocator and autograd underneath the interface that everybody shares.",
         instead="use the public interface; torch._inductor.config and torch._dynamo.config may be set"),
    # ------------------------------------------------------------------------------------------------ R2xx
    Rule(id="R201", name="forbidden-builtin", group=_D, hook=True, what="builtins that run strings, open files or list namespaces",
         why="Code that is made while it runs cannot be read beforehand.",
         instead="write the code out; torch.compile, re.compile and model.eval() are other things and fine"),
    Rule(id="R202", name="introspection", group=_D, hook=True, what="attributes of the interpreter's machinery",
         why="From a function's globals, a frame or a class's subclasses one reaches every object in the process.",
         instead="use public attributes; `super().__init__()`, `__name__`, `__doc__` and `__class__.__name__` are fine"),
    Rule(id="R203", name="computed-name", group=_D, hook=True, what="attribute names put together from pieces",
         why="An attribute that is named by a computation hides which one it is.",
         instead="write the attribute out, loop over literal names, or use model.get_submodule(path)"),
    Rule(id="R204", name="named-internals", group=_D, what="names of the interpreter's machinery in strings",
         why="A string that spells such a name only serves to reach it later.", instead="remove it; docstrings and comments may say anything"),
    Rule(id="R205", name="module-variable", group=_D, what="binding `__name__`, `__builtins__` and their like",
         why="They decide what the file is and may do: `__main__` blocks, builtins, imports.", instead="use another name"),
    Rule(id="R206", name="made-at-run-time", group=_D, hook=True, what="classes, functions or modules built by a call",
         why="A class made from strings has methods that nobody can read.", instead="write `class` and `def`; types.MethodType and types.SimpleNamespace are fine"),
    # ------------------------------------------------------------------------------------------------ R3xx
    Rule(id="R301", name="clock-patch", group=_P, hook=True, what="replacing a clock, an event or a synchronisation",
         why="Whoever changes a clock means to be measured by it. The clock that counts is in another process.",
         instead="read clocks as much as you like; never assign to them"),
    Rule(id="R302", name="foreign-patch", group=_P, hook=True, what="changing modules, classes or operators that are not yours",
         why="A changed operator changes what everybody else's code computes, checks included.",
         instead="write a function or a module of your own and put it into the model: `layer.mlp = Fused(layer.mlp)`, `layer.forward = fast`"),
    Rule(id="R303", name="lazy-object", group=_P, hook=True, what="objects that act when they are looked at or dropped",
         why="They put work off until after the clock has stopped.", instead="return plain tensors and numbers; wrap modules by nn.Module with a forward"),
    Rule(id="R304", name="raw-memory", group=_P, hook=True, what="tensors from addresses, and shared memory handles",
         why="Memory that was not given to you is not yours to read or write.", instead="allocate with torch.empty"),
    Rule(id="R305", name="operator-override", group=_P, what="registering kernels for torch's own operators",
         why="It replaces an operator for the whole process, as a patch does.", instead="register operators in a namespace of your own: `@torch.library.custom_op(\"mine::fused\")`"),
    # ------------------------------------------------------------------------------------------------ R4xx
    Rule(id="R401", name="backend-setting", group=_S, hook=True, what="settings that change what torch computes for the whole process",
         why="They outlive the line that sets them and change arithmetic, determinism or kernels everywhere.",
         instead="TF32 (`allow_tf32`, `set_float32_matmul_precision`), autocast, `torch.nn.attention.sdpa_kernel` as a context, and the compiler's configuration are allowed"),
    Rule(id="R402", name="gradient-switch", group=_S, hook=True, what="set_grad_enabled and inference_mode",
         why="A switch that outlives its line can leave backward passes out.", instead="`with torch.no_grad():` around what needs no gradient"),
    Rule(id="R403", name="model-config", group=_S, what="changing the model's configuration",
         why="Fewer layers, heads or attended positions make another model.",
         instead="leave model.config alone; use_cache, return_dict, output_* and the attention implementation may be chosen"),
    # ------------------------------------------------------------------------------------------------ R5xx
    Rule(id="R501", name="requires-grad", group=_T, hook=True, what="switching requires_grad off",
         why="Every parameter is to be trained in every step.", instead="leave it on; `requires_grad_()` and `requires_grad_(True)` on activations are fine"),
    Rule(id="R502", name="optimizer-internals", group=_T, hook=True, what="the optimizer's state, groups or methods",
         why="The moments are the judge's memory, and the update is part of the work.",
         instead="call optimizer.step() and optimizer.zero_grad(); reading `optimizer.param_groups[0][\"lr\"]` is fine"),
    Rule(id="R503", name="own-optimizer", group=_T, what="an optimizer of one's own",
         why="Only the moments of the optimizer that was passed in count; another one's are not where the audit reads.", instead="use the optimizer that inner_steps gets"),
    Rule(id="R504", name="iterator-internals", group=_T, what="looking into, or changing, the data iterator",
         why="It is how the judge learns that a step is done.", instead="call next(data_iterator) once per step, when the update before it is in the parameters"),
    # ------------------------------------------------------------------------------------------------ R6xx
    Rule(id="R601", name="hidden-text", group=_F, what="characters or encodings that hide what the code is",
         why="Text that reads differently for people and for Python is made to deceive.", instead="use ASCII names and visible characters; any language in comments and strings"),
    Rule(id="R602", name="unreadable", group=_F, what="files that cannot be read as source",
         why="What cannot be analysed is not judged.", instead="UTF-8 text of at most 500,000 bytes, nested no deeper than people write"),
    # ------------------------------------------------------------------------------------------------ R7xx
    Rule(id="R701", name="no-inner-steps", group=_C, fault="no-inner-steps", hook=True, what="a file without inner_steps",
         why="It is what the validator calls.", instead="define inner_steps(model, data_iterator, optimizer, num_steps, device)"),
    Rule(id="R702", name="signature", group=_C, fault="no-inner-steps", what="inner_steps that cannot be called with its five arguments",
         why="The validator passes model, data_iterator, optimizer, num_steps and device by position.", instead="define inner_steps(model, data_iterator, optimizer, num_steps, device)"),
    Rule(id="R703", name="syntax", group=_C, fault="syntax", hook=True, what="a syntax error",
         why="Python cannot load the file.", instead="run `python -m py_compile train.py`"),
)  # fmt: skip

BY_ID: dict[str, Rule] = {rule.id: rule for rule in RULES}
assert len(BY_ID) == len(RULES), "a rule id stands twice in the table"


def rule(rule_id: str) -> Rule:
    """The row with this id. KeyError is a bug in the caller."""
    return BY_ID[rule_id]
