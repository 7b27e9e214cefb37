"""The connection's owner, on a virtual clock with a bridge of its own: deadlines, redials, rotation."""

from itertools import pairwise

import pytest
import trio

from crusades.chain_link import Link, Refused, Trouble, place
from crusades.errors import ChainError, ConfigError


class Broke(Exception):
    pass


class No(Exception):
    pass


class Odd(Exception):
    pass


class Later(Exception):
    pass


class DirectBridge:
    """Runs coroutines on the trio thread itself."""

    async def run(self, make_coro, *, deadline=None):
        with trio.fail_after(deadline if deadline is not None else float("inf")):
            return await make_coro()


class Net:
    """A world of endpoints that are up or down."""

    def __init__(self, *, up=("a",)):
        self.up, self.dialled, self.hung_up = set(up), [], []

    async def dial(self, endpoint):
        self.dialled.append((endpoint, trio.current_time()))
        if endpoint in self.up:
            return endpoint
        raise Broke("nobody is there")

    async def hang_up(self, connection):
        self.hung_up.append(connection)

    def link(self, *endpoints):
        kinds = {Broke: Trouble.LOST, No: Trouble.REFUSED, Odd: Trouble.NONSENSE, Later: Trouble.BUSY}
        return Link(DirectBridge(), endpoints or ("a",), dial=self.dial, hang_up=self.hang_up, classify=lambda e: kinds.get(type(e)),
                    call_deadline=30.0, redial_first=0.5, redial_max=4.0)


def script(*steps):
    """An `ask` that does one step per call: raises it, or returns it."""
    left = list(steps)

    async def ask(connection):
        step = left.pop(0)
        if isinstance(step, BaseException):
            raise step
        if step == "silence":
            await trio.sleep_forever()
        return (connection, step)

    return ask


async def test_a_call_waits_out_an_outage_and_notices_the_node_within_five_seconds(autojump_clock):
    net = Net(up=())
    link = net.link()
    back_at = 17.3

    async def come_back():
        await trio.sleep(back_at)
        net.up.add("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        start = trio.current_time()
        assert await link.call(script(1)) == ("a", 1)
    assert trio.current_time() - start - back_at <= 5.0
    assert link.problem == ""


async def test_redials_back_off_from_the_first_delay_to_the_longest(autojump_clock):
    net = Net(up=())
    start = trio.current_time()
    with pytest.raises(ChainError, match=r"no answer within 30 s \(nobody is there\)"):
        await net.link().call(script(1))
    times = [t - start for _, t in net.dialled]
    gaps = [round(b - a, 3) for a, b in pairwise(times)]
    assert gaps[:4] == [0.5, 1.0, 2.0, 4.0]
    assert set(gaps[3:]) == {4.0}
    assert times[0] == 0.0


async def test_calls_shorter_than_the_back_off_still_get_through_to_the_next_attempt(autojump_clock):
    net = Net(up=())
    link = net.link()
    link._max = 30.0
    for _ in range(12):
        with pytest.raises(ChainError):
            await link.call(script(1), deadline=10.0)
    net.up.add("a")
    start = trio.current_time()
    while True:
        try:
            await link.call(script(1), deadline=10.0)
        except ChainError:
            continue
        break
    assert trio.current_time() - start <= 30.0


async def test_a_read_is_asked_again_after_the_connection_broke_and_a_write_is_not(autojump_clock):
    net = Net()
    link = net.link()
    assert await link.call(script(Broke("cut"), "answer")) == ("a", "answer")
    assert net.hung_up == ["a"]
    with pytest.raises(ChainError, match="broke: cut"):
        await link.call(script(Broke("cut")), once=True)


async def test_a_node_that_breaks_every_connection_is_not_hammered(autojump_clock):
    net = Net()
    with pytest.raises(ChainError, match="no answer within 30 s"):
        await net.link().call(script(*[Broke("cut")] * 50))
    assert len(net.dialled) < 15


async def test_silence_ends_at_the_deadline_and_the_next_call_goes_to_another_endpoint(autojump_clock):
    net = Net(up=("a", "b"))
    link = net.link("a", "b")
    start = trio.current_time()
    with pytest.raises(ChainError, match="a gave no answer within 30 s"):
        await link.call(script("silence"))
    assert trio.current_time() - start == pytest.approx(30.0)
    assert net.hung_up == ["a"]
    assert await link.call(script(1)) == ("b", 1)


async def test_a_quiet_wait_says_nothing_about_the_connection(autojump_clock):
    net = Net(up=("a", "b"))
    link = net.link("a", "b")
    with pytest.raises(ChainError):
        await link.call(script("silence"), deadline=18.0, quiet=True)
    assert net.hung_up == []
    assert await link.call(script(1)) == ("a", 1)


async def test_a_refusal_is_the_nodes_answer_and_keeps_the_connection(autojump_clock):
    net = Net()
    link = net.link()
    with pytest.raises(Refused, match="bad nonce"):
        await link.call(script(No("bad nonce")))
    assert net.hung_up == []


async def test_nonsense_and_rate_limits_move_on_to_the_next_endpoint(autojump_clock):
    for error, words in ((Odd("x"), "makes no sense: Odd: x"), (Later("429"), "429")):
        net = Net(up=("a", "b"))
        link = net.link("a", "b")
        with pytest.raises(ChainError, match=words):
            await link.call(script(error))
        assert await link.call(script(1)) == ("b", 1)


async def test_a_rate_limited_endpoint_is_left_alone_for_the_longest_delay(autojump_clock):
    net = Net()
    link = net.link()
    with pytest.raises(ChainError):
        await link.call(script(Later("429")))
    start = trio.current_time()
    await link.call(script(1))
    assert trio.current_time() - start == pytest.approx(4.0)


async def test_a_bug_is_not_taken_for_weather(autojump_clock):
    with pytest.raises(ZeroDivisionError):
        await Net().link().call(script(ZeroDivisionError()))


async def test_a_wrong_chain_at_the_first_dial_ends_the_call_at_once(autojump_clock):
    net = Net()

    async def dial(endpoint):
        raise ConfigError("this is not finney")

    net.dial = dial
    with pytest.raises(ConfigError):
        await net.link().call(script(1))


async def test_many_callers_share_one_dial(autojump_clock):
    net = Net()
    link = net.link()
    got = []

    async def one():
        got.append(await link.call(script(1)))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert len(got) == 20
    assert len(net.dialled) == 1


async def test_closing_hangs_up(autojump_clock):
    net = Net()
    link = net.link()
    await link.call(script(1))
    await link.aclose()
    assert net.hung_up == ["a"]


async def test_the_key_of_a_private_node_is_in_no_word_of_ours(autojump_clock, monkeypatch):
    """Everybody may read the board. The SDK's own errors name whole addresses, too."""
    monkeypatch.setattr("crusades.logs.redactor._secrets", set())
    private = "wss://user:pass-word@node.example:443/v2/kEy-1234567?apikey=sEcret-99"
    net = Net()

    async def refused(endpoints):
        raise Broke(f"could not connect to {endpoints[0]}: 403")

    net.dial = refused
    link = net.link(private)
    with pytest.raises(ChainError) as caught:
        await link.call(script("never"), deadline=5.0)
    told = f"{caught.value} {link.problem} {link.endpoint} {link!r}"
    assert "wss://node.example:443" in told
    assert not [secret for secret in ("kEy-1234567", "sEcret-99", "pass-word") if secret in told]


@pytest.mark.parametrize("endpoint", ["wss://node.example:443/", "ws://127.0.0.1:9944", "ws://[::1]:9944"])
def test_a_public_endpoint_is_shown_as_it_is(endpoint):
    assert place(endpoint) == endpoint.rstrip("/")
