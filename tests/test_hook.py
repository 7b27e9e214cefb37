"""The import hook, in a plain subprocess: what it refuses by which rule and line, and what it must not touch."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from crusades import rules_lists, rules_names, rules_source
from crusades.rules import BY_ID, hook_table

HERE = Path(__file__).parent
GUARD = HERE.parent / "crusades" / "sandbox" / "inside"


def run_cases(cases, table=None, timeout=120):
    order = {"table": hook_table() if table is None else table, "cases": list(cases.items())}
    command = [sys.executable, "-I", str(HERE / "hook_runner.py"), str(GUARD)]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{"') :])


# Imports of modules that torch brings along are refused before they are found, so these need no torch.
DENIED: dict[str, tuple[str, int, str]] = {
    "import": ("R101", 1, "import os"),
    "import-second-line": ("R101", 3, "import math\n\nimport sys"),
    "import-from": ("R101", 1, "from os import path"),
    "import-dotted": ("R101", 1, "import os.path"),
    "import-as": ("R102", 1, "import socket as s"),
    "import-in-a-function": ("R103", 2, "def main():\n    import inspect"),
    "import-in-except": ("R104", 2, "try:\n    import threading\nexcept Exception:\n    pass"),
    "import-unlisted": ("R109", 1, "import antigravity"),
    "import-missing": ("R109", 1, "import no_such_module_at_all"),
    "import-relative": ("R109", 1, "from . import x"),
    "import-star": ("R108", 1, "from math import *"),
    "import-native": ("R105", 1, "import torch.utils.cpp_extension"),
    "import-native-from": ("R105", 1, "from torch.utils import cpp_extension"),
    "import-internals": ("R111", 1, "import torch._C"),
    "import-member": ("R203", 1, "from operator import attrgetter"),
    "import-borrowed": ("R110", 1, "from dataclasses import sys"),
    "import-borrowed-underscore": ("R110", 1, "from random import _os"),
    "import-code-type": ("R206", 1, "from types import CodeType"),
    "import-by-name": ("R101", 1, '__import__("o" + "s")'),
    "eval": ("R201", 1, 'eval("1")'),
    "exec-renamed": ("R201", 2, "run = exec\nrun('x = 1')"),
    "compile": ("R201", 1, 'compile("1", "", "eval")'),
    "open": ("R201", 1, 'open("/etc/passwd")'),
    "globals": ("R201", 2, "def main():\n    return globals()"),
    "vars": ("R201", 1, "vars(print)"),
    "breakpoint": ("R201", 1, "breakpoint()"),
    "getattr-built": ("R202", 2, "def f(): pass\ngetattr(f, '__glo' + 'bals__')"),
    "getattr-in-a-loop": ("R202", 4, "def f(): pass\ndef main():\n    for n in ('a', '__code__'):\n        getattr(f, n, None)"),
    "getattr-by-map": ("R202", 2, "def f(): pass\nlist(map(getattr, [f], ['__code__']))"),
    "getattr-of-a-module": ("R110", 2, "import random\ngetattr(random, '_' + 'os')"),
    "getattr-raw": ("R304", 1, "getattr(1, '__cuda_array' + '_interface__', None)"),
    "setattr-class": ("R302", 2, "from decimal import Decimal\nsetattr(Decimal, 'exp', print)"),
    "setattr-module": ("R302", 2, "import math\nsetattr(math, 'p' + 'i', 3)"),
    "setattr-clock": ("R301", 2, "import time\nsetattr(time, 'perf_' + 'counter', print)"),
    "setattr-class-of": ("R302", 2, "class A: pass\nsetattr(A(), '__cla' + 'ss__', int)"),
    "setattr-requires-grad": ("R501", 2, "class P: pass\nsetattr(P(), 'requires_' + 'grad', False)"),
    "delattr": ("R302", 2, "import math\ndelattr(math, 'pi')"),
    "class-by-type": ("R206", 1, "type('A', (), {})"),
    "class-by-type-reversed-name": ("R206", 2, "def f(): pass\ntype('A', (), {'__teg__'[::-1]: f})"),
    "class-by-type-renamed": ("R206", 2, "t = type\nt('A', (), {})"),
    "class-by-type-new": ("R206", 1, "type.__new__(type, 'A', (), {})"),
    "class-by-type-call": ("R206", 1, "type.__call__(type, 'A', (), {})"),
    "class-by-type-of-a-class": ("R206", 1, "type(int)('A', (), {})"),
    "class-by-class-of-a-class": ("R206", 1, "int.__class__(*('A', (), {}))"),
    "class-by-abstract-class": ("R206", 2, "import abc\nabc.ABCMeta('A', (), {})"),
    "class-by-enum-class": ("R206", 2, "from enum import EnumMeta\nEnumMeta('A', (), {})"),
    "class-by-partial": ("R206", 2, "from functools import partial\npartial(type, 'A', ())({})"),
    "class-by-map": ("R206", 1, "list(map(type, ['A'], [()], [{}]))"),
    "class-by-a-list": ("R206", 1, "[type][0]('A', (), {})"),
    "event-of-a-borrowed-module": ("R101", 2, "import random\nrandom._os.system('true')"),
    "event-of-code": ("R202", 2, "def f(): pass\nf.__code__"),
    "event-of-a-frame": ("R202", 5, "def main():\n    try:\n        1 / 0\n    except ZeroDivisionError as e:\n        return e.__traceback__.tb_frame"),
    "event-of-getframe": ("R202", 2, "import warnings\nwarnings.sys._getframe()"),
    "import-network": ("R102", 1, "import http"),
    "event-of-list": ("R101", 2, "import random\nrandom._os.listdir('/')"),
    "event-of-a-process": ("R101", 2, "import random\nrandom._os.posix_spawn('/bin/true', ['true'], {})"),
    "event-of-a-fork": ("R101", 2, "import random\nrandom._os.fork()"),
    "event-of-an-open": ("R101", 2, "import random\nrandom._os.open('/etc/passwd', 0)"),
    "event-of-builtins": ("R201", 2, "import enum\nenum.bltns.eval('1')"),
}  # fmt: skip

ALLOWED = {
    "modules": "import math, re, time, json, random, collections.abc, typing, dataclasses, functools, itertools, contextlib, types, enum, copy\n"
    "from types import MethodType, SimpleNamespace\nfrom functools import partial\ndef main(): return re.compile('a').pattern, math.pi > 3",
    "dataclass": "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass R:\n    a: int\n    b: 'list[int]' = field(default_factory=list)\ndef main(): return R(1)",
    "namedtuple": "from collections import namedtuple\nfrom typing import NamedTuple\nP = namedtuple('P', 'a b')\nclass Q(NamedTuple):\n    a: int\ndef main(): return P(1, 2), Q(3)",
    "enum": "from enum import Enum\nclass C(Enum):\n    A = 1\ndef main(): return C.A",
    "getattr": "class A: weight = 1\ndef main(): return [getattr(A(), n, None) for n in ('weight', 'bias')], getattr(A, 'weight'), hasattr(A, 'x')",
    "setattr": "class A: pass\ndef main():\n    a = A()\n    setattr(a, 'x', 1); setattr(A, 'y', 2); delattr(a, 'x')\n    return a.y",
    "missing-member": "import math\ndef main(): return getattr(math, 'no_such', 7)",
    "import-error": "try:\n    import flash_attn_interface\nexcept ImportError:\n    flash_attn_interface = None\ndef main(): return flash_attn_interface",
    "super": "class A:\n    def __init__(self): self.x = 1\nclass B(A):\n    def __init__(self):\n        super().__init__()\ndef main(): return B().x",
    "type": "class M(type): pass\nclass A(metaclass=M): pass\nclass B(A, metaclass=M): pass\ndef f(x: type, k: 'type' = int, *a: type[int]) -> type: return k\n"
    "def main():\n    assert type(1) is int and isinstance(int, type) and isinstance(A, (M, type)) and issubclass(M, type) and not isinstance(1, (type,))\n"
    "    assert list(map(type, [1, ''])) == [int, str] and type(A()) is A and A().__class__ is A and type is type(int)\n"
    "    match int:\n        case type(): pass\n    return type(B(), ).__name__, type.__name__, type([1])([2]), {type: 1}, type | None",
    "rebuilt": "class P:\n    def __init__(self, a, b): self.a = a\n    def copy(self): return self.__class__(self.a, 2)\ndef main(): return type(P(1, 2))(*(3, 4)).copy().a",
    "print": "def main():\n    print('hello', flush=True)\n    return sorted(map(str, range(3)))",
    "lambda-and-closure": "def main():\n    k = 2\n    return [f(3) for f in (lambda x: x * k, lambda x: x ** k)]",
    "main-block": "x = 1\nif __name__ == '__main__':\n    import os\n    x = 2\nelse:\n    x = 3\ndef main(): return x",
    "main-block-with-a-set-name": "x = 1\n__name__ = '__main__'\nif __name__ == '__main__':\n    x = 2\ndef main(): return x",
    "module-facts": "def main(): return __name__, __file__.endswith('module-facts.py')",
    "clocks": "import time\ndef main(): return time.perf_counter() > 0, time.monotonic_ns() > 0",
    "exceptions": "def main():\n    try:\n        raise ValueError('a')\n    except ValueError as e:\n        return str(e), type(e).__name__",
    "generators": "def g():\n    x = yield 1\n    return x\nasync def c(): return 1\ndef main(): return list(g())",
    "warnings": "import warnings\ndef main():\n    warnings.warn('w')\n    return 1",
    "byte-order-mark": "\ufeffdef main(): return 1",
    "type-hints-of-the-library": "from functools import singledispatch\n@singledispatch\ndef f(x): return 0\n@f.register\ndef _(x: int): return 1\ndef main(): return f(2)",
}


@pytest.fixture(scope="module")
def denials():
    return run_cases({name: source for name, (_, _, source) in DENIED.items()})


@pytest.fixture(scope="module")
def allowances():
    return run_cases(ALLOWED)


@pytest.mark.parametrize("name", DENIED)
def test_denials_name_the_rule_and_the_line(denials, name):
    rule, line, _ = DENIED[name]
    got = denials[name]
    assert (got["rule"], got["line"]) == (rule, line), got


@pytest.mark.parametrize("name", DENIED)
def test_denials_say_what_to_do(denials, name):
    assert BY_ID[DENIED[name][0]].instead in denials[name]["error"]
    assert f"(line {DENIED[name][1]} of train.py)" in denials[name]["error"]


@pytest.mark.parametrize("name", ALLOWED)
def test_ordinary_code_runs(allowances, name):
    got = allowances[name]
    assert (got["rule"], got["error"], got["swallowed"]) == ("", "", []), got
    assert got["value"] is not None


def test_main_blocks_do_not_run(allowances):
    assert allowances["main-block"]["value"] == "3"
    assert allowances["main-block-with-a-set-name"]["value"] == "1"
    assert allowances["module-facts"]["value"] == "('train', True)"


def test_a_swallowed_denial_is_remembered():
    cases = {"swallowed": "try:\n    import os\nexcept BaseException:\n    pass\ndef main(): return 1", "next": "def main(): return 2"}
    got = run_cases(cases)
    assert (got["swallowed"]["value"], got["swallowed"]["swallowed"]) == ("1", ["R101"])
    assert (got["next"]["value"], got["next"]["swallowed"]) == ("2", [])


def test_except_exception_does_not_swallow():
    got = run_cases({"a": "try:\n    import os\nexcept Exception:\n    pass"})
    assert got["a"]["rule"] == "R101"


def test_the_submission_of_another_file_is_not_blamed():
    """The line belongs to the file that was loaded, whatever called it."""
    got = run_cases({"a": "def main():\n    return sorted([2, 1], key=lambda x: getattr(x, '__cla' + 'ss__') and\n                  eval('1'))"})
    assert (got["a"]["rule"], got["a"]["line"]) == ("R201", 3)


def test_without_a_table_nothing_is_guarded():
    """`bench --skip-rules`: judged by the audit alone."""
    got = run_cases({"a": "import os\ndef main(): return eval('1 + 1'), getattr(main, '__globals__') is not None, f'{os.sep}'"}, table={})
    assert got["a"]["value"] == "(2, True, '/')"


def test_without_a_table_main_blocks_are_left_out_too():
    got = run_cases({"a": "x = 1\nif __name__ == '__main__':\n    x = 2\ndef main(): return x"}, table={})
    assert got["a"]["value"] == "1"


def test_errors_of_the_file_are_its_own():
    got = run_cases({"a": "1 / 0", "b": "def f(:", "c": "raise SystemExit(3)"})
    assert got["a"]["error"].startswith("ZeroDivisionError")
    assert got["b"]["error"].startswith("SyntaxError")
    assert got["c"]["error"] == "SystemExit: 3"


def test_the_source_can_be_inspected():
    """Triton reads a kernel's source through `inspect`; it must find the text of the file that was loaded."""
    code = f"""
import sys, json, inspect
sys.path.insert(0, {str(GUARD)!r})
import hook
hook.install(json.load(sys.stdin))
module = hook.load(sys.argv[1])
print(inspect.getsource(module.kernel), inspect.getsourcelines(module.kernel)[1], module.kernel.__module__, sys.modules["train"] is module)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code, str(HERE / "data" / "hook_kernel.py")], input=json.dumps(hook_table()), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "    return x + 1  # the body\n" in done.stdout
    assert done.stdout.split()[-3:] == ["8", "train", "True"]


def test_the_hook_stands_alone():
    """It is mounted into the sandbox as one file: the standard library is all it may import."""
    tree = ast.parse((GUARD / "hook.py").read_text())
    roots = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert roots <= set(sys.stdlib_module_names)


@pytest.fixture(scope="module")
def hook():
    """The module, imported but not installed: an audit hook would stay in this process for ever."""
    spec = importlib.util.spec_from_file_location("hook_under_test", GUARD / "hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAIN_BLOCKS = [
    "if __name__ == '__main__': pass", "if '__main__' == __name__: pass", "if __name__ == '__main__' or 1: pass", "if __name__ != '__main__': pass",
    "if __name__ is '__main__': pass", "if __name__ == '__main__' == 1: pass", "if not __name__ == '__main__': pass", "if name == '__main__': pass",
    "if __name__ == 'main': pass", "if (__name__ == '__main__'): pass", "if __name__ == '__main__' and 1: pass", "while __name__ == '__main__': pass",
    "if __name__ in '__main__': pass", "if 1: pass", "if __name__ == __name__: pass", "if '__main__' == '__main__': pass", "x = 1",
    "if __name__ == '__main__':\n    pass\nelif 1:\n    x = 1\nelse:\n    y = 1", "if __name__ == '\\x5f_main__': pass", "if __name__ == b'__main__': pass",
]  # fmt: skip


@pytest.mark.parametrize("source", MAIN_BLOCKS)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_scanner_and_hook_agree_on_main_blocks(hook, source):
    """What one exempts, the other must leave out."""
    statement = ast.parse(source).body[0]
    assert hook.is_main_guard(statement) == rules_source.is_main_guard(statement)
    assert ast.dump(hook.without_main(ast.parse(source))) == ast.dump(rules_source.without_main(ast.parse(source)))


def test_one_thread_that_looks_does_not_blind_the_hook_to_another(hook, monkeypatch):
    auditor = hook._Auditor({"exec": "R201"})
    monkeypatch.setattr(hook, "_files", {__file__})
    auditor._looking.add(-1)
    with pytest.raises(hook.RuleViolation):
        auditor.hook("exec", ())


def test_some_of_them_are_main_blocks():
    assert sum(rules_source.is_main_guard(ast.parse(source).body[0]) for source in (MAIN_BLOCKS[0], MAIN_BLOCKS[1], MAIN_BLOCKS[9], MAIN_BLOCKS[2])) == 3


def test_scanner_and_hook_agree_on_modules(hook, monkeypatch):
    monkeypatch.setattr(hook, "_table", hook_table())
    names = [*rules_lists.DENIED_MODULES, *rules_lists.ALLOWED_MODULES, *rules_lists.DENIED_SUBMODULES, *rules_lists.ALLOWED_SUBMODULES]
    names += [f"{name}.below" for name in names] + ["torch", "torch.nn", "torch.distributed.rpc", "x.cpp_extension.y", "unheard_of", ""]
    assert [hook.module_rule(name) for name in names] == [rules_names.module_rule(name) for name in names]
