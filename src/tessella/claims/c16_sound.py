"""Claim 16: codes of sound keep what is said and drop who says it. It waits for data that are sound."""

from __future__ import annotations

from tessella.claims.bench import Bench
from tessella.claims.claim import Claim, Result


def run(bench: Bench) -> Result:
    """Never asked for: there is always a hindrance."""
    raise NotImplementedError(bench.data.spec)


CLAIM = Claim(
    number=16,
    title="Codes of sound keep what is said",
    hypothesis="A probe reads the spoken word from the codes, and who speaks worse than from the sound itself.",
    measured="content and speaker probes on codes of spoken digits; the same codes decoded as another speaker",
    run=run,
    hindrance=lambda bench: "waits for sound: no data of that kind can be opened yet",
)
