"""The command line as people and scripts meet it: flags, exit codes, words."""

import argparse
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest

from crusades import cli, cli_flags, nvml
from crusades import hparams as hparams_module
from crusades.errors import ChainError, ConfigError, DeviceFault, EnvironmentFault, MustNotRestart, RefereeFault, SandboxFault, UsageError
from crusades.faults import FAULTS
from crusades.records import Outcome, Overview, Page, Reason, Stage, Status, Submission, Verdict, WeightsView

ROOT = Path(__file__).parent.parent

WALLET = ["--wallet-hotkey", "--wallet-name", "--wallet-path", "--wallet.hotkey", "--wallet.name", "--wallet.path"]
FLAGS = {
    "bench": ["--device", "--hparams", "--json", "--profile", "--runs", "--skip-rules", "--unsafe-no-sandbox", "TRAIN_PY"],
    "calibrate": ["--device", "--each", "--exams", "--from-results", "--honest", "--hparams", "--only", "--out", "--profile", "--seconds", "--sizes", "--spread", "--write"],
    "check": ["--json", "TRAIN_PY"],
    "demo": ["--json", "--once", "--profile", "--state-dir", "--web"],
    "devnet": [],
    "doctor": ["--json"],
    "init": ["--fast", "--json", "PATH"],
    "install-service": ["--dry-run"],
    "setup": ["--hparams", "--json", "--profile", "--verify"],
    "status": ["--json", "--url", "HOTKEY"],
    "store": [],
    "submit": ["--dry-run", "--hparams", "--json", "--netuid", "--network", "--receipt", "--replace-pending", "--url", "--wait", *WALLET, "--yes", "URL"],
    "tui": ["--url"],
}
"""Frozen: a new flag is a promise to keep it, and tuning belongs into hparams.toml. Change this list only on purpose."""


def commands():
    action = next(a for a in cli_flags.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def flags_of(command):
    found = []
    for action in command._actions:
        if not isinstance(action, argparse._HelpAction):
            found += action.option_strings or [action.metavar]
    return sorted(found)


def test_the_flags_are_frozen():
    assert {name: flags_of(command) for name, command in commands().items()} == FLAGS


def test_every_command_has_a_function_and_every_flag_a_help_text():
    assert set(cli.COMMANDS) | set(cli.PASSED_ON) == set(commands())
    for name, command in commands().items():
        for action in command._actions:
            assert action.help or name == "check", f"{name} {action.option_strings or action.metavar} has no help"


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("crusades 0.")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["bench"], ["bench", "x.py", "--runs", "0"], ["check", "a", "b"], ["check", "a", "--js"]])
def test_wrong_usage_is_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ errors


def raising(error):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("no such file"), 2), (ConfigError("bad key"), 2), (ChainError("node down"), 3), (MustNotRestart("two of us"), 3)],
)
def test_our_errors_are_one_line_and_an_exit_code(error, code, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "check", raising(error))
    assert cli.main(["check", "x.py"]) == code
    seen = capsys.readouterr()
    assert seen.err == f"crusades: {error}\n"
    assert seen.out == ""


def test_an_error_in_a_nursery_is_the_same_line(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "check", raising(BaseExceptionGroup("nursery", [ExceptionGroup("inner", [ChainError("node down")])])))
    assert cli.main(["check", "x.py"]) == 3
    assert capsys.readouterr().err == "crusades: node down\n"


def test_with_json_the_error_is_a_document(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "check", raising(UsageError("no such file")))
    assert cli.main(["check", "x.py", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": {"type": "UsageError", "message": "no such file", "exit_code": 2}}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("nursery", [KeyboardInterrupt()])])
def test_ctrl_c_is_130_and_silent(error, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "check", raising(error))
    assert cli.main(["check", "x.py"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "check", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["check", "x.py"])


# ------------------------------------------------------------------------------------------------ init and check


def test_init_writes_the_baseline_and_never_overwrites(tmp_path, capsys):
    target = tmp_path / "train.py"
    assert cli.main(["init", str(tmp_path)]) == 0
    assert target.read_bytes() == (ROOT / "examples" / "baseline.py").read_bytes()
    assert cli.main(["init", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_init_fast_writes_the_serious_one(tmp_path):
    assert cli.main(["init", "--fast", str(tmp_path / "x.py")]) == 0
    assert (tmp_path / "x.py").read_bytes() == (ROOT / "examples" / "fast.py").read_bytes()


def test_init_names_its_file_as_json(tmp_path, capsys):
    assert cli.main(["init", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": str(tmp_path / "train.py")}


def test_check_of_a_clean_file_is_0(capsys):
    assert cli.main(["check", str(ROOT / "examples" / "baseline.py")]) == 0
    assert capsys.readouterr().out.endswith("baseline.py: clean\n")


def test_check_prints_findings_like_a_linter(tmp_path, capsys):
    file = tmp_path / "train.py"
    file.write_text("import torch\nimport ctypes\n\ndef inner_steps(model, data_iterator, optimizer, num_steps, device):\n    pass\n")
    assert cli.main(["check", str(file)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{file}:2:")
    assert cli.main(["check", str(file), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["clean"] is False
    assert report["findings"][0]["line"] == 2


def test_check_of_a_missing_file_is_2(tmp_path, capsys):
    assert cli.main(["check", str(tmp_path / "none.py")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_check_needs_neither_torch_nor_the_chain_nor_trio():
    code = "import sys; from crusades import cli; cli.main(['check', 'examples/baseline.py']); print(sorted({'torch', 'bittensor', 'trio', 'httpx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------------------ bench


def bench_returns(monkeypatch, result):
    async def fake(arguments):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(cli, "_bench", fake)


ACCEPTED = Verdict(verdict=Outcome.ACCEPTED, score_mfu=12.5)
REJECTED = Verdict(verdict=Outcome.REJECTED, code=1401, rule="layer_projection", stage=Stage.AUDIT, message="step 5: layer 3 was not trained", measured=0.98, limit=0.02)


@pytest.mark.parametrize(("result", "code", "word"), [(ACCEPTED, 0, "accepted"), (REJECTED, 1, "rejected"), (SandboxFault("no user namespaces"), 3, "fault")])
def test_bench_exit_code_and_json(result, code, word, monkeypatch, capsys):
    bench_returns(monkeypatch, result)
    assert cli.main(["bench", "train.py", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == word
    assert {"code", "rule", "stage", "message", "measured", "limit", "score_mfu", "runs", "device", "model", "rules_version", "environment"} <= set(document)


@pytest.mark.parametrize(("kind", "code"), [(SandboxFault, 2001), (RefereeFault, 2002), (DeviceFault, 2003), (EnvironmentFault, 2006)])
def test_bench_names_the_row_of_a_fault_of_ours_and_what_to_do(kind, code, monkeypatch, capsys):
    bench_returns(monkeypatch, kind("model net is not in the cache"))
    assert cli.main(["bench", "train.py", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["code"], document["hint"]) == (code, FAULTS[code].advice)


def test_bench_in_words_names_rule_measure_and_limit(monkeypatch, capsys):
    bench_returns(monkeypatch, REJECTED)
    assert cli.main(["bench", "train.py"]) == 1
    text = capsys.readouterr().out
    for word in ("REJECTED", "1401", "layer_projection", "0.98", "0.02", "layer 3"):
        assert word in text


@pytest.mark.parametrize(
    ("profile", "device", "cards", "wanted"),
    [
        (None, "auto", 0, ("tiny", "cpu")),
        (None, "auto", 1, ("qwen2.5-3b", "cuda:0")),
        (None, "cpu", 1, ("tiny", "cpu")),
        ("tiny", "auto", 1, ("tiny", "cpu")),
        ("qwen2.5-3b", "cuda:1", 2, ("qwen2.5-3b", "cuda:1")),
        ("qwen2.5-3b", "cpu", 0, ("qwen2.5-3b", "cpu")),
    ],
)
def test_profile_and_device_that_are_not_given_are_chosen(profile, device, cards, wanted, monkeypatch):
    monkeypatch.setattr(nvml, "devices", lambda *_: (None,) * cards)
    assert cli.choose_profile(hparams_module.load(ROOT / "hparams.toml"), profile, device) == wanted


@pytest.mark.parametrize("words", [["bench", "train.py"], ["calibrate"]])
def test_a_profile_for_a_card_is_refused_where_none_answers(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nvml, "devices", lambda *_: ())
    monkeypatch.setattr("crusades.bench.local.run_bench", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr("crusades.bench.referee.calibrate.calibrate", lambda *_: pytest.fail("it was begun"))
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--profile", "qwen2.5-3b", "--hparams", str(ROOT / "hparams.toml")]) == 2
    said = capsys.readouterr().err
    for word in ("profile qwen2.5-3b is made for a card, and none answers here", "--profile tiny", "--profile smol", "--device cpu"):
        assert word in said


def test_a_dev_profile_for_a_card_is_refused_too(monkeypatch):
    monkeypatch.setattr(nvml, "devices", lambda *_: ())
    loaded = hparams_module.load(ROOT / "hparams.toml")
    loaded = msgspec.structs.replace(loaded, competition=msgspec.structs.replace(loaded.competition, dev_profile="qwen2.5-3b"))
    with pytest.raises(ConfigError, match=r"profile qwen2\.5-3b is made for a card"):
        cli.choose_profile(loaded, None, "auto")


# ------------------------------------------------------------------------------------------------ status

SUBMISSION = Submission(
    id="0123456789abcdef", netuid=1, hotkey="5Abc", uid=3, status=Status.REJECTED, verdict=Outcome.REJECTED, commit_block=7, url="http://h/x.py",
    created_at=1.0, updated_at=2.0, reason=Reason(code=1401, stage=Stage.AUDIT, message="half of it is missing", rule="unmoved", hint="train on everything"),
)  # fmt: skip


OVERVIEW = msgspec.json.encode(Overview(version="1", network="dev", netuid=1, hotkey="5V", uid=0, block=9, finalized_block=7, started_at=1.0, now=9.0, rules_version="1+x", profile="tiny",
                                        model="tiny", counts={}, leader=None, slots=(), weights=WeightsView(), ready=True))  # fmt: skip


@pytest.fixture
def validator():
    """A server that answers like a validator; `asked` holds the paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.body if "/submissions" in self.path else OVERVIEW if "/overview" in self.path else b'{"items":[]}')

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.body = [], msgspec.json.encode(Page(items=(SUBMISSION,)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_status_takes_a_bare_address_and_says_why(validator, capsys):
    assert cli.main(["status", "5Abc", "--url", f"127.0.0.1:{validator.server_port}"]) == 0
    assert validator.asked[0] == "/api/v1/submissions?limit=50&hotkey=5Abc"
    text = capsys.readouterr().out
    for word in ("rejected", "block 7", "1401", "unmoved", "half of it is missing", "train on everything"):
        assert word in text


def test_status_json(validator, capsys):
    assert cli.main(["status", "--json", "--url", f"http://127.0.0.1:{validator.server_port}/"]) == 0
    items = json.loads(capsys.readouterr().out)
    assert items[0]["status"] == "rejected"


def test_status_of_something_that_is_no_validator_is_3(validator, capsys):
    validator.body = b"<html>"
    assert cli.main(["status", "--url", f"127.0.0.1:{validator.server_port}"]) == 3
    assert "not a crusades validator" in capsys.readouterr().err


def test_status_without_a_validator_says_how_to_name_one(validator, capsys):
    validator.server_close()
    assert cli.main(["status", "--url", f"127.0.0.1:{validator.server_port}"]) == 3
    assert "--url" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ submit


def test_submit_needs_a_netuid_on_a_real_chain(capsys):
    assert cli.main(["submit", "https://example.org/train.py"]) == 2
    assert "--netuid" in capsys.readouterr().err


def test_submit_without_a_wallet_says_what_to_do(tmp_path, capsys):
    words = ["submit", "https://example.org/train.py", "--netuid", "1", "--wallet-path", str(tmp_path), "--wallet.name", "nobody"]
    assert cli.main(words) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "code", "words"), [("cuda:99", 3, "cuda:99"), ("gpu", 2, "--device is auto, cpu or cuda:N, not 'gpu'")])
def test_calibrate_says_in_a_sentence_that_a_device_is_not_there(tmp_path, capsys, device, code, words):
    assert cli.main(["calibrate", "--profile", "tiny", "--device", device, "--out", str(tmp_path / "out")]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def measures(monkeypatch):
    """Instead of a calibration; `calls` has what was asked for, `complete` is its answer."""

    class Measures:
        def __init__(self):
            self.calls, self.complete = [], True

        def __call__(self, config):
            self.calls.append(config)
            return self.complete

    found = Measures()
    monkeypatch.setattr("crusades.bench.referee.calibrate.calibrate", found)
    monkeypatch.setattr("crusades.bench.referee.calibrate.rewrite", found)
    monkeypatch.setattr(nvml, "devices", lambda *_: ())
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    return found


@pytest.mark.parametrize(
    ("complete", "flags", "code", "words"),
    [
        (True, [], 0, "report: "),
        (False, [], 1, "incomplete: 0.5 s are over, and not all is measured; the same command goes on from "),
        (False, ["--write"], 1, "not all is measured; no limits were written; the same command goes on from "),
    ],
)
def test_a_calibration_says_whether_it_is_complete(complete, flags, code, words, measures, tmp_path, capsys):
    measures.complete = complete
    assert cli.main(["calibrate", "--profile", "tiny", "--seconds", "0.5", "--out", str(tmp_path), *flags]) == code
    assert words in capsys.readouterr().out


def test_what_was_measured_on_a_card_is_rewritten_where_none_answers(measures, tmp_path):
    assert cli.main(["calibrate", "--profile", "qwen2.5-3b", "--from-results", "--out", str(tmp_path)]) == 0
    assert [config.device for config in measures.calls] == ["cuda"]
