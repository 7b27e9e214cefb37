"""The log: fields, both forms, and that no secret and no forged line gets out."""

import io
import json
import logging

import pytest
import trio
import trio.testing

from crusades import logs


@pytest.fixture
def lines(request):
    """A logger whose output is collected; parametrize indirectly with the formatter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(request.param())
    logger = logging.getLogger("crusades.test_logs")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger, stream
    logger.removeHandler(handler)


both = pytest.mark.parametrize("lines", [logs.JsonLines, logs.Terminal], indirect=True)
as_json = pytest.mark.parametrize("lines", [logs.JsonLines], indirect=True)

SEED = "0x" + "3e" * 32
PHRASE = "legal winner thank year wave sausage worth useful legal winner thank yellow"
SECRETS = [
    ('{"secretSeed": "%s", "ss58Address": "5Grw"}', SEED),
    ("{'secretPhrase': '%s'}", PHRASE),
    ("key 0x%s", "ab" * 64),
    ("wallet password=%s refused", "hunter2hunter2"),
    ("GET https://x.example/?token=%s failed", "s3cr3tvalue"),
    ("dialling wss://user:%s@node.example:443", "pa55word!"),
    ("Authorization: Bearer %s", "eyJhbGciOi.J9"),
    ("hub said 401 for %s", "hf_" + "Q" * 30),
]


@both
@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_no_secret_gets_out_in_a_message_an_argument_a_field_or_a_traceback(lines, text, secret):
    logger, stream = lines
    logger.error(text % secret)
    logger.error("%s", text % secret)
    with logs.bound(detail=text % secret):
        logger.error("in a field")
    try:
        raise ValueError(text % secret)
    except ValueError:
        logger.exception("it failed")
    assert secret not in stream.getvalue()
    assert logs.MASK in stream.getvalue()


@both
def test_a_registered_secret_is_masked_wherever_it_stands(lines, monkeypatch):
    monkeypatch.setattr(logs, "redactor", logs.Redactor({"HF_TOKEN": "opaque-token-value"}))
    logs.redactor.add("https://hooks.example/services/T000/B000/XXXX")
    logger, stream = lines
    logger.info("posting to https://hooks.example/services/T000/B000/XXXX with opaque-token-value")
    assert "B000" not in stream.getvalue()
    assert "opaque-token-value" not in stream.getvalue()


@as_json
def test_hashes_and_addresses_are_not_mistaken_for_secrets(lines):
    logger, stream = lines
    text = f"c1:{'ab' * 32} by 5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY at 0x{'cd' * 32}"
    logger.info(text)
    assert json.loads(stream.getvalue())["message"] == text


@as_json
async def test_fields_belong_to_the_task_and_reach_its_threads(lines):
    logger, stream = lines

    async def work(name):
        with logs.bound(submission=name, block=7):
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(logger.info, "from a thread")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "a")
        nursery.start_soon(work, "b")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted((line["submission"], line["block"]) for line in told) == [("a", 7), ("b", 7)]


@both
def test_a_submission_cannot_forge_a_line(lines):
    logger, stream = lines
    logger.info("it said: %s", "ok\n12:00:00 ERROR the validator was hacked \x1b[2J")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@as_json
def test_every_json_line_has_time_level_logger_and_message(lines):
    logger, stream = lines
    logger.warning("careful")
    told = json.loads(stream.getvalue())
    assert told["at"].endswith("+00:00")
    assert (told["level"], told["message"]) == ("warning", "careful")


def test_json_is_chosen_only_when_stderr_is_the_journal():
    assert not logs.under_systemd({})
    assert not logs.under_systemd({"JOURNAL_STREAM": "1:2"})
