"""Deterministic test arrays: the same bytes with every numpy version and on every machine.

Bits come from splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
Everything after that is integer arithmetic and single IEEE operations, so nothing depends on how a library
rounds `log` or `cos`.

An array is described by a recipe, a JSON object with a `kind`, so that it can be drawn again instead of
stored:

    {"kind": "stored", "key": K}                            the stored array K
    {"kind": "resized", "key": K}                           the stored array K, repeated or cut to the shape
    {"kind": "fill", "value": V}                            V everywhere
    {"kind": "normal", "seed", "mean", "std", "low"}        nearly normal; at least `low` if that is not null
    {"kind": "uniform", "seed", "mean", "std", "low"}       uniform with that mean and standard deviation
    {"kind": "integer", "seed", "low", "high"}              uniform integers, both bounds included
    {"kind": "mask", "seed", "keep"}                        0 or 1; the first element of every row is `keep`
    {"kind": "either", "seed", "key"}                       random bools, or true where the stored array is
    {"kind": "poke", "base": RECIPE, "at": I, "value": V}   `base` with V (a number, "nan", "inf") at index I
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Recipe = Mapping[str, Any]

_SQRT3 = 1.7320508075688772
# The standard deviation of the sum of four uniform 16-bit integers: 2 * sqrt((65536**2 - 1) / 12).
_SUM_STD = 37837.22723


def seed_of(text: str) -> int:
    """A 64-bit seed for a name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def random_bits(seed: int, count: int) -> Array:
    """The first `count` outputs of splitmix64 seeded with `seed`, as uint64."""
    steps = np.arange(1, count + 1, dtype=np.uint64)
    z = np.uint64(seed) + steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(seed: int, count: int) -> Array:
    """float64 in [0, 1), 53 random bits each."""
    return np.asarray((random_bits(seed, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal(seed: int, count: int) -> Array:
    """Nearly standard normal float64: a scaled sum of four uniform integers, within +-3.47."""
    bits = random_bits(seed, count)
    total = np.zeros(count, np.int64)
    for shift in (0, 16, 32, 48):
        total += ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    return np.asarray((total - 2 * 65535).astype(np.float64) / _SUM_STD)


def integers(seed: int, count: int, low: int, high: int) -> Array:
    """int64 in low..high, both included."""
    span = np.uint64(high - low + 1)
    return np.asarray((random_bits(seed, count) % span).astype(np.int64) + np.int64(low))


def sample_positions(seed: int, size: int, count: int) -> Array:
    """Up to `count` distinct flat positions below `size`, ascending, with the first and the last."""
    if size <= count:
        return np.arange(size, dtype=np.int64)
    drawn = integers(seed, count - 2, 0, size - 1)
    return np.unique(np.concatenate([drawn, np.asarray([0, size - 1])]))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type that carries a tensor type; bfloat16 travels as float32."""
    return np.dtype("float32" if name == "bfloat16" else name)


def make(recipe: Recipe, dtype: str, shape: Sequence[int], stored: Mapping[str, Array]) -> Array:
    """The array that a recipe describes; of bfloat16, float32 with values that bfloat16 can hold.

    Raises:
        KeyError: a stored array is missing.
        ValueError: an unknown kind.
    """
    array = _made(recipe, dtype, shape, stored)
    return bfloat16_values(array) if dtype == "bfloat16" else array


def bfloat16_values(x: Array) -> Array:
    """float32 rounded to what bfloat16 can hold, to nearest and ties to even."""
    bits = x.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF).astype(np.uint32)) & np.uint32(0xFFFF0000)
    return np.asarray(np.where(np.isnan(x), x, rounded.view(np.float32)))


def _made(recipe: Recipe, dtype: str, shape: Sequence[int], stored: Mapping[str, Array]) -> Array:
    shape = tuple(shape)
    count = int(np.prod(shape, dtype=np.int64))
    target = numpy_dtype(dtype)
    seed = int(recipe.get("seed", 0))
    match recipe["kind"]:
        case "stored":
            return np.array(stored[recipe["key"]], dtype=target).reshape(shape)
        case "resized":
            array = np.asarray(stored[recipe["key"]], dtype=target)
            for axis, size in enumerate(shape):
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
            return array
        case "fill":
            return np.full(shape, recipe["value"], dtype=target)
        case "normal":
            return _scaled(normal(seed, count), recipe, target).reshape(shape)
        case "uniform":
            return _scaled((2.0 * uniform(seed, count) - 1.0) * _SQRT3, recipe, target).reshape(shape)
        case "integer":
            return integers(seed, count, recipe["low"], recipe["high"]).astype(target).reshape(shape)
        case "mask":
            mask = integers(seed, count, 0, 1).astype(target).reshape(shape)
            mask[..., 0] = recipe["keep"]
            return mask
        case "either":
            drawn = integers(seed, count, 0, 1).astype(bool).reshape(shape)
            return np.asarray(drawn | np.asarray(stored[recipe["key"]], dtype=bool).reshape(shape))
        case "poke":
            array = _made(recipe["base"], dtype, shape, stored)
            array.reshape(-1)[recipe["at"]] = float(recipe["value"])
            return array
    raise ValueError(f"unknown recipe kind {recipe['kind']!r}")


def _scaled(unit: Array, recipe: Recipe, target: np.dtype[Any]) -> Array:
    values = unit * recipe["std"] + recipe["mean"]
    if recipe["low"] is not None:
        values = np.maximum(values, recipe["low"])
    return np.asarray(values.astype(target))
