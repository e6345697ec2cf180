"""How the concurrency of the cluster is divided among the processes that send requests.

A process reuses a place as soon as a request has finished, without asking anybody; asked for is only the number
of places. Whoever wants few gets what it wants, the others share the rest evenly. A place is given to
somebody else only after its holder has said that it is free.
"""

from __future__ import annotations


class Shares:
    """The places (at most ``total`` in use at any time) and who has how many."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: dict[str, int] = {}  # what each may be using, at worst
        self._told: dict[str, int] = {}  # the share each was told last
        self._demand: dict[str, int] = {}

    def update(self, holder: str, in_use: int, demand: int) -> int:
        """The share of ``holder``, which uses ``in_use`` places since it knows its last share and could use ``demand``.

        It must start no request while it uses as many places as its share. With ``demand`` 0 it has given its share up
        and waits for the answer before it starts one. Calls of one holder don't overlap.
        """
        self._demand[holder] = demand
        # While this answer is on its way the holder may still fill the share that it was told last.
        held = max(in_use, self._told.get(holder, 0) if demand else 0)
        others = sum(places for name, places in self._held.items() if name != holder)
        share = min(self._target(holder), max(held, self._total - others))
        self._held[holder] = max(held, share)
        self._told[holder] = share
        return share

    def drop(self, holder: str) -> None:
        """Free the places of a holder that is no more."""
        for book in (self._held, self._told, self._demand):
            book.pop(holder, None)

    def _target(self, holder: str) -> int:
        """The share of ``holder`` if all places were free: the smallest demands first, the rest evenly."""
        left, names = self._total, sorted(self._demand, key=lambda name: (self._demand[name], name))
        for index, name in enumerate(names):
            share = min(self._demand[name], -(-left // (len(names) - index)))
            if name == holder:
                return share
            left -= share
        return 0
