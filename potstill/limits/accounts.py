"""Who holds what: dollars and permissions of every process that sends requests.

A holder tells its whole account each time (spent since it began, held now), so that a message that is
repeated, or reaches a restarted limiter, changes nothing. Dollars that are held are reserved: they were
given out for requests that may cost so much. ``spent + reserved <= budget`` at all times.

A holder that has not been heard of for ``lease_s`` is lost: its permissions are free again, its dollars stay
reserved, since its last requests may well have been billed, but nobody waits for them any more. If it was only slow,
its next word puts everything right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

LEASE_S = 15.0
ROUNDING = 1e-9  # 0.9 + 0.1 shall fit into 1


@dataclass(slots=True)
class Account:
    """``spent_usd``: in all; ``held_usd``, ``held_requests``: given out and not yet accounted for."""

    spent_usd: float = 0.0
    held_usd: float = 0.0
    held_requests: int = 0
    heard_at: float = 0.0
    lost: bool = False


class Accounts:
    """The accounts of all holders and the cap over them (``None``: no cap)."""

    def __init__(self, budget_usd: float | None = None, lease_s: float = LEASE_S) -> None:
        self._budget_usd = math.inf if budget_usd is None else budget_usd
        self._lease_s = lease_s
        self._accounts: dict[str, Account] = {}

    @property
    def spent_usd(self) -> float:
        """Dollars spent by all holders."""
        return math.fsum(account.spent_usd for account in self._accounts.values())

    @property
    def reserved_usd(self) -> float:
        """Dollars that requests on their way may still cost, lost holders' included."""
        return math.fsum(account.held_usd for account in self._accounts.values())

    @property
    def lost_usd(self) -> float:
        """The part of ``reserved_usd`` that lost holders may have spent."""
        return math.fsum(account.held_usd for account in self._accounts.values() if account.lost)

    @property
    def outstanding(self) -> int:
        """Requests given out to living holders and not yet accounted for."""
        return sum(account.held_requests for account in self._accounts.values() if not account.lost)

    def report(self, holder: str, spent_usd: float, held_usd: float, held_requests: int, now: float) -> None:
        """Replace the account of ``holder`` by what it says of itself."""
        self._accounts[holder] = Account(spent_usd, max(0.0, held_usd), held_requests, now)

    def give(self, holder: str, requests: int, usd: float, now: float) -> None:
        """Reserve ``usd`` for ``requests`` of ``holder``."""
        account = self._accounts.setdefault(holder, Account(heard_at=now))
        account.held_requests += requests
        account.held_usd += usd

    def lose(self, now: float) -> list[str]:
        """The holders that are lost from now on."""
        gone = [
            holder
            for holder, account in self._accounts.items()
            if not account.lost and now - account.heard_at > self._lease_s
        ]
        for holder in gone:
            self._accounts[holder].lost = True
            self._accounts[holder].held_requests = 0
        return gone

    def fitting(self, usd_each: float, wanted: int) -> int:
        """How many of ``wanted`` requests of ``usd_each`` the budget still bears."""
        if usd_each <= 0 or math.isinf(self._budget_usd):
            return wanted
        committed = self.spent_usd + self.reserved_usd
        count = max(0, math.floor(min(wanted, (self._budget_usd - committed) / usd_each + ROUNDING)))
        while count and committed + count * usd_each > self._budget_usd * (1 + ROUNDING):
            count -= 1
        return count

    def stop(self, usd: float) -> str | None:
        """Why no request of ``usd`` can be sent any more; ``None`` while one fits or money may still come back."""
        held = any(account.held_usd > 0 and not account.lost for account in self._accounts.values())
        if held or self.fitting(usd, 1):
            return None
        lost = f", of which up to ${self.lost_usd:.4f} by processes that died" if self.lost_usd else ""
        spent = self.spent_usd + self.lost_usd
        return (
            f"budget_usd = {self._budget_usd:g} reached: ${spent:.4f} spent{lost}; the next request may cost ${usd:.4f}"
        )

    def memo(self) -> dict[str, dict[str, float]]:
        """Everything a restarted limiter must know, as plain data."""
        return {holder: asdict(account) for holder, account in self._accounts.items()}

    def recall(self, memo: Mapping[str, Mapping[str, float]], now: float) -> None:
        """Take over a ``memo``; its holders have a lease from now on to make themselves heard."""
        for holder, values in memo.items():
            self._accounts[holder] = Account(
                values["spent_usd"], values["held_usd"], int(values["held_requests"]), now, bool(values["lost"])
            )
