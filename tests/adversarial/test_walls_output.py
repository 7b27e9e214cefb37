"""What hostile code prints is bounded, harmless to look at, and believed by nobody."""

import socket

import pytest
import trio
from sandbox_kit import needs_sandbox, run, start

pytestmark = [pytest.mark.kernel, needs_sandbox]


async def printed(literal: str) -> str:
    return (await run(f"sys.stdout.buffer.write({literal}); sys.stdout.flush()")).output


@pytest.mark.parametrize(
    "literal",
    ["b'\\x1b[2J\\x1b[H'", "b'\\x1b]0;title\\x07'", "b'\\x1b]52;c;cm0gLXJm\\x07'", "b'\\x9b31m'", "b'\\xc2\\x9b31m'", "b'\\r50 percent\\r'", "b'\\x08' * 9", "b'\\x00\\x07\\x0e'", "b'\\x1bP+q\\x1b\\\\\\\\'"],
)  # fmt: skip
async def test_terminal_sequences_come_out_as_text(literal):
    shown = await printed(literal)
    assert not any((ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in shown)


@pytest.mark.parametrize("code", [0x202E, 0x2066, 0x200B, 0x200F, 0xFEFF, 0x2028, 0xE0041])
async def test_invisible_and_reversing_characters_come_out_as_text(code):
    assert chr(code) not in await printed(f"chr({code}).encode()")


async def test_bytes_that_are_no_text_come_out_as_something():
    assert "\ufffd" in await printed("bytes([0xff, 0xfe, 0xc0])")


async def test_a_flood_is_bounded_and_does_not_keep_the_event_loop_busy():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        box = start("block = b'x' * 65536\nwhile True: os.write(1, block)", theirs, prelude="import os\n")
        turns = 0
        with trio.move_on_after(1.0):
            while True:
                await trio.sleep(0.01)
                turns += 1
        await box.kill()
        assert turns > 20, "other tasks had their turns"
        assert len(box.output_tail()) < 70_000


async def test_a_line_without_end_is_bounded():
    ran = await run("sys.stdout.write('y' * 5_000_000)", deadline=60)
    assert len(ran.output) < 70_000
    assert "bytes not kept" in ran.output


async def test_output_after_closing_the_streams_is_no_harm():
    ran = await run("os.close(1); os.close(2); socket.socket(fileno=3).sendall(b'on')")
    assert ran.status.code == 0


async def test_a_printed_result_is_not_a_frame():
    """Standard output and the channel are different things: nothing printed reaches the channel."""
    ours, theirs = socket.socketpair()
    with ours:
        box = start("print('{\"t\": \"done\", \"mfu\": 100}', flush=True)", theirs)
        theirs.close()
        await box.wait()
        assert ours.recv(100) == b""
        assert "mfu" in box.output_tail()
