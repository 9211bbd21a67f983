"""Symbols as bits and back: integer tables, a stack of bits, and the two ends of a wire.

The stack is asymmetric numeral coding (Duda 2013; `constriction`, Bamler 2022): what was pushed last is popped first,
and popping from random bits draws from the table, which bits-back coding lives on (Townsend et al. 2019, section 2).

A table of k symbols is k + 1 integer edges, 0 <= e_0 <= ... <= e_k = 2^24 - 2 k: symbol i has the frequency
e_(i+1) - e_i + 2 out of 2^24, so nothing is impossible and nothing is certain. Edges are rounded down from cumulated
probabilities by IEEE operations in a fixed order, and are handed to the coder as they are: whoever has the same
probabilities has the same table, bit for bit.

Imports beside it: contracts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, final

import constriction
import numpy as np
import torch
from torch import Tensor

from tessella.contracts import Wire
from tessella.errors import DataError

TOTAL = 1 << 24
"""What the frequencies of a table sum to; constriction's own."""
WORD = np.dtype("<u4")
streams: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_TABLES = streams.model.Categorical(perfect=False)


# tables


def edges(cumulated: Tensor) -> Tensor:
    """Cumulated probabilities `[..., k + 1]` of any scale and origin as integer edges, in float32, which holds them.

    The columns must not fall from left to right. Where there is no probability at all the symbols share evenly.
    """
    symbols = cumulated.shape[-1] - 1
    low, high = cumulated[..., :1], cumulated[..., -1:]
    share = (cumulated - low) / (high - low)
    even = torch.arange(symbols + 1, dtype=cumulated.dtype, device=cumulated.device) / symbols
    share = torch.where(high > low, share, even)
    return (share * (TOTAL - 2 * symbols)).floor().to(torch.float32)


def tell_logits(wire: Wire, logits: Tensor, symbols: Tensor | None) -> Tensor:
    """Symbols `[n]` with probabilities softmax(logits) `[n, K]`."""
    cumulated = logits.float().softmax(-1).double().cumsum(-1)
    return wire.tell(edges(torch.nn.functional.pad(cumulated, (1, 0))), symbols)


def tell_split(wire: Wire, below: Callable[[Tensor], Tensor], bits: int, value: Tensor | None, start: Tensor) -> Tensor:
    """Integers from 0 to 2^bits - 1, their bits two at a time, the most significant first.

    So a distribution function is asked for 3 values at each of bits / 2 steps, instead of 2^bits - 1.

    Args:
        below: P(v < t) of whole numbers t, in the shape of `start` and its dtype: never at 0 and 2^bits. Where rounding
            lets it fall it is taken to be level.
        bits: an even number.
        value: if they are known.
        start: zeros in their shape.

    Returns:
        The integers, in the shape and dtype of `start`.
    """
    low, high = start, start + 1
    for shift in range(bits - 2, -1, -2):
        cumulated = [low]
        for j in (1, 2, 3):
            cumulated.append(torch.maximum(below(start + j * 2**shift), cumulated[-1]).minimum(high))
        table = torch.stack([*cumulated, high], -1)
        digits = None if value is None else ((value - start) / 2**shift).floor()
        told = wire.tell(edges(table.flatten(0, -2)), None if digits is None else digits.flatten().long())
        at = told.view(start.shape).unsqueeze(-1)
        low, high = table.gather(-1, at).squeeze(-1), table.gather(-1, at + 1).squeeze(-1)
        start = start + told.view(start.shape) * 2**shift
    return start


# bits


@final
class Stack:
    """Bits, the last in first out.

    Args:
        words: `[n]` uint32, as `words()` gave them.

    Raises:
        DataError: if they are no stack: one never ends in a zero word.
    """

    def __init__(self, words: np.ndarray | None = None) -> None:
        try:
            self._coder: Any = streams.stack.AnsCoder(*(() if words is None else (_native(words),)))
        except ValueError as error:
            raise DataError(f"these are no bits that were written ({' '.join(str(error).split())})") from error

    def words(self) -> np.ndarray:
        """All of it, `[n]` uint32, little endian."""
        return self._coder.get_compressed().astype(WORD)

    @property
    def bits(self) -> int:
        """How many there are."""
        return self._coder.num_valid_bits()

    def put_under(self, words: np.ndarray) -> None:
        """Words that will be popped after all others."""
        self._coder = streams.stack.AnsCoder(np.concatenate([_native(words), _native(self.words())]))

    def push(self, symbols: np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        """Symbols `[n]` int32, so that they are popped in their order."""
        self._coder.encode_reverse(symbols, model, *parameters)

    def pop(self, *model: Any) -> Tensor:
        """Symbols `[n]` int64; where there are no bits left they are taken to be zeros."""
        return torch.from_numpy(self._coder.decode(*model)).long()


@final
class Sender(Wire):
    """Keeps what it is told, and pushes it on a stack at the end, in reverse: popped, it comes in the order told.

    Attributes:
        bits: of what was told, by the tables: the length that the stack grows by, but for rounding to words.
    """

    def __init__(self, stack: Stack) -> None:
        self.bits = 0.0
        self._stack = stack
        self._told: list[tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, int]] = []

    def tell(self, table: Tensor, symbols: Tensor | None) -> Tensor:
        at = _known(symbols).unsqueeze(1)
        left = table.gather(1, at).long() + 2 * at
        right = table.gather(1, at + 1).long() + 2 * at + 2
        self.bits -= float(torch.log2((right - left).double() / TOTAL).sum())
        self._told.append((_int32(left[:, 0]), _int32((right - left)[:, 0])))
        return at[:, 0]

    def tell_even(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        known = _known(symbols)
        if size > 1:
            self.bits += count * float(np.log2(size))
            self._told.append((_int32(known), size))
        return known

    def flush(self) -> None:
        """Push it all."""
        for one, other in reversed(self._told):
            if isinstance(other, int):
                self._stack.push(one, streams.model.Uniform(other))
            else:
                self._stack.push(*_of_three(one, other))
        self._told.clear()


@final
class Receiver(Wire):
    """Pops what it is asked for."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def tell(self, table: Tensor, symbols: Tensor | None) -> Tensor:
        return self._stack.pop(_TABLES, table.diff(dim=-1).add_(1).contiguous().numpy())

    def tell_even(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        if size == 1:
            return torch.zeros(count, dtype=torch.int64)
        return self._stack.pop(streams.model.Uniform(size), count)


def _of_three(left: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
    """Symbols as members of tables of three: to the coder only a symbol's own interval matters.

    The coder adds one to each weight, and weights sum to 2^24 - 3. The symbol is the middle one, or at either end the
    one that lies there.
    """
    first, last = left == 0, left + frequency == TOTAL
    weights = np.empty((len(left), 3), np.float32)
    weights[:, 0] = np.where(first, frequency - 1, np.where(last, left - 2, left - 1))
    weights[:, 2] = np.where(last, frequency - 1, np.where(first, 0, TOTAL - left - frequency - 1))
    weights[:, 1] = TOTAL - 3 - weights[:, 0] - weights[:, 2]
    return np.where(first, 0, np.where(last, 2, 1)).astype(np.int32), _TABLES, weights


def _known(symbols: Tensor | None) -> Tensor:
    if symbols is None:
        raise ValueError("a sender must know the symbols")
    return symbols


def _int32(numbers: Tensor) -> np.ndarray:
    return numbers.numpy().astype(np.int32)


def _native(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32, copy=False) if sys.byteorder == "little" else words.astype(np.uint32)
