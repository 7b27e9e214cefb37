"""What the detail screen asks over HTTP, decoded; failures in words."""

from __future__ import annotations

from typing import TypeVar

import httpx
import msgspec

from crusades.records import ApiError, Run, SubmissionDetail
from crusades.tui.plain import plain

T = TypeVar("T")


class Runs(msgspec.Struct):
    """`submissions/{id}/runs`."""

    items: list[Run]


class FaultRow(msgspec.Struct):
    """A row of the fault table."""

    code: int
    title: str
    whose: str


class FaultRows(msgspec.Struct):
    """`/api/v1/faults`."""

    items: list[FaultRow]


class Client:
    """One connection pool to one validator. Methods raise `Unanswered` with words for people."""

    def __init__(self, base: str) -> None:
        self._http = httpx.AsyncClient(base_url=f"{base}/api/v1", timeout=10.0, trust_env=False)

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def _get(self, path: str) -> bytes:
        try:
            answer = await self._http.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unanswered(f"the validator did not answer: {plain(error, 200) or type(error).__name__}") from error
        if answer.status_code != 200:
            try:
                raise Unanswered(plain(msgspec.json.decode(answer.content, type=ApiError).message, 300))
            except msgspec.MsgspecError as error:
                raise Unanswered(f"the validator answered {answer.status_code}") from error
        return answer.content

    async def detail(self, submission_id: str) -> SubmissionDetail:
        """One submission."""
        return _decode(await self._get(f"/submissions/{submission_id}"), SubmissionDetail)

    async def runs(self, submission_id: str) -> list[Run]:
        """Its runs so far."""
        return _decode(await self._get(f"/submissions/{submission_id}/runs"), Runs).items

    async def code(self, submission_id: str) -> str:
        """Its file, once judged."""
        return (await self._get(f"/submissions/{submission_id}/code")).decode("utf-8", "replace")

    async def fault_titles(self) -> dict[int, str]:
        """code → what happened."""
        return {row.code: row.title for row in _decode(await self._get("/faults"), FaultRows).items}


class Unanswered(Exception):
    """The validator could not be asked, or refused; the message is for people."""


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Unanswered(f"the validator speaks another version ({plain(error, 200)})") from error
