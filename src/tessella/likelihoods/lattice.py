"""Lattices of integers: examples whose values are all multiples of a power of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from tessella.core.entropy_coding import SymbolCoder, code_categorical
from tessella.core.schema import Integers, Values

FINEST = 256
"""Largest number of levels for which lattices are not looked for."""
FIRST = 4.0
"""Initial logit of the step 1, against 0 of each other step."""


@final
class Lattice(nn.Module):
    """Distribution of an example's step: the largest power of two 2^e that divides all its values.

    Sound of 8 bits that is stored in 16 has the step 256; it would cost 8 bits a sample more if it were modelled as
    sound of 16 bits. FLAC calls such bits wasted. Each example pays -log p(e) once, with learned probabilities. So it
    costs -log p(x, e), which is at least -log p(x): a finer step could also have given x.

    Args:
        values: of one number.
        look: whether lattices are looked for; if not, all examples have the step 1.

    Attributes:
        values: the values divided by the step, for each e; only one e for few levels or values that are no integers.
    """

    def __init__(self, values: Values, *, look: bool) -> None:
        super().__init__()
        self.values = [values]
        while look and isinstance(values, Integers) and values.levels > FINEST:
            step = 2 ** len(self.values)
            low, high = -(-int(values.low) // step), int(values.high) // step
            if high <= low:
                break
            self.values.append(Integers(high - low + 1, float(low)))
        first = torch.tensor([FIRST] + [0.0] * (len(self.values) - 1))
        self.logits = nn.Parameter(first) if len(self.values) > 1 else None

    def exponents(self, x: Tensor) -> Tensor:
        """Return e of each example `[B, ...]` of stored values, `[B]` int64; values that are not observed are free."""
        e = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for power in range(1, len(self.values)):
            e += ((x % 2**power == 0) | x.isnan()).flatten(1).all(1)
        return e

    def log_prob(self, exponents: Tensor) -> Tensor:
        """Compute log p(e), `[B]`."""
        return exponents * 0.0 if self.logits is None else self.logits.log_softmax(0)[exponents]

    def by_step(self, exponents: Tensor, function: Callable[[int, Tensor | slice], Tensor]) -> Tensor:
        """Compute `function(e, rows)` for the examples with each e, and return the results in the examples' order."""
        found = exponents.unique().tolist() if len(self.values) > 1 else [0]
        if len(found) == 1:
            return function(found[0], slice(None))
        rows = [(exponents == e).nonzero().flatten() for e in found]
        return torch.cat([function(e, some) for e, some in zip(found, rows, strict=True)])[torch.cat(rows).argsort()]

    def align(self, y: Tensor, exponents: Tensor) -> Tensor:
        """Convert network units of values `[B, ...]` to those of the values divided by 2^e: a shift of half a step."""
        if self.logits is None:
            return y
        middle, half = torch.tensor([((v.high + v.low) / 2, (v.high - v.low) / 2) for v in self.values]).to(y).T
        steps = 2.0 ** torch.arange(len(half)).to(y)
        gain, offset = half[0] / (steps * half), (middle[0] / steps - middle) / half
        gain, offset = (t[exponents].view(-1, *(1,) * (y.dim() - 1)) for t in (gain, offset))
        return y * gain + offset

    def code(self, coder: SymbolCoder, count: int, exponents: Tensor | None) -> Tensor:
        """Write or read e of `count` examples."""
        if self.logits is None:
            return torch.zeros(count, dtype=torch.int64)
        return code_categorical(coder, self.logits.detach().expand(count, -1).cpu(), exponents)

    def sample(self, count: int) -> Tensor:
        """Sample e of `count` examples."""
        if self.logits is None:
            return torch.zeros(count, dtype=torch.int64)
        return self.logits.detach().softmax(0).multinomial(count, replacement=True)

    @property
    def mode(self) -> int:
        """Return the most probable e."""
        return 0 if self.logits is None else int(self.logits.argmax())
