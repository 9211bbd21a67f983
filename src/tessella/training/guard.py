"""Notices that training diverges, and returns to the last good state with half the learning rate."""

from __future__ import annotations

from statistics import median
from typing import Any, final

from tessella.foundation.notes import note
from tessella.training.state import TrainState

WINDOW = 20
"""Updates whose median loss is judged, so that single bad batches do not count."""
KEPT_EVERY = 100
"""Updates between two copies of a good state."""
MARGIN = 0.35
"""Least rise of the loss, in nats per dimension, that counts as divergence: half a bit."""


@final
class Guard:
    """Watches the loss of each update, in nats per example.

    Let `b` be the lowest median of 20 losses so far, and `r` the loss of knowing nothing: that of the marginal
    distribution of the values, or the first loss if it is higher. Training has diverged if the median of the last 20
    losses is above `b` by half of `r - b`, which is half of what was learned, and by half a bit per dimension. Then the
    last copy of a good state comes back, and the learning rate is halved.

    Args:
        state: state of the training, which also stores the losses, so that a resumed training goes on with them.
        marginal: bound of the marginal distribution in nats per example (None: not known).
        dims: dimensions of an example.
    """

    def __init__(self, state: TrainState, marginal: float | None, dims: int) -> None:
        self.state, self.marginal, self.margin = state, marginal, MARGIN * dims
        self.good: dict[str, Any] = state.snapshot()
        self.good_at = state.step

    def after_update(self, loss: float) -> None:
        """Judge the loss of an update, and return to the last good state if training has diverged."""
        state = self.state
        state.first = loss if state.first is None else state.first
        state.recent = (*state.recent, loss)[-WINDOW:]
        if len(state.recent) < WINDOW:
            return
        now = median(state.recent)
        lowest = min(now, state.first if state.lowest is None else state.lowest)
        nothing = max(state.first, lowest if self.marginal is None else self.marginal)
        allowed = max((nothing - lowest) / 2, self.margin)
        if now > lowest + allowed:
            self.go_back(f"the loss rose from {lowest:,.0f} to {now:,.0f} nats")
            return
        state.lowest = lowest
        if state.step - self.good_at >= KEPT_EVERY and now <= lowest + allowed / 4:
            self.good, self.good_at = state.snapshot(), state.step

    def go_back(self, why: str) -> None:
        """Return to the last good state with half the learning rate, and say so."""
        self.state.go_back(self.good)
        note(
            f"training diverged at step {self.state.step:,}: {why}; it continues from step {self.good_at:,} with "
            f"{self.state.slowed:g} times the learning rate"
        )

    @property
    def can_help(self) -> bool:
        """Return whether training went on since the last good state, so that it may go better from there."""
        return len(self.state.recent) >= WINDOW

    def forget(self) -> None:
        """Judge later losses by themselves, because the objective changed."""
        self.state.recent, self.state.first, self.state.lowest = (), None, None
