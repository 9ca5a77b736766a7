"""Dropout, by the numbers of torch's generator on CPUs, a Mersenne Twister (Matsumoto and Nishimura 1998, MT19937)."""

import triton
import triton.language as tl

from .common import accumulator

MIDDLE = tl.constexpr(397)


@triton.jit
def word_at(p_words):
    return tl.load(p_words).to(tl.uint32, bitcast=True)


@triton.jit
def twist(words_ptr, next_ptr, count, BLOCK: tl.constexpr):
    """`count` words, rounded up to whole blocks, that continue the 624 of a state; next = words + 624.

    A word is made of some that come 227 and more before it: so in a block, of no more words, none is made of another,
    and what is written is memory that the block does not read. Grid: (1).
    """
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        p_words = words_ptr + at
        word, after, middle = word_at(p_words), word_at(p_words + 1), word_at(p_words + MIDDLE)  # [BLOCK]
        mixed = (word & 0x80000000) | (after & 0x7FFFFFFF)
        twisted = (mixed >> 1) ^ tl.where(after & 1 != 0, 0x9908B0DF, 0).to(tl.uint32)
        tl.store(next_ptr + at, (middle ^ twisted).to(tl.int32, bitcast=True))


@triton.jit
def both(mask: tl.constexpr):
    """A mask of 32 bits for both halves of 64."""
    return tl.full((), mask << 32 | mask, tl.uint64)


@triton.jit
def tempered(pair):
    """Two words to numbers at once, each in its half; what a shift moves into the other one is masked."""
    pair ^= (pair >> 11) & both(0x001FFFFF)
    pair ^= (pair << 7) & both(0x9D2C5680)
    pair ^= (pair << 15) & both(0xEFC60000)
    return pair ^ ((pair >> 18) & both(0x00003FFF))


@triton.jit
def draw(pairs_ptr, keep_ptr, N, bound, BLOCK: tl.constexpr):
    """keep[i] = whether the i-th number of 53 bits is below `bound`: of two words, the first of which is the upper.

    Grid: (tiles of N).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair = tempered(tl.load(pairs_ptr + i, mask=i < N, other=0).to(tl.uint64, bitcast=True))  # [BLOCK]
    number = (pair << 32 | pair >> 32) & ((1 << 53) - 1)
    tl.store(keep_ptr + i, (number.to(tl.int64) < bound).to(tl.uint8), mask=i < N)


@triton.jit
def dropout(x_ptr, keep_ptr, scale_ptr, y_ptr, N, BLOCK: tl.constexpr):
    """y[i] = x[i] · scale where `keep`, else x[i] · 0, which is no zero if that is infinite or NaN.

    Grid: (tiles of N).
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < N, other=0.0).to(ACC)  # [BLOCK]
    keep = tl.load(keep_ptr + i, mask=i < N, other=0) != 0  # [BLOCK]
    noise = tl.where(keep, tl.load(scale_ptr).to(ACC), 0.0)
    tl.store(y_ptr + i, (x * noise).to(y_ptr.dtype.element_ty), mask=i < N)
