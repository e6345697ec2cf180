"""What requests to one endpoint cost: at worst before they are sent, really afterwards."""

from __future__ import annotations

from dataclasses import replace

from actors.backends.openai import Sent
from potstill.endpoint.chat import Abilities, most_completion_tokens, schema_of
from potstill.endpoint.cost import Price, at_most_tokens, cost, worst_case
from potstill.rows import Request, Response


class Bill:
    """Dollars at a ``price``; without one everything costs nothing."""

    def __init__(self, price: Price | None) -> None:
        self._price = price

    def at_worst(self, request: Request, abilities: Abilities) -> float:
        """The most that a request can cost."""
        if self._price is None:
            return 0.0
        prompt_tokens = at_most_tokens(request.messages, schema_of(request))
        return worst_case(self._price, prompt_tokens, most_completion_tokens(request, abilities))

    def cost(self, sent: Sent) -> float:
        """What an attempt cost by its tokens, as far as these were told."""
        return cost(self._price, sent.prompt_tokens, sent.completion_tokens) if self._price is not None else 0.0

    def known_cost(self, sent: Sent) -> float | None:
        """The same for a budget: ``None`` where nobody knows, so that the worst counts."""
        return self.cost(sent) if sent.counted else None

    def failed(self, request: Request, sent: Sent, tries: str = "") -> Response:
        """The response to a request that came to nothing, with what it cost all the same; ``tries`` in words."""
        assert sent.failure is not None
        return Response(
            request.request_id,
            error=f"{sent.failure.message} (after {tries})" if tries else sent.failure.message,
            prompt_tokens=sent.prompt_tokens,
            completion_tokens=sent.completion_tokens,
            cost_usd=self.cost(sent),
        )


def answered(sent: Sent, bill: Bill) -> Response:
    """The response of a good attempt, with what it cost."""
    assert sent.response is not None
    return replace(sent.response, cost_usd=bill.cost(sent))
