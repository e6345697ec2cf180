"""Accounts of dollars and permissions for all holders, the processes that send requests.

A holder always reports its whole account (spent since its start, held now), so reports can safely be repeated or sent
to a restarted limiter. Held dollars are reserved: they are the worst-case cost of granted requests. ``spent + reserved
<= budget`` always holds.

A holder that does not report for ``lease_s`` is lost. Its permissions are freed. Its dollars stay reserved, since its
last requests may have been billed, but nothing waits for them any more. If it was only slow, its next report restores
its account.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

LEASE_S = 15.0
ROUNDING = 1e-9  # tolerance, so that 0.9 + 0.1 fits into 1


@dataclass(slots=True)
class Account:
    """``spent_usd``: total; ``held_usd``, ``held_requests``: granted and not yet accounted for."""

    spent_usd: float = 0.0
    held_usd: float = 0.0
    held_requests: int = 0
    heard_at: float = 0.0
    lost: bool = False


class Accounts:
    """The accounts of all holders, under a common budget (None: no budget)."""

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
        """Dollars that requests in flight may still cost, including those of lost holders."""
        return math.fsum(account.held_usd for account in self._accounts.values())

    @property
    def lost_usd(self) -> float:
        """The part of ``reserved_usd`` that lost holders may have spent."""
        return math.fsum(account.held_usd for account in self._accounts.values() if account.lost)

    @property
    def outstanding(self) -> int:
        """Requests granted to live holders and not yet accounted for."""
        return sum(account.held_requests for account in self._accounts.values() if not account.lost)

    def report(self, holder: str, spent_usd: float, held_usd: float, held_requests: int, now: float) -> None:
        """Replace the account of ``holder`` with its report."""
        self._accounts[holder] = Account(spent_usd, max(0.0, held_usd), held_requests, now)

    def give(self, holder: str, requests: int, usd: float, now: float) -> None:
        """Reserve ``usd`` for ``requests`` of ``holder``."""
        account = self._accounts.setdefault(holder, Account(heard_at=now))
        account.held_requests += requests
        account.held_usd += usd

    def lose(self, now: float) -> list[str]:
        """Mark the holders whose lease has expired as lost, and return them."""
        gone = []
        for holder, account in self._accounts.items():
            if not account.lost and now - account.heard_at > self._lease_s:
                account.lost, account.held_requests = True, 0
                gone.append(holder)
        return gone

    def fitting(self, usd_each: float, wanted: int) -> int:
        """How many of ``wanted`` requests of ``usd_each`` the budget still covers."""
        if usd_each <= 0 or math.isinf(self._budget_usd):
            return wanted
        committed = self.spent_usd + self.reserved_usd
        count = max(0, math.floor(min(wanted, (self._budget_usd - committed) / usd_each + ROUNDING)))
        while count and committed + count * usd_each > self._budget_usd * (1 + ROUNDING):
            count -= 1
        return count

    def stop(self, usd: float) -> str | None:
        """Why no request of ``usd`` can be sent any more; None while one fits or held dollars may be returned."""
        held = any(account.held_usd > 0 and not account.lost for account in self._accounts.values())
        if held or self.fitting(usd, 1):
            return None
        lost = f", of which up to ${self.lost_usd:.4f} by processes that died" if self.lost_usd else ""
        spent = self.spent_usd + self.lost_usd
        reached = f"budget_usd = {self._budget_usd:g} reached: ${spent:.4f} spent{lost}"
        return f"{reached}; the next request may cost ${usd:.4f}"

    def memo(self) -> dict[str, dict[str, float]]:
        """The state that a restarted limiter needs, as plain data."""
        return {holder: asdict(account) for holder, account in self._accounts.items()}

    def recall(self, memo: Mapping[str, Mapping[str, float]], now: float) -> None:
        """Restore a ``memo``. The leases of its holders start now."""
        for holder, values in memo.items():
            lost, held_requests = bool(values["lost"]), int(values["held_requests"])
            self._accounts[holder] = Account(values["spent_usd"], values["held_usd"], held_requests, now, lost)
