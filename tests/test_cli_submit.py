"""`crusades submit` from flags to exit code: the real SDK against a dev chain, a file host on loopback, no validator."""

import json
from pathlib import Path

import bittensor as bt
import bittensor_core as core
import msgspec
import pytest

from crusades import cli, hparams
from crusades.chain import create_wallet, open_wallet
from crusades.demo_parts import file_host, to_toml
from crusades.devnet.config import DevnetConfig
from crusades.devnet.net import run_devnet
from crusades.errors import ConfigError
from crusades.records import Reason, Stage
from crusades.submission import Tickets

ROOT = Path(__file__).parent.parent
GOOD = b"def inner_steps(model, data_iterator, optimizer, num_steps, device):\n    return None\n"
BAD = b"import ctypes\n" + GOOD
TREASURY = str(core.Keypair.create_from_uri("//treasury").ss58_address)
FILES = {"train.py": GOOD, "other.py": GOOD + b"# another\n", "bad.py": BAD, "page.py": b"<!doctype html><html></html>", "large.py": GOOD + b"#" * 550_000}


@pytest.fixture(scope="module")
def host():
    with file_host(FILES) as url:
        yield url


@pytest.fixture
def chain(tmp_path, monkeypatch, request):
    """A fast dev chain on which the wallet's hotkey is registered as uid 1. Parameter: blocks until a seal opens."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    wallet = create_wallet("me", "miner", str(tmp_path / "wallets"))
    create_wallet("me", "stranger", str(tmp_path / "wallets"))
    with run_devnet(DevnetConfig(block_time=0.1, reveal_blocks=getattr(request, "param", 3))) as net:
        net.register(1, str(wallet.hotkey.ss58_address))
        yield net


@pytest.fixture
def submit(chain, host, tmp_path, capsys):
    """Runs the command for a path on the host; returns (exit code, document, what was said)."""

    def run(path, *flags, hotkey="miner", network=None, url=None):
        words = ["submit", url or f"{host}/{path}", "--wallet.name", "me", "--wallet-hotkey", hotkey, "--wallet.path", str(tmp_path / "wallets")]
        code = cli.main([*words, "--network", network or chain.url, "--json", *flags])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return run


def commits(chain):
    return [call for call in chain.calls if call.method.startswith("author_submit")]


def test_a_dry_run_says_everything_and_signs_nothing(submit, chain):
    code, document, said = submit("train.py", "--dry-run")
    assert code == 0
    assert document["ok"]
    assert document["dry_run"]
    assert document["payload"]["url"].endswith("/train.py")
    assert "nothing was signed" in said
    assert "set_commitment" in said
    assert commits(chain) == []


def test_it_commits_and_waits_for_the_reveal_and_the_second_time_goes_on_instead_of_signing(submit, chain):
    code, document, said = submit("train.py", "--wait")
    assert code == 0, said
    assert document["status"] == "revealed"
    assert document["commit_block"] > 0
    assert len(document["submission_id"]) == 16
    assert "sealed in block" in said
    assert len(commits(chain)) == 1
    code, again, said = submit("train.py")
    assert code == 0
    assert again["submission_id"] == document["submission_id"]
    assert "going on" in said
    assert len(commits(chain)) == 1


@pytest.mark.parametrize(
    ("path", "hotkey", "words"),
    [
        ("bad.py", "miner", "1201"),
        ("page.py", "miner", "1105"),
        ("missing.py", "miner", "1102"),
        ("train.py", "stranger", "1006"),
    ],
)
def test_what_would_be_rejected_is_refused_before_it_is_signed(submit, chain, path, hotkey, words):
    code, document, said = submit(path, hotkey=hotkey)
    assert code == 1
    assert not document["ok"]
    assert words in [str(problem["code"]) for problem in document["problems"]]
    assert f"[{words}" in said
    assert "nothing was signed" in said
    assert commits(chain) == []


@pytest.mark.parametrize(("max_bytes", "expected"), [(500_000, 1), (600_000, 0)])
def test_how_large_a_file_may_be_is_the_settings_word_alone(submit, tmp_path, max_bytes, expected):
    settings = hparams.load(ROOT / "hparams.toml")
    changed = msgspec.structs.replace(settings, fetch=msgspec.structs.replace(settings.fetch, max_bytes=max_bytes))
    (tmp_path / "hparams.toml").write_text(to_toml(msgspec.to_builtins(changed)))
    code, document, _ = submit("large.py", "--dry-run", "--hparams", str(tmp_path / "hparams.toml"))
    assert (code, document["ok"]) == (expected, not expected)


def test_a_host_that_is_down_is_the_outsides_fault(submit):
    code, document, _ = submit("", url="http://127.0.0.1:1/train.py")
    assert code == 3
    assert document["error"]["type"] == "FetchFault"


def test_a_chain_that_is_down_is_the_outsides_fault(submit, tmp_path):
    settings = hparams.load(ROOT / "hparams.toml")
    impatient = msgspec.structs.replace(settings, chain=msgspec.structs.replace(settings.chain, call_deadline=0.5))
    (tmp_path / "hparams.toml").write_text(to_toml(msgspec.to_builtins(impatient)))
    code, document, _ = submit("train.py", "--hparams", str(tmp_path / "hparams.toml"), network="ws://127.0.0.1:1")
    assert code == 3
    assert document["error"]["exit_code"] == 3


@pytest.mark.parametrize("chain", [10_000], indirect=True)
def test_a_second_seal_would_destroy_the_first_and_needs_a_word(submit, chain):
    assert submit("train.py")[0] == 0
    code, document, said = submit("other.py")
    assert (code, [problem["code"] for problem in document["problems"]]) == (1, [1003])
    assert "say --replace-pending" in said
    assert len(commits(chain)) == 1
    code, document, _ = submit("other.py", "--replace-pending", "--dry-run")
    assert code == 0
    assert any("destroyed unread" in line for line in document["effects"])


def test_what_is_committed_already_is_gone_on_with_though_its_host_is_down(submit, chain, tmp_path):
    with file_host(FILES) as address:
        assert submit("", url=f"{address}/train.py")[0] == 0
    code, document, said = submit("", "--wait", url=f"{address}/train.py")
    assert code == 0, said
    assert document["status"] == "revealed"
    assert len(commits(chain)) == 1


def test_a_subnet_that_does_not_exist_is_the_users_mistake(submit, chain):
    code, document, _ = submit("train.py", "--netuid", "77")
    assert code == 2
    assert "check --netuid" in document["error"]["message"]


@pytest.fixture
def paying(chain, tmp_path):
    """Settings that ask for 2 τ, and a wallet with money whose coldkey is encrypted."""
    wallet = bt.Wallet("rich", "miner", str(tmp_path / "wallets"))
    wallet.create_new_coldkey(coldkey_password="secret", suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    chain.register(1, str(wallet.hotkey.ss58_address), str(wallet.coldkeypub.ss58_address))
    chain.fund(str(wallet.coldkeypub.ss58_address), 10 * 10**9)
    settings = hparams.load(ROOT / "hparams.toml")
    asks = msgspec.structs.replace(settings, chain=msgspec.structs.replace(settings.chain, fee_rao=2 * 10**9, fee_address=TREASURY))
    (tmp_path / "hparams.toml").write_text(to_toml(msgspec.to_builtins(asks)))
    return ("--hparams", str(tmp_path / "hparams.toml"), "--wallet.name", "rich", "--yes")


def test_a_fee_is_paid_once_by_an_encrypted_coldkey(submit, chain, paying, monkeypatch):
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    code, document, said = submit("train.py", *paying)
    assert code == 0, said
    assert f"receipt {document['payload']['receipt']}" in said
    assert submit("train.py", *paying)[1]["submission_id"] == document["submission_id"]
    assert chain.balance(TREASURY) == 2 * 10**9


def test_without_its_password_an_encrypted_coldkey_is_explained(submit, chain, paying, monkeypatch):
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    code, document, _ = submit("train.py", *paying)
    assert code == 2
    assert "set BT_WALLET_PASSWORD" in document["error"]["message"]
    assert commits(chain) == []


def test_a_dry_run_asks_for_no_password(submit, chain, paying, monkeypatch):
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    code, document, said = submit("train.py", *paying, "--dry-run")
    assert code == 0, said
    assert any("transfers 2 τ" in line for line in document["effects"])


def test_the_coldkey_is_opened_only_after_consent(submit, chain, paying, monkeypatch):
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    code, document, _ = submit("train.py", *[word for word in paying if word != "--yes"])
    assert (code, "say --yes" in document["error"]["message"]) == (2, True)


def tickets_of(tmp_path):
    return Tickets(tmp_path / "state" / "crusades" / "tickets")


@pytest.fixture
def paid(submit, chain, paying, monkeypatch, tmp_path):
    """The receipt of a submission that a validator rejected before it ran."""
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    code, document, said = submit("train.py", *paying, "--wait")
    assert code == 0, said
    (ticket,) = tickets_of(tmp_path).all()
    tickets_of(tmp_path).save(msgspec.structs.replace(ticket, stage="rejected", reason=Reason(code=1201, stage=Stage.CHECK, message="a rule")))
    return document["payload"]["receipt"]


@pytest.mark.parametrize("said_so", [True, False])
def test_a_fee_that_was_not_spent_pays_for_the_next_submission(submit, chain, paying, paid, said_so):
    code, document, said = submit("other.py", *paying, *(["--receipt", paid] if said_so else []))
    assert code == 0, said
    assert document["payload"]["receipt"] == paid
    assert "paid already" in said
    assert chain.balance(TREASURY) == 2 * 10**9


def test_a_paid_ticket_whose_receipt_was_used_meanwhile_pays_anew(submit, chain, paying, paid, tmp_path):
    (ticket,) = tickets_of(tmp_path).all()
    tickets_of(tmp_path).save(msgspec.structs.replace(ticket, stage="paid", reason=None, commit_block=None, sent=None))
    assert submit("other.py", *paying, "--wait")[1]["payload"]["receipt"] == paid
    code, document, said = submit("train.py", *paying)
    assert code == 0, said
    assert document["payload"]["receipt"] != paid
    assert chain.balance(TREASURY) == 4 * 10**9


def interrupted_at(stage, monkeypatch, submit, *words):
    """The command, until it would write that it is at this stage; it ends as Ctrl-C ends it."""
    save = Tickets.save

    def interrupt(tickets, ticket):
        if ticket.stage == stage:
            raise KeyboardInterrupt
        return save(tickets, ticket)

    with monkeypatch.context() as patch:
        patch.setattr(Tickets, "save", interrupt)
        with pytest.raises(json.JSONDecodeError):  # it prints no document
            submit(*words)


@pytest.mark.parametrize(("flags", "again"), [((), "other.py"), (("--replace-pending",), "train.py"), (("--replace-pending",), "other.py")])
def test_a_fee_on_its_way_at_an_interruption_pays_for_what_comes_next(submit, chain, paying, monkeypatch, flags, again):
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    interrupted_at("paid", monkeypatch, submit, "train.py", *paying, *flags)
    code, document, said = submit(again, *paying, *flags)
    assert (code, document["status"]) == (0, "sealed"), said
    assert chain.balance(TREASURY) == 2 * 10**9


def test_a_dry_run_changes_no_ticket(submit, chain, paying, monkeypatch, tmp_path):
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    interrupted_at("paid", monkeypatch, submit, "train.py", *paying)
    before = tickets_of(tmp_path).all()
    assert submit("other.py", *paying, "--dry-run")[0] == 0
    assert tickets_of(tmp_path).all() == before
    assert [ticket.stage for ticket in before] == ["paying"]


@pytest.mark.parametrize("chain", [100], indirect=True)
def test_the_same_command_replaces_no_seal_of_its_own(submit, chain, monkeypatch):
    interrupted_at("sealed", monkeypatch, submit, "train.py", "--replace-pending")
    for _ in range(2):
        code, document, said = submit("train.py", "--replace-pending")
        assert (code, document["status"]) == (0, "sealed"), said
    assert len(commits(chain)) == 1


@pytest.mark.parametrize("later", [0, 20])
@pytest.mark.parametrize("chain", [100], indirect=True)
def test_a_seal_that_another_file_replaced_can_replace_it_in_turn(submit, chain, later):
    first = submit("train.py")[1]["commit_block"]
    chain.produce_blocks(later)
    second = submit("other.py", "--replace-pending")[1]["commit_block"]
    chain.produce_blocks(later)
    third = submit("train.py", "--replace-pending")[1]["commit_block"]
    assert first < second < third


def test_a_receipt_that_does_not_pay_is_refused_before_anything_is_signed(submit, chain, paying, monkeypatch):
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    chain.produce_blocks(2)  # a block that is not there yet would be another story
    code, document, _ = submit("train.py", *paying, "--receipt", "1-0")
    assert (code, document["problems"][0]["code"]) == (1, 1007)
    assert commits(chain) == []


def test_a_receipt_where_no_fee_is_asked_is_the_users_mistake(submit, chain):
    code, document, _ = submit("train.py", "--receipt", "1-0")
    assert (code, "leave --receipt out" in document["error"]["message"]) == (2, True)


@pytest.mark.parametrize("address", ["http://[", "ftp://x", ""])
def test_an_address_of_no_validator_is_told_before_anything_is_signed(submit, chain, address):
    code, document, _ = submit("train.py", "--wait", "--url", address)
    assert (code, "HOST:PORT" in document["error"]["message"]) == (2, True)
    assert commits(chain) == []


def ends(prompt=""):
    raise EOFError


def test_ctrl_d_at_the_question_is_a_no(chain, host, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ends)
    words = ["submit", f"{host}/train.py", "--wallet.name", "me", "--wallet.hotkey", "miner", "--wallet.path", str(tmp_path / "wallets")]
    assert cli.main([*words, "--network", chain.url]) == 1
    assert "nothing was signed" in capsys.readouterr().err
    assert commits(chain) == []


def test_ctrl_d_at_the_password_is_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    wallet = bt.Wallet("locked", "miner", str(tmp_path))
    wallet.create_new_hotkey(hotkey_password="secret", suppress=True)
    with pytest.raises(ConfigError, match="no password was given for the hotkey 'miner'"):
        open_wallet("locked", "miner", str(tmp_path), password=ends)


def test_a_runtime_that_lacks_something_is_told_by_a_dry_run(submit, chain, monkeypatch):
    monkeypatch.setattr("crusades.chain_node.Node.lacking", lambda self: ("Commitments.set_commitment",))
    code, document, _ = submit("train.py", "--dry-run")
    assert (code, "lacks Commitments.set_commitment" in document["problems"][0]["message"]) == (1, True)


def test_a_coldkey_that_cannot_pay_is_told_how_much_is_missing(submit, chain, paying, monkeypatch):
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    chain.fund(str(bt.Wallet("rich", "miner", paying_path(paying)).coldkeypub.ss58_address), 10**9)
    code, document, _ = submit("train.py", *paying)
    assert code == 1
    assert "at least 1.002 τ more" in document["problems"][0]["message"]
    assert commits(chain) == []


def paying_path(flags):
    """Where the wallets are: beside the settings."""
    return str(Path(flags[1]).parent / "wallets")
