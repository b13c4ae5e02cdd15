"""Draws a subset of clips with the same proportions: stratified, seeded, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.corpus.fields import LENGTH, value_of


class SampleError(AsrgateError):
    """More clips were requested than exist."""


def stratified(clips: Sequence[Clip], count: int, seed: int, fields: Sequence[str] = ()) -> list[Clip]:
    """Return `count` of the clips, in their order, in proportion to strata.

    A stratum holds the clips of one language, one length bucket and one value of each of `fields`. Shares are
    rounded by largest remainder, so small strata may get none. Which clips are drawn from a stratum depends
    only on the seed and on its clips' names.

    Raises:
        SampleError: there are fewer clips than `count`.
    """
    if count > len(clips):
        raise SampleError(f"--sample {count}: there are only {len(clips)} clips; ask for at most that many")
    strata: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        values = (
            value_of(clip.audio_seconds, clip.language, clip.tags, field)
            for field in dict.fromkeys(("lang", LENGTH, *fields))
        )
        strata.setdefault(tuple(values), []).append(clip)
    keys = sorted(strata)
    exact = [count * len(strata[key]) / len(clips) for key in keys]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(keys)), key=lambda n: (shares[n] - exact[n], keys[n]))
    for n in by_remainder[: count - sum(shares)]:
        shares[n] += 1
    drawn: set[str] = set()
    for number, (key, share) in enumerate(zip(keys, shares, strict=True)):
        names = sorted(clip.name for clip in strata[key])
        picked = np.random.default_rng([seed, number]).permutation(len(names))[:share]
        drawn.update(names[n] for n in picked)
    return [clip for clip in clips if clip.name in drawn]
