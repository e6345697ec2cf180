"""Divide the cluster's concurrency among the processes that send requests (holders).

A holder reuses a place as soon as a request has finished, without asking. Holders with a small demand get all of it; the
others share the rest evenly. A place goes to another holder only after its holder has reported it free.
"""

from __future__ import annotations


class Shares:
    """The places of each holder, at most ``total`` in use at any time."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: dict[str, int] = {}  # upper bound of what each may be using
        self._told: dict[str, int] = {}  # the share last sent to each
        self._demand: dict[str, int] = {}

    def update(self, holder: str, in_use: int, demand: int) -> int:
        """The new share of ``holder``, which uses ``in_use`` places under its last share and could use ``demand``.

        A holder must not start a request while it uses all its places. With ``demand`` 0 it gives up its share, and waits
        for the next answer before starting a request. Calls of one holder must not overlap.
        """
        self._demand[holder] = demand
        # Until this answer arrives, the holder may still fill the last share sent.
        held = max(in_use, self._told.get(holder, 0) if demand else 0)
        others = sum(places for name, places in self._held.items() if name != holder)
        share = min(self._target(holder), max(held, self._total - others))
        self._held[holder] = max(held, share)
        self._told[holder] = share
        return share

    def drop(self, holder: str) -> None:
        """Free the places of a lost holder."""
        for counts in (self._held, self._told, self._demand):
            counts.pop(holder, None)

    def _target(self, holder: str) -> int:
        """The share of ``holder`` if all places were free: smallest demands first, the rest evenly."""
        left, names = self._total, sorted(self._demand, key=lambda name: (self._demand[name], name))
        for index, name in enumerate(names):
            share = min(self._demand[name], -(-left // (len(names) - index)))
            if name == holder:
                return share
            left -= share
        return 0
