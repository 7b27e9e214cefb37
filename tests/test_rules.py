"""The rule table, the scanner, the fingerprint and `crusades check`. The corpora are in tests/adversarial/rules_*.py."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crusades import check, faults, rules_apart, rules_lists, rules_page, rules_scan, rules_source
from crusades.errors import SandboxFault, UsageError
from crusades.records import Stage
from crusades.rules import BY_ID, RULES, fingerprint, first_reason, hook_table, scan
from crusades.rules_apart import check_apart, fingerprint_apart, scan_apart, scan_forked
from crusades.rules_scan import MAX_FINDINGS, scan_unguarded

sys.path.insert(0, str(Path(__file__).parent / "adversarial"))
from rules_cheats import CHEATS, submission
from rules_evasions import EVASIONS
from rules_honest import HONEST

ROOT = Path(__file__).parent.parent


def rules_of(source):
    return [f.rule for f in scan(source)]


def top(text, **parts):
    return submission(top=textwrap.dedent(text), **parts)


# ------------------------------------------------------------------------------------------------ the table


def test_every_rule_explains_itself():
    for rule in RULES:
        assert rule.what, rule.id
        assert rule.why.endswith("."), rule.id
        assert rule.instead, rule.id
        assert rule.scanner or rule.hook, rule.id


def test_ids_are_grouped_by_chapter():
    chapters = {}
    for rule in RULES:
        chapters.setdefault(rule.id[:2], set()).add(rule.group)
    assert all(len(groups) == 1 for groups in chapters.values())


def test_every_name_on_a_list_points_to_a_rule():
    table = hook_table()
    named = [*table["denied"].values(), *table["denied_submodules"].values(), *table["builtins"].values(), *table["events"].values()]
    named += [rule for members in table["members"].values() for rule in members.values()]
    assert set(named) <= set(BY_ID)


def test_what_the_hook_refuses_is_marked_so():
    table = hook_table()
    named = {*table["denied"].values(), *table["denied_submodules"].values(), *table["builtins"].values(), *table["events"].values()}
    named |= {rule for members in table["members"].values() for rule in members.values()}
    assert {rule for rule in named if not BY_ID[rule].hook} == set()


def test_allowed_and_denied_modules_do_not_overlap():
    assert rules_lists.ALLOWED_MODULES & rules_lists.DENIED_MODULES.keys() == set()


def test_the_hook_table_is_plain_data():
    assert json.loads(json.dumps(hook_table())) == hook_table()


def test_the_page_is_in_step():
    assert (ROOT / "docs" / "rules.md").read_text() == rules_page.page(), "run: python -m crusades.rules > docs/rules.md"


def test_the_page_says_what_the_score_rests_on_and_who_enforces():
    page = rules_page.page()
    assert "The score does not rest on these rules" in page
    assert page.count("*Enforced by:*") == len(RULES)


def test_importing_the_rules_imports_no_torch_and_no_event_loop():
    code = "import sys, crusades.rules, crusades.check; print([m for m in ('torch', 'trio', 'asyncio', 'httpx', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ findings


def test_all_findings_in_one_pass_in_order():
    found = scan(top("import os\nimport sys as s\nx = eval('1')\ntorch.os.system"))
    assert [f.rule for f in found] == ["R101", "R101", "R201", "R110"]
    assert [f.line for f in found] == sorted(f.line for f in found)


def test_a_finding_is_complete():
    [found] = scan(top("y = 1; x = eval('1')"))
    row = BY_ID["R201"]
    assert (found.why, found.instead, found.line, found.column) == (row.why, row.instead, 5, 12)
    assert (found.end_line, found.end_column) == (5, 16)


def test_columns_count_characters_not_bytes():
    [found] = scan(top("größe = 'ä'; eval('1')"))
    assert found.column == len("größe = 'ä'; ") + 1


def test_lines_are_counted_as_python_counts_them():
    [found] = scan(top("x = 'a\x85b\u2028c'\neval('1')").replace("\x85", "\u2028"))
    assert found.line == 6


def test_carriage_returns_end_lines():
    [found] = scan(top("eval('1')").replace("\n", "\r"))
    assert found.line == 5


def test_one_place_and_rule_is_reported_once():
    found = scan(top("from os import path, sep"))
    assert [(f.rule, f.column) for f in found] == [("R101", 16), ("R101", 22)]


def test_findings_are_bounded():
    assert len(scan(top("eval\n" * 5000))) == MAX_FINDINGS


def test_main_blocks_are_exempt_and_their_else_is_not():
    block = "\nif __name__ == '__main__':\n    import os\n    exec('1')\nelse:\n    import sys\n"
    found = scan(submission() + block)
    assert [(f.rule, f.message) for f in found] == [("R101", "`import sys`: not available to submissions")]


def test_a_main_block_written_backwards_is_one():
    assert rules_of(submission() + "\nif '__main__' == __name__:\n    import os\n") == []


def test_the_text_of_a_main_block_is_not_exempt():
    assert rules_of(submission() + "\nif __name__ == '__main__':\n    x = 1  # \u202e\n") == ["R601"]


def test_names_bound_in_a_main_block_do_not_shadow():
    assert "R201" in rules_of(submission(step="eval('1')") + "\nif __name__ == '__main__':\n    eval = print\n")


def test_str_and_bytes_are_the_same():
    assert scan(top("eval")) == scan(top("eval").encode())


@pytest.mark.parametrize(
    ("source", "name"),
    [("", "no-inner-steps"), ("def inner_steps(a): pass", "no-inner-steps"), ("def f(:", "syntax"), ("return", "syntax"), ("\0", "rule"),
     (submission(top="eval"), "rule"), ("import os", "rule")],
)  # fmt: skip
def test_reasons_carry_the_fault_and_the_stage(source, name):
    reason = first_reason(scan(source))
    assert reason.code == faults.fault(name).code
    assert reason.stage is Stage.CHECK
    assert reason.rule in BY_ID
    assert reason.hint == BY_ID[reason.rule].instead
    assert BY_ID[reason.rule].why in reason.message


def test_the_reason_counts_the_other_findings():
    assert "2 more" in first_reason(scan(top("import os\nimport sys\nimport gc"))).message


def test_inner_steps_may_be_bound_in_any_way():
    body = submission().replace("def inner_steps", "def steps")
    for binding in ("inner_steps = steps", "inner_steps = torch.compiler.disable(steps)", "if True:\n    inner_steps = steps", "inner_steps: object = steps"):
        assert rules_of(f"{body}\n\n{binding}\n") == []


@pytest.mark.parametrize(
    "spec", ["a, b, c, d, e", "*a", "a, *b", "a, b, c, d, e, f=1", "a, b, c, d, e, /", "a, b, c, d, e, *, f=1", "a, b, c, d=1, e=2", "*a, **k"]
)
def test_signatures_that_can_be_called(spec):
    assert rules_of(f"def inner_steps({spec}): pass") == []


@pytest.mark.parametrize("spec", ["", "a, b, c, d", "a, b, c, d, *, e", "*, a, b, c, d, e", "a, b, c, d, e, f", "*a, k", "**k"])
def test_signatures_that_cannot(spec):
    assert rules_of(f"def inner_steps({spec}): pass") == ["R702"]


def test_the_optimizer_is_known_by_its_place():
    assert rules_of(submission().replace("optimizer", "adam").replace("    pass\n", "    adam.step = print\n", 1)) == ["R502"]


def test_names_are_judged_by_their_scope():
    clean = top("""
        def f(input, vars):
            open = input
            def g(): return open
            return g, vars
        """)
    assert rules_of(clean) == []
    assert rules_of(top("def f(): return open\ndef g(open): return open")) == ["R201"]


def test_a_helper_may_be_defined_after_its_use():
    assert rules_of(submission(step="x = [compile(p) for p in (1,)]") + "\n\ndef compile(x):\n    return x\n") == []


def test_a_class_of_the_file_may_be_changed():
    assert rules_of(top("class Mine: pass\nMine.__call__ = lambda self: 1\nMine.norm = 1")) == []
    assert rules_of(top("class Mine: pass\ntorch.nn.Linear.__call__ = lambda self: 1")) == ["R302"]


def test_size_is_judged_by_the_operators_setting():
    source = submission() + "#" * 1000
    assert scan(source, max_bytes=len(source)) == []
    assert [f.rule for f in scan(source, max_bytes=len(source) - 1)] == ["R602"]


# ------------------------------------------------------------------------------------------------ any input at all

_TOKENS = st.sampled_from(
    [*"()[]{}:,.;=+-*@\\\n\t '\"#", "if ", "def f", "class A", "import ", "from ", "as ", "lambda ", "eval", "torch", "getattr", "__name__", "==", ":=",
     "'__main__'", "for x in ", "async ", "await ", "match x:\n case ", "f'{", "}'", "try:", "except ", "global ", "*", "**", "\r", "\x0c", "\ufeff", "\u202e", "ｅ", "0x", "1e", "1_0"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | st.text(max_size=200) | st.lists(_TOKENS, max_size=60).map("".join))
@example(b"\xff\xfe")
@example("\ud800")
def test_no_input_raises_and_none_without_inner_steps_is_clean(source):
    found = scan_unguarded(source, 500_000)
    assert found
    assert all(f.rule in BY_ID and f.line >= 1 and f.column >= 1 for f in found)
    assert len(fingerprint(source)) == 64
    msgspec.json.encode(found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([c.source for c in (*CHEATS, *EVASIONS)] + list(HONEST.values())), st.data())
def test_a_damaged_file_raises_nothing(source, data):
    start = data.draw(st.integers(0, len(source)))
    end = data.draw(st.integers(start, min(len(source), start + 40)))
    scan_unguarded(source[:start] + data.draw(st.lists(_TOKENS, max_size=4).map("".join)) + source[end:], 500_000)


def test_findings_do_not_depend_on_layout():
    """Printing the tree anew changes no rule (where the text itself is no fault)."""
    for case in (*CHEATS, *EVASIONS):
        if case.rule in ("R601", "R602", "R703"):
            continue
        again = ast.unparse(ast.parse(case.source))
        assert case.rule in rules_of(again), case.name


def test_a_file_that_takes_too_long_or_crashes_the_parser_is_a_finding():
    assert [f.rule for f in check_apart(b"x = " + b"-" * 400_000 + b"1").findings] == ["R602"]


@pytest.mark.parametrize("way", [scan_apart, scan_forked])
def test_the_check_apart_says_what_the_check_says(way):
    source = top("import os\nx = 'ü\u202e'; eval('1')").encode()
    assert way(source) == scan(source)
    assert fingerprint_apart(source) == fingerprint(source)


@pytest.mark.parametrize("way", [scan_apart, scan_forked])
def test_the_check_apart_obeys_the_size_limit(way):
    assert [f.rule for f in way(submission().encode(), max_bytes=10)] == ["R602"]


@pytest.fixture
def alone(monkeypatch):
    """As in a command, which has no other threads (in a run of all tests some library has left one): the check is a fork."""
    monkeypatch.setattr(rules_apart.threading, "active_count", lambda: 1)


@pytest.mark.parametrize("number", sorted(rules_apart.GAVE_UP))
def test_a_parser_that_crashes_is_a_finding(alone, monkeypatch, number):
    monkeypatch.setattr(rules_apart, "scan", lambda *a, **k: os.kill(os.getpid(), number) or signal.pause())
    found = scan_forked(b"x = 1")
    assert [f.rule for f in found] == ["R602"]
    assert number.name in found[0].message


@pytest.mark.parametrize("doing", [
    lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL),  # the kernel, short of memory
    lambda *a, **k: 1 / 0,  # a bug of ours
    lambda *a, **k: os._exit(0),  # no answer
], ids=["killed", "bug", "silent"])  # fmt: skip
def test_a_check_that_fails_for_another_reason_is_our_fault(alone, monkeypatch, doing):
    monkeypatch.setattr(rules_apart, "scan", doing)
    with pytest.raises(SandboxFault, match="rule check"):
        scan_forked(b"x = 1")


def test_a_check_that_cannot_be_started_is_our_fault(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SandboxFault, match="could not be run"):
        check_apart(b"x = 'never checked before'")


def test_memory_that_is_not_there_is_a_finding(alone, monkeypatch):
    """The child's address space is bounded; what does not fit is the file's doing."""
    monkeypatch.setattr(rules_scan, "scan_unguarded", lambda *a: bytearray(rules_apart.MEMORY_BYTES))
    assert [f.rule for f in scan_forked(b"x = 1")] == ["R602"]


# ------------------------------------------------------------------------------------------------ fingerprint


BASE = HONEST["chunked-loss"]


def renamed(source, pairs):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("id", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str) and not isinstance(node, ast.alias | ast.keyword):
                setattr(node, field, pairs.get(value, value))
    return ast.unparse(tree)


@pytest.mark.parametrize("name", HONEST)
def test_layout_and_comments_do_not_count(name):
    source = HONEST[name].removeprefix("\ufeff").replace("\r\n", "\n")
    assert fingerprint(ast.unparse(ast.parse(source))) == fingerprint(HONEST[name])
    assert fingerprint("# mine\n\n" + source + "\n\n# end") == fingerprint(HONEST[name])


def test_docstrings_annotations_main_blocks_and_pass_do_not_count():
    plain = "def inner_steps(a, b, c, d, e):\n    x = a\n    return x\n"
    dressed = '"""Mine."""\nfrom_me: int\ndef inner_steps(a: int, b, c, d, e) -> int:\n    """Doc."""\n    x: int = a\n    return x\n    pass\nif __name__ == "__main__":\n    print(1)\n'
    assert fingerprint(plain) == fingerprint(dressed.replace("x: int = a", "x = a"))


def test_own_names_do_not_count():
    again = renamed(BASE, {"logits": "zz", "ChunkedLoss": "Mine", "head": "top_", "LOSS_CHUNK": "N", "piece": "q", "batch": "b0", "step": "unused"})
    assert again != BASE
    assert fingerprint(again) == fingerprint(BASE)


def test_import_aliases_do_not_count():
    assert fingerprint("import torch.nn.functional as F\nF.relu(1)") == fingerprint("import torch.nn.functional as G\nG.relu(1)")


@pytest.mark.parametrize(
    ("old", "new"), [("1024", "2048"), ("logsumexp", "softmax"), ("probability /=", "probability *="), ("- logits.gather", "+ logits.gather"), ("lr", "eps")]
)
def test_what_the_program_does_counts(old, new):
    assert old in BASE
    assert fingerprint(BASE.replace(old, new, 1) if old != "lr" else BASE.replace('["lr"]', '["eps"]')) != fingerprint(BASE)


def test_swapped_names_count():
    assert fingerprint("def f(a, b): return a - b") != fingerprint("def f(a, b): return b - a")
    assert fingerprint("def f(a, b): return a - b") == fingerprint("def g(x, y): return x - y")


def test_the_same_local_name_in_two_functions_is_two_names():
    assert fingerprint("def f():\n x = 1\n return x\ndef g():\n x = 2\n return x") == fingerprint("def f():\n y = 1\n return y\ndef g():\n z = 2\n return z")


def test_global_and_local_are_different_things():
    assert fingerprint("x = 1\ndef f():\n    return x") != fingerprint("x = 1\ndef f():\n    x = 2\n    return x")


def test_programs_of_the_corpus_are_all_different():
    sources = {name: text for name, text in HONEST.items() if name not in ("windows-newlines", "byte-order-mark", "declares-utf-8", "unicode")}
    assert len({fingerprint(text) for text in sources.values()}) == len(sources)


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def write(tmp_path):
    def write_(text, name="train.py"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_


def test_a_clean_file(write, capsys):
    assert check.run([write(submission())]) == 0
    assert capsys.readouterr().out.endswith("train.py: clean\n")


def test_findings_look_like_a_linters(write, capsys):
    path = write(top("\tx = 1") .replace("\t", "") + "\n\ny = 'ü'; eval('1')\n")
    line = Path(path).read_text().split("\n").index("y = 'ü'; eval('1')") + 1
    assert check.run([path]) == 1
    out = capsys.readouterr().out.split("\n")
    assert out[0] == f"{path}:{line}:10: R201 `eval` is not available to submissions"
    assert out[1] == "    y = 'ü'; eval('1')"
    assert out[2] == "             ^^^^"
    assert out[3].startswith("    why:     ")
    assert out[4].startswith("    instead: ")
    assert out[5] == f"{path}: 1 finding"


def test_json_is_its_twin(write, capsys):
    path = write(top("eval\nexec"))
    assert check.run([path], json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["clean"]) == (path, False)
    assert [f["rule"] for f in document["findings"]] == ["R201", "R201"]
    assert set(document["findings"][0]) == {"rule", "line", "column", "message", "why", "instead", "end_line", "end_column"}


def test_several_files(write, capsys):
    paths = [write(submission(), "a.py"), write(top("eval"), "b.py")]
    assert check.run(paths) == 1
    assert "a.py: clean" in capsys.readouterr().out
    assert check.run(paths, json=True) == 1
    assert [f["clean"] for f in json.loads(capsys.readouterr().out)["files"]] == [True, False]


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(submission().encode())))
    assert check.run(["-"]) == 0
    assert capsys.readouterr().out == "-: clean\n"


@pytest.mark.parametrize("path", ["no-such-file.py", "/", "a\0b"])
def test_a_file_that_cannot_be_read_is_a_usage_error(path):
    with pytest.raises(UsageError, match="cannot read"):
        check.run([path])


def test_no_file_is_a_usage_error():
    with pytest.raises(UsageError, match="name a file"):
        check.run([])


def test_nothing_reaches_the_terminal_that_it_would_obey(write, capsys):
    check.run([write(submission(top="x = '\x1b[2J\x07'; eval('\u202e')"))])
    out = capsys.readouterr().out
    assert "\\x1b[2J" in out
    assert all(character.isprintable() or character == "\n" for character in out)


def test_a_long_line_is_cut(write, capsys):
    check.run([write(top("x = '" + "a" * 5000 + "'; eval('1')"))])
    lines = capsys.readouterr().out.split("\n")
    assert max(len(line) for line in lines[1:3]) < 200
    assert lines[1][lines[2].index("^") :].startswith("eval")


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"\xff" * 100, b"x" * 10_000_000, b"(" * 100_000])
def test_any_file_gives_findings(write, capsys, content):
    assert check.run([write(content)]) == 1
    assert "R" in capsys.readouterr().out


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace")) | st.lists(_TOKENS, max_size=40).map(lambda t: "".join(t).encode()))
def test_no_file_makes_the_command_raise(write, capsys, content):
    for json_ in (False, True):
        assert check.run([write(content)], json=json_) == 1
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + submission().encode(), submission().replace("\n", "\r\n").encode(), submission().replace("\n\n", "\n\x0c\n").encode()],
                         ids=["byte-order-mark", "carriage-returns", "form-feeds"])  # fmt: skip
def test_unusual_but_honest_text_is_clean(write, content):
    assert check.run([write(content)]) == 0


def test_syntax_of_another_python_is_a_finding_that_names_ours(write, capsys):
    assert check.run([write(submission(top="x = 1 if"))]) == 1
    assert f"(read by Python {sys.version_info.major}.{sys.version_info.minor})" in capsys.readouterr().out


def test_a_pipe_that_nobody_writes_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "train.py")
    with pytest.raises(UsageError, match="not a regular file"):
        check.run([str(tmp_path / "train.py")])


def test_a_device_is_a_usage_error():
    with pytest.raises(UsageError, match="not a regular file"):
        check.run(["/dev/zero"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_a_usage_error(write):
    path = write("x = 1")
    os.chmod(path, 0)
    with pytest.raises(UsageError, match="Permission denied"):
        check.run([path])


def test_what_the_shell_hands_over_is_read(capsys):
    reading, writing = os.pipe()
    os.write(writing, submission().encode())
    os.close(writing)
    try:
        assert check.run([f"/dev/fd/{reading}"]) == 0
    finally:
        os.close(reading)


def test_closed_standard_input_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="closed"):
        check.run(["-"])


def test_a_file_that_waits_for_news_does_not_hang(tmp_path, monkeypatch):
    """/proc/kmsg calls itself a regular file."""
    os.mkfifo(tmp_path / "train.py")
    writer = os.open(tmp_path / "train.py", os.O_RDWR)
    monkeypatch.setattr(check, "_is_plain", lambda path: True)
    try:
        with pytest.raises(UsageError, match="nothing to read yet"):
            check.run([str(tmp_path / "train.py")])
    finally:
        os.close(writer)


def test_a_file_beyond_the_reading_cap_is_not_said_to_have_its_size(tmp_path):
    with open(tmp_path / "train.py", "wb") as file:
        file.truncate(rules_source.READ_CAP * 2)
    assert "16,777,216 bytes or more" in scan(check._read(str(tmp_path / "train.py")))[0].message


@pytest.mark.parametrize("flags", ["", " --json"])
@pytest.mark.parametrize(("where", "words"), [(">/dev/full", b"No space left"), (">&-", b"standard output is closed")])
def test_findings_that_cannot_be_written_are_exit_code_2(write, where, words, flags):
    command = f'exec "$0" -m crusades.cli check "$1"{flags} {where}'
    done = subprocess.run(["sh", "-c", command, sys.executable, write("x = 1")], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False), done.stderr
    assert words in done.stderr or flags


@pytest.mark.parametrize("json_", [False, True])
def test_a_name_that_is_no_text_is_shown_escaped(tmp_path, capsys, json_):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\x1b[2J.py")
    Path(path).write_text("x = 'ü'; eval('1')")
    assert check.run([path], json=json_) == 1
    out = capsys.readouterr().out
    assert "\\xff" in out
    assert "\x1b" not in out


def test_a_terminal_without_the_characters_gets_escapes(write):
    path = write(top("ü = 'é'; eval('1')"))
    code = f"import sys; from crusades import check; sys.exit(check.run([{path!r}]))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"\\xe9" in done.stdout


def test_the_scanner_and_the_source_module_agree_on_lines():
    assert rules_source.split_lines("a\rb\r\nc\nd\x0ce") == ["a", "b", "c", "d\x0ce"]
