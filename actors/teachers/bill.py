"""What requests to one endpoint cost: at worst before they are sent, and really afterwards."""

from __future__ import annotations

from dataclasses import replace

from actors.backends.openai import Sent
from potstill.endpoint.chat import Abilities, most_completion_tokens, schema_of
from potstill.endpoint.cost import Price, at_most_tokens, cost, worst_case
from potstill.rows import Request, Response


class Bill:
    """Costs in dollars at ``price``; 0 without a price."""

    def __init__(self, price: Price | None) -> None:
        self._price = price

    def at_worst(self, request: Request, abilities: Abilities) -> float:
        """The most that a request can cost."""
        if self._price is None:
            return 0.0
        prompt_tokens = at_most_tokens(request.messages, schema_of(request))
        return worst_case(self._price, prompt_tokens, most_completion_tokens(request, abilities))

    def cost(self, sent: Sent) -> float:
        """The cost of the tokens that the endpoint reported for an attempt."""
        return cost(self._price, sent.prompt_tokens, sent.completion_tokens) if self._price is not None else 0.0

    def known_cost(self, sent: Sent) -> float | None:
        """The cost for a budget: ``None`` if the endpoint reported no tokens, so that the worst case counts."""
        return self.cost(sent) if sent.counted else None

    def answered(self, sent: Sent) -> Response:
        """The response of a successful attempt, with its cost."""
        assert sent.response is not None
        return replace(sent.response, cost_usd=self.cost(sent))

    def failed(self, request: Request, sent: Sent, tries: str = "") -> Response:
        """The response to a request that failed, with its cost. ``tries``: how often it was sent, in words."""
        assert sent.failure is not None
        return Response(
            request.request_id,
            error=f"{sent.failure.message} (after {tries})" if tries else sent.failure.message,
            prompt_tokens=sent.prompt_tokens,
            completion_tokens=sent.completion_tokens,
            cost_usd=self.cost(sent),
        )
