"""Which rules judge a commitment: those that were in force at its block, and today's only where those cannot be applied."""

import msgspec
import pytest

from crusades import hparams
from crusades.rulebook import MOST, Rulebook, Rules, decode, describe

replace = msgspec.structs.replace


def rules(runs=5, **profile):
    settings = hparams.load()
    tiny = replace(settings.profiles["tiny"], runs=runs, **profile)
    settings = replace(settings, profiles={**settings.profiles, "tiny": tiny})
    return Rules(settings.rules_version("tiny"), "tiny", settings)


def after(*, then, now, from_block=100):
    """A validator that ran with `then`, and with `now` since it saw block `from_block`."""
    book = Rulebook(then)
    book.note(1)
    book = Rulebook(now, decode(msgspec.json.decode(msgspec.json.encode(book.editions))))
    book.note(from_block)
    return book


def test_the_rules_of_the_commit_block_judge():
    then, now = rules(runs=3), rules(runs=5)
    book = after(then=then, now=now)
    assert [book.version_at(block) for block in (0, 100, 101)] == [then.version, then.version, now.version]
    assert book.at(100).hparams.profile("tiny").runs == 3
    assert book.at(100).hparams.rules_version("tiny") == then.version
    assert book.at(101) is now


def test_the_first_rules_that_a_validator_knows_count_for_everything_before():
    book = Rulebook(rules())
    book.note(1_000)
    assert book.at(5) is book.current


def test_a_restart_with_the_same_rules_is_no_edition():
    book = Rulebook(rules())
    assert book.note(10) is True
    assert book.note(20) is False
    assert len(book.editions) == 1


def test_rules_that_come_back_count_from_when_they_came_back():
    then, between = rules(runs=3), rules(runs=4)
    book = after(then=then, now=between)
    book = Rulebook(then, book.editions)
    book.note(200)
    assert [book.version_at(block) for block in (50, 150, 250)] == [then.version, between.version, then.version]
    assert book.at(150).hparams.profile("tiny").runs == 4


@pytest.mark.parametrize("spoil", ["unknown key", "other hash", "other device"])
def test_what_cannot_be_applied_any_more_gives_way_to_todays_rules_and_says_so(spoil, caplog):
    book = after(then=rules(runs=3, **({"device": "cuda"} if spoil == "other device" else {})), now=rules(runs=5))
    felt = book.editions[0].felt
    if spoil == "unknown key":
        felt["profile"]["of_the_future"] = 1
    elif spoil == "other hash":
        felt["profile"]["runs"] = 4
    assert book.at(50) is book.current
    assert "cannot be applied any more" in caplog.text
    assert book.at(50) is book.current
    assert len(caplog.records) == 1


def asking(**dues):
    settings = hparams.load()
    settings = replace(settings, chain=replace(settings.chain, **dues))
    return Rules(settings.rules_version("tiny"), "tiny", settings)


def test_fee_and_interval_are_those_of_the_commit_block():
    cheap, dear = {"fee_rao": 1, "fee_address": "5Then", "min_commit_interval": 7}, {"fee_rao": 9, "fee_address": "5Now", "min_commit_interval": 0}
    book = after(then=asking(**cheap), now=asking(**dear))
    for block, dues in ((100, cheap), (101, dear)):
        assert {key: getattr(book.dues_at(block), key) for key in dues} == dues
        assert {key: getattr(book.at(block).hparams.chain, key) for key in dues} == dues


def test_the_fee_of_then_holds_though_its_other_rules_cannot_be_applied():
    book = after(then=asking(fee_rao=1, fee_address="5Then"), now=asking(fee_rao=9, fee_address="5Now"))
    book.refuse(book.version_at(100), "its model is gone")
    assert book.at(100) is book.current
    assert book.dues_at(100).fee_rao == 1


def test_an_edition_from_before_dues_were_noted_asks_for_nothing():
    book = after(then=rules(), now=asking(fee_rao=9, fee_address="5Now"))
    del book.editions[0].felt["dues"]
    assert book.dues_at(100).fee_rao == 0
    assert book.at(100).version == rules().version


def test_an_edition_holds_nothing_of_the_operators():
    settings = hparams.load()
    settings = replace(settings, daemon=replace(settings.daemon, webhook_url="https://hooks.example/secret-of-the-operator"))
    edition = describe(Rules("1", "tiny", settings), 0)
    assert "secret-of-the-operator" not in msgspec.json.encode(edition).decode()


def test_the_book_is_bounded():
    book = Rulebook(rules())
    for number in range(MOST + 20):
        book.current = rules(runs=number % 2 + 1)
        book.note(number)
    assert len(book.editions) == MOST
