"""Runs submissions under the import hook, in a plain process: `python -I hook_runner.py GUARD_DIR < cases.json`.

Reads `{"table": …, "cases": [[name, source], …]}`; each case is loaded from a file, and its `main()` called if it has one.
Writes one JSON object: name → {"rule", "line", "error", "value", "swallowed"}.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import hook


def run(name, source, folder):
    path = folder / f"{name}.py"
    path.write_text(source)
    before, result = len(hook.violations), {"rule": "", "line": None, "error": "", "value": None}
    try:
        module = hook.load(str(path))
        main = getattr(module, "main", None)
        result["value"] = repr(main()) if main else None
    except hook.RuleViolation as violation:
        result |= {"rule": violation.rule, "line": violation.line, "error": str(violation)}
    except BaseException as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["swallowed"] = [violation.rule for violation in hook.violations[before:]]
    return result


def main():
    order = json.load(sys.stdin)
    hook.install(order["table"])
    with tempfile.TemporaryDirectory() as folder:
        results = {name: run(name, source, Path(folder)) for name, source in order["cases"]}
    json.dump(results, sys.stdout)


main()
