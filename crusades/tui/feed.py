"""The websocket to the validator: connects, takes up where it stopped, and never gives up.

A lost connection is told (`Link`), waited out with a doubling pause, and resumed with `?since=`, so no event is missed
that the validator still has. Only errors of the network and of the other side's protocol are retried; a bug ends the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from crusades.tui.address import live_url
from crusades.tui.picture import Frame, decode
from crusades.tui.plain import plain

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
SILENCE = 40.0
"""Seconds without a frame (heartbeats come every 15) after which the connection counts as dead."""
MAX_FRAME = 16 << 20


@dataclass(frozen=True)
class Link:
    """How the connection stands."""

    state: str
    """"connecting", "live", "lost"."""
    words: str = ""
    retry_in: float = 0.0


class Feed:
    """Keeps `on_frame` and `on_link` called. `seq` is asked for at each connection."""

    def __init__(self, base: str, *, on_frame: Callable[[Frame], None], on_link: Callable[[Link], None], seq: Callable[[], int | None]) -> None:
        self._base, self._on_frame, self._on_link, self._seq = base, on_frame, on_link, seq
        self._hurry = asyncio.Event()

    def retry_now(self) -> None:
        """Do not wait out the pause."""
        self._hurry.set()

    async def run(self) -> None:
        """For ever."""
        pause = FIRST_PAUSE
        while True:
            self._on_link(Link("connecting"))
            words, heard = await self._once()
            pause = FIRST_PAUSE if heard else pause
            self._on_link(Link("lost", words, pause))
            self._hurry.clear()
            try:
                await asyncio.wait_for(self._hurry.wait(), pause)
            except TimeoutError:
                pause = min(LONGEST_PAUSE, 2 * pause)

    async def _once(self) -> tuple[str, bool]:
        """One connection until it ends: (why, whether anything was heard)."""
        heard = False
        try:
            async with connect(live_url(self._base, self._seq()), open_timeout=10, max_size=MAX_FRAME, ping_interval=None, close_timeout=1) as socket:
                while True:
                    frame = decode(await asyncio.wait_for(socket.recv(), SILENCE))
                    self._on_frame(frame)
                    if not heard:
                        heard = True
                        self._on_link(Link("live"))
        except ConnectionClosed as error:
            said = error.rcvd
            return (f"the validator closed the connection{': ' + plain(said.reason, 120) if said and said.reason else ''}", heard)
        except TimeoutError:
            return ("the validator has gone silent" if heard else "no answer", heard)
        except InvalidStatus as error:
            return (f"the validator refused ({error.response.status_code}){_told(error.response.body)}", heard)
        except (InvalidHandshake, EOFError) as error:
            return (f"what answers there is no validator ({plain(error, 120)})", heard)
        except msgspec.MsgspecError as error:
            return (f"the validator speaks another version ({plain(error, 160)})", heard)
        except ConnectionRefusedError:
            return ("nobody listens there", heard)
        except OSError as error:
            return (plain(error.strerror or error, 160), heard)


def _told(body: bytes | bytearray | None) -> str:
    try:
        return ": " + plain(msgspec.json.decode(body or b"", type=dict[str, object]).get("message", ""), 200)
    except msgspec.MsgspecError:
        return ""
