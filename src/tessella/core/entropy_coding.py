"""Entropy coding of symbols with integer tables: an ANS stack, an encoder and a decoder.

The stack uses asymmetric numeral systems (Duda 2013; `constriction`, Bamler 2022): the last symbol pushed is the first
popped. Popping from random bits samples from the table, which bits-back coding needs (Townsend et al. 2019, section 2).

A table of k symbols is k + 1 integer edges, 0 <= e_0 <= ... <= e_k = 2^24 - 2 k. Symbol i has the frequency e_(i+1) -
e_i + 2 out of 2^24, so no symbol is impossible and none is certain. Edges are cumulative probabilities, rounded down by
IEEE operations in a fixed order. The coder uses them unchanged, so equal probabilities give equal tables, bit for bit.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import constriction
import numpy as np
import torch
from torch import Tensor

from tessella.foundation.errors import DataError

TOTAL = 1 << 24
"""Sum of the frequencies of a table, fixed by `constriction`."""
WORD = np.dtype("<u4")
streams: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_TABLES = streams.model.Categorical(perfect=False)


class SymbolCoder(ABC):
    """Interface of an entropy coder: an encoder writes symbols, a decoder reads them.

    Everything that can be coded has a method `code(coder, ..., value)` that runs the same steps at both ends: with an
    encoder `value` is given, with a decoder it is None; both return the value.
    """

    @abstractmethod
    def code(self, cdf: Tensor, symbols: Tensor | None) -> Tensor:
        """Write or read symbols `[n]` int64 from 0 to k - 1, each with its own `quantized_cdf` `[k + 1, n]`."""

    @abstractmethod
    def code_uniform(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        """Write or read `count` symbols from 0 to size - 1, all equally probable."""


@final
class PartialCoder(SymbolCoder):
    """Coder of some symbols of each call; the others are 0 and take no bits.

    Args:
        coder: the encoder or the decoder.
        coded: `[n]` bool, which of the n symbols of each call are coded.
    """

    def __init__(self, coder: SymbolCoder, coded: Tensor) -> None:
        self._coder, self._coded = coder, coded

    def code(self, cdf: Tensor, symbols: Tensor | None) -> Tensor:
        some = None if symbols is None else symbols[self._coded]
        return self._spread(self._coder.code(cdf[:, self._coded], some))

    def code_uniform(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        some = None if symbols is None else symbols[self._coded]
        return self._spread(self._coder.code_uniform(size, int(self._coded.sum()), some))

    def _spread(self, some: Tensor) -> Tensor:
        return torch.zeros(self._coded.shape, dtype=torch.int64).masked_scatter_(self._coded, some)


def of_observed(coder: SymbolCoder, coded: Tensor | None) -> SymbolCoder:
    """Return a coder of the symbols that are observed, a bool tensor of any shape; None: of all."""
    return coder if coded is None else PartialCoder(coder, coded.flatten())


# tables


def quantized_cdf(cumulated: Tensor) -> Tensor:
    """Round cumulative probabilities `[k + 1, ...]` to the integer edges of a table.

    They may have any scale and offset but must not decrease. If all probabilities are zero, the last symbol gets
    everything. The result is float32, which holds these integers exactly.
    """
    symbols, low = len(cumulated) - 1, cumulated[:1]
    whole = TOTAL - 2 * symbols
    scale = whole / (cumulated[-1:] - low).clamp_min(torch.finfo(cumulated.dtype).tiny * TOTAL)
    table = (cumulated - low).mul_(scale).floor_().clamp_max_(whole)
    table[-1] = whole
    return table.to(torch.float32)


def code_bits(coder: SymbolCoder, logits: Tensor, bits: Tensor | None) -> Tensor:
    """Write or read bits of the shape of `logits`, each 1 with probability sigmoid(logit)."""
    zero = torch.sigmoid(-logits.float()).flatten()
    table = quantized_cdf(torch.stack([torch.zeros_like(zero), zero, torch.ones_like(zero)]))
    return coder.code(table, None if bits is None else bits.flatten().long()).view(logits.shape)


def code_categorical(coder: SymbolCoder, logits: Tensor, symbols: Tensor | None) -> Tensor:
    """Write or read symbols `[n]` with probabilities softmax(logits), where logits is `[n, K]`."""
    cumulated = logits.float().softmax(-1).double().cumsum(-1)
    return coder.code(quantized_cdf(torch.nn.functional.pad(cumulated, (1, 0)).T), symbols)


def code_from_cdf(
    coder: SymbolCoder, below: Callable[[Tensor], Tensor], bits: int, value: Tensor | None, zeros: Tensor
) -> Tensor:
    """Write or read integers from 0 to 2^bits - 1, two bits at a time, highest first.

    The distribution function is evaluated at 3 values in each of bits / 2 steps, instead of at 2^bits - 1.

    Args:
        coder: the encoder or the decoder.
        below: P(v < t) of integers t in the shape and dtype of `zeros`; never called with 0 or 2^bits. Where rounding
            makes it decrease, it is taken as constant.
        bits: an even number.
        value: the integers in the dtype of `zeros` to encode them, None to decode.
        zeros: a tensor of zeros with the shape and dtype of the integers.

    Returns:
        The integers, in the shape and dtype of `zeros`.
    """
    start, low, high = zeros, zeros, zeros + 1
    for shift in range(bits - 2, -1, -2):
        width = 2**shift
        cumulated = torch.empty(5, *zeros.shape, dtype=zeros.dtype)
        cumulated[0], cumulated[4] = low, high
        for j in (1, 2, 3):
            here = torch.maximum(below(start + j * width), cumulated[j - 1])
            torch.minimum(here, high, out=cumulated[j])
        digits = None if value is None else ((value - start) / width).floor_().flatten().long()
        at = coder.code(quantized_cdf(cumulated.flatten(1)), digits)
        low, high = (ends.view(zeros.shape) for ends in _around(cumulated.flatten(1), at))
        start = torch.add(start, at.view(zeros.shape), alpha=width)
    return start


def _around(table: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows i and i + 1 of a table `[k + 1, n]` for each column's i, faster than `gather`."""
    flat, count = table.reshape(-1), table.shape[1]
    place = torch.add(torch.arange(count), at, alpha=count)
    return flat.take(place), flat[count:].take(place)


# bits


@final
class AnsStack:
    """Stack of bits: the last bits pushed are the first popped.

    Args:
        words: `[n]` uint32, the result of `words()`; None: an empty stack.

    Raises:
        DataError: if the words are not a stack (a stack never ends in a zero word).
    """

    def __init__(self, words: np.ndarray | None = None) -> None:
        try:
            self._coder: Any = streams.stack.AnsCoder(*(() if words is None else (_native(words),)))
        except ValueError as error:
            raise DataError(
                f"the bits are not an entropy-coded stream ({' '.join(str(error).split())})", code="damaged"
            ) from error

    def words(self) -> np.ndarray:
        """Return the whole stack, `[n]` uint32, little endian."""
        return self._coder.get_compressed().astype(WORD)

    @property
    def bits(self) -> int:
        """Return the number of bits on the stack."""
        return self._coder.num_valid_bits()

    def add_initial_bits(self, words: np.ndarray) -> None:
        """Put words at the bottom of the stack, where they are popped last.

        The stack must be empty or have started with at least two words: a coder that started with none has not filled
        its state, and words below would change the last symbols.
        """
        self._coder = streams.stack.AnsCoder(np.concatenate([_native(words), _native(self.words())]))

    def drop_initial_bits(self, count: int) -> None:
        """Remove `count` words from the bottom of the stack; at least two words never popped must remain."""
        self._coder = streams.stack.AnsCoder(_native(self.words()[count:]))

    def push(self, symbols: np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        """Push symbols `[n]` int32 so that they are popped in their order."""
        self._coder.encode_reverse(symbols, model, *parameters)

    def pop(self, *model: Any) -> Tensor:
        """Pop symbols `[n]` int64; an empty stack yields zero bits."""
        return torch.from_numpy(self._coder.decode(*model)).long()


@final
class SymbolEncoder(SymbolCoder):
    """Encoder that collects symbols and pushes them in reverse at `flush`, to be popped in order."""

    def __init__(self, stack: AnsStack) -> None:
        self._stack = stack
        self._told: list[tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, int]] = []

    @property
    def bits(self) -> float:
        """Return the cost in bits of the collected symbols, before rounding to words."""
        return sum(
            len(one) * math.log2(other) if isinstance(other, int) else -float(np.log2(other / TOTAL).sum())
            for one, other in self._told
        )

    def code(self, cdf: Tensor, symbols: Tensor | None) -> Tensor:
        at = _known(symbols)
        left, right = _around(cdf, at)
        frequency = right.add_(at + 1, alpha=2).sub_(left.add_(at, alpha=2))
        if not bool((frequency > 0).all()):
            raise ValueError("a probability is NaN")
        self._told.append((_int32(left), _int32(frequency)))
        return at

    def code_uniform(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        known = _known(symbols)
        if size > 1:
            self._told.append((_int32(known), size))
        return known

    def flush(self) -> None:
        """Push all collected symbols on the stack."""
        for one, other in reversed(self._told):
            if isinstance(other, int):
                self._stack.push(one, streams.model.Uniform(other))
            else:
                self._stack.push(*_of_three(one, other))
        self._told.clear()


@final
class SymbolDecoder(SymbolCoder):
    """Decoder that pops symbols from a stack."""

    def __init__(self, stack: AnsStack) -> None:
        self._stack = stack

    def code(self, cdf: Tensor, symbols: Tensor | None) -> Tensor:
        return self._stack.pop(_TABLES, (cdf[1:] - cdf[:-1]).add_(1).T.contiguous().numpy())

    def code_uniform(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        if size == 1:
            return torch.zeros(count, dtype=torch.int64)
        return self._stack.pop(streams.model.Uniform(size), count)


def _of_three(left: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
    """Express symbols as members of tables of three, since the coder needs only a symbol's own interval.

    The coder adds one to each weight, and weights sum to 2^24 - 3. The symbol is the middle one, or the first or last
    one if its interval lies at that end.
    """
    first, last = left == 0, left + frequency == TOTAL
    weights = np.empty((len(left), 3), np.float32)
    weights[:, 0] = np.where(first, frequency - 1, np.where(last, left - 2, left - 1))
    weights[:, 2] = np.where(last, frequency - 1, np.where(first, 0, TOTAL - left - frequency - 1))
    weights[:, 1] = TOTAL - 3 - weights[:, 0] - weights[:, 2]
    return np.where(first, 0, np.where(last, 2, 1)).astype(np.int32), _TABLES, weights


def _known(symbols: Tensor | None) -> Tensor:
    if symbols is None:
        raise ValueError("an encoder needs the symbols: pass them instead of None")
    return symbols


def _int32(numbers: Tensor) -> np.ndarray:
    return numbers.numpy().astype(np.int32)


def _native(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32, copy=False) if sys.byteorder == "little" else words.astype(np.uint32)
