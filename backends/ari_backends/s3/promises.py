"""Which conditions a store keeps: what "S3" leaves open, found out by letting writers race.

Some stores refuse conditional writes, some ignore the condition without a word, and some heed it one request after
another but let several win who come at once. Only a race tells. Its outcome is remembered in the store.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from ari_backends.s3.client import Client, Head, Outcome
from ari_core.errors import BackendError, IntegrityError, InvalidConfiguration, Unavailable, Unsupported
from ari_core.streams import deadline

MEMORY: Final = ".ari-promises.json"
"""Where the outcome is remembered, below the prefix."""
TRIALS: Final = ".ari-trial/"
"""What all keys of a trial start with, below the prefix."""

WRITERS: Final = 8
ROUNDS: Final = 5

_MOST: Final = 4096
_FRESH: Final = timedelta(minutes=10)
_CONFLICTS: Final = 10
"""Answers "somebody else is writing" after which a writer gives up."""
_CONTENT_TYPE: Final = "application/json"


class Promises(BaseModel):
    """What a store was seen to keep. Without any argument: nothing.

    Attributes:
        create_only: Of several who create one object at once, exactly one succeeds.
        compare_and_set: Of several who replace one version of an object at once, exactly one succeeds, and nobody
            replaces what is gone.
        if_none_match: ``If-None-Match: *`` is heeded, at least one request after another. Else do not send it.
        if_match: How ``If-Match`` has to be spelled to be heeded likewise. None: do not send it.
        tried: When, by the store's clock.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    create_only: bool = False
    compare_and_set: bool = False
    if_none_match: bool = False
    if_match: Literal["quoted", "unquoted"] | None = None
    tried: AwareDatetime | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.create_only and not self.if_none_match) or (self.compare_and_set and not self.if_match):
            raise ValueError("a promise without the condition that it is about")
        return self

    def spelled(self, etag: str) -> str | None:
        """Returns what to send as ``If-Match``; None where it must not be sent."""
        bare = etag.strip('"')
        return {None: None, "quoted": f'"{bare}"', "unquoted": bare}[self.if_match]

    @classmethod
    def load(cls, client: Client) -> Promises | None:
        """Reads what is remembered of a trial in this store; None if nothing is, or if it cannot be that.

        Whoever copies a bucket copies the memory of another store too, so it must have been written at the time
        that stands in it.

        Raises:
            BackendError: The store cannot be reached, or refuses.
        """
        try:
            with _explained():
                found = client.read(client.key(MEMORY), _MOST)
            if found is None:
                return None
            data, head = found
            promises = cls.model_validate_json(data)
        except (IntegrityError, ValidationError):
            return None
        if promises.tried is None or abs(head.modified - promises.tried) > _FRESH:
            return None
        return promises

    @classmethod
    def trial(cls, client: Client, warn: Callable[[str], None] = lambda _line: None) -> Promises:
        """Lets writers race, and remembers the outcome in the store. Takes about 90 small requests.

        Args:
            client: Where; it takes away again what it writes below `TRIALS`.
            warn: Told in one line when it may not.

        Raises:
            BackendError: The store cannot be reached, or refuses to write.
        """
        with _cleaned(client, warn) as trial:
            if_none_match = trial.heeds_if_none_match()
            if_match = trial.heeded_if_match()
            promises = cls(
                if_none_match=if_none_match,
                if_match=if_match,
                create_only=if_none_match and trial.one_creates(),
                compare_and_set=if_match is not None and trial.one_replaces(cls(if_match=if_match)),
                tried=trial.now(),
            )
        memory = json.dumps(promises.model_dump(mode="json"), indent=2) + "\n"
        with _explained():
            client.put(client.key(MEMORY), memory.encode(), content_type=_CONTENT_TYPE)
        return promises


@contextmanager
def _explained() -> Iterator[None]:
    """Says in errors what the object is that nobody has asked for."""
    try:
        yield
    except BackendError as error:
        if MEMORY in error.message:
            error.enclose(behind="; this object is to say what the store can do")
        raise


@contextmanager
def _cleaned(client: Client, warn: Callable[[str], None]) -> Iterator[_Trial]:
    trial = _Trial(client)
    try:
        yield trial
    finally:
        try:
            client.delete_many(trial.keys)
        except BackendError as error:  # the outcome, or what went wrong before, matters more
            warn(f"{client.where(trial.folder)}: what a trial left there could not be removed: {error.message}")


@dataclass
class _Trial:
    """Writes below a key of its own, so that trials at the same time do not see each other."""

    client: Client
    keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder = self.client.key(f"{TRIALS}{secrets.token_hex(16)}")

    def heeds_if_none_match(self) -> bool:
        """Says whether a second one who creates is refused."""
        key = self._key("once")
        try:
            return self._done(key, b"1", if_absent=True) and not self._done(key, b"2", if_absent=True)
        except (Unsupported, InvalidConfiguration):
            return False

    def heeded_if_match(self) -> Literal["quoted", "unquoted"] | None:
        """Returns the spelling with which the version that is there is replaced, and no other one, nor none."""
        spellings: tuple[Literal["quoted", "unquoted"], ...] = ("quoted", "unquoted")
        for spelling in spellings:
            key, absent = self._key(f"swap-{spelling}"), self._key(f"gone-{spelling}")
            seen = Promises(if_match=spelling).spelled(self.client.put(key, b"old").etag)
            try:
                if (
                    self._done(key, b"new", if_match=seen)
                    and not self._done(key, b"stale", if_match=seen)
                    and not self._done(absent, b"revived", if_match=seen)
                ):
                    return spelling
            except (Unsupported, InvalidConfiguration):
                continue
        return None

    def one_creates(self) -> bool:
        """Says whether in each race exactly one creates."""
        return all(self._one_wins(self._key(f"create-{number}"), if_absent=True) for number in range(ROUNDS))

    def one_replaces(self, promises: Promises) -> bool:
        """Says whether in each race exactly one replaces what all of them have seen."""
        key = self._key("replace")
        self.client.put(key, b"seen by all")
        return all(self._one_wins(key, if_match=promises.spelled(self._head(key).etag)) for _ in range(ROUNDS))

    def now(self) -> datetime:
        """Returns what the store's clock says."""
        key = self._key("time")
        self.client.put(key, b"")
        return self._head(key).now.astimezone(UTC)

    def _one_wins(self, key: str, **condition: Any) -> bool:
        """Lets writers race; says whether exactly one of them won and what is there is theirs."""
        bids = [secrets.token_hex(16).encode() for _ in range(WRITERS)]
        start = threading.Barrier(WRITERS, timeout=deadline())

        def bid(data: bytes) -> Outcome:
            start.wait()
            return self._put(key, data, **condition)

        with ThreadPoolExecutor(WRITERS, thread_name_prefix="ari-trial") as pool:
            outcomes = list(pool.map(bid, bids))
        winners = [data for data, outcome in zip(bids, outcomes, strict=True) if outcome is Outcome.DONE]
        # Of a winner whose first answer got lost the store says that the condition does not hold.
        return len(winners) <= 1 and self._data(key) in (winners or bids)

    def _done(self, key: str, data: bytes, **condition: Any) -> bool:
        """Writes what is not there yet; says whether it is there now."""
        outcome = self._put(key, data, **condition)
        return outcome is Outcome.DONE or self._data(key) == data

    def _put(self, key: str, data: bytes, **condition: Any) -> Outcome:
        for pause in range(_CONFLICTS):
            time.sleep(pause / 50)
            outcome = self.client.put(key, data, **condition).outcome
            if outcome is not Outcome.CONFLICT:
                break
        return outcome

    def _data(self, key: str) -> bytes | None:
        found = self.client.read(key, _MOST)
        return None if found is None else found[0]

    def _head(self, key: str) -> Head:
        head = self.client.head(key)
        if head is None:
            raise Unavailable(f"{self.client.where(key)}: it is gone right after it was written")
        return head

    def _key(self, name: str) -> str:
        key = f"{self.folder}/{name}"
        self.keys.add(key)
        return key
