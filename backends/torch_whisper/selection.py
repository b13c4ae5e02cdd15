"""Selects tokens by the rules of whisper.decoding's logit filters and greedy decoder, in tensor operations.

`choose` reads no value from the device, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from asrgate.backends.whisper_common.greedy import Window, WindowRules


class Selection:
    """Greedy choices for a batch of windows under one set of rules, and their summed log-probabilities."""

    def __init__(self, rules: WindowRules, batch: int, n_vocab: int, device: Any):
        import torch

        self.bias, self.first_bias = _biases(rules.for_any_prompt(), n_vocab, str(device))
        self._eot = rules.eot
        self._begin = rules.timestamp_begin
        self._timestamps = rules.timestamps
        self.token = torch.empty(batch, dtype=torch.int64, device=device)  # the last token sampled
        self._ended = torch.empty(batch, dtype=torch.bool, device=device)
        self._sum_logprob = torch.empty(batch, device=device)
        self._numbers = torch.arange(n_vocab - self._begin, device=device)
        self._last_is_timestamp = torch.empty_like(self._ended)
        self._penultimate_is_timestamp = torch.empty_like(self._ended)
        self._last_timestamp = torch.empty_like(self.token)  # minus timestamp_begin; -1 if none yet
        self._window = torch.arange(batch, device=device)  # the window that each row decodes
        self.reset()

    def reset(self) -> None:
        """Forget all choices, before the next windows under the same rules."""
        self.token.fill_(self._eot)
        self._ended.fill_(False)
        self._sum_logprob.zero_()
        # before the second token, the penultimate one counts as a timestamp, hence True
        self._last_is_timestamp.fill_(True)
        self._penultimate_is_timestamp.fill_(True)
        self._last_timestamp.fill_(-1)

    def choose(self, logits: Any, first: bool = False) -> None:
        """Sample the next token of every window into `token`.

        Args:
            logits: float32 (batch, n_vocab), with this step's bias already added. They are overwritten.
                There are fewer rows if the last windows have ended.
            first: whether this is the window's first token, to which only the bias applies.
        """
        rows = slice(logits.shape[0])
        ended = self._ended[rows]
        self.restrict(logits, first)
        token = logits.argmax(1)
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)
        self._sum_logprob[rows] += logprob.masked_fill(ended, 0.0)
        token.masked_fill_(ended, self._eot)
        self.token[rows] = token
        ended |= token == self._eot
        self._remember(token)

    def restrict(self, logits: Any, first: bool = False) -> None:
        """Forbid what the timestamp rules forbid each row as its next token; see `choose`."""
        import torch

        rows = slice(logits.shape[0])
        last_timestamp = self._last_timestamp[rows]
        last, penultimate = self._last_is_timestamp[rows], self._penultimate_is_timestamp[rows]
        if self._timestamps:
            text, timestamps = logits[:, : self._begin], logits[:, self._begin :]
            if not first:
                closes = last & ~penultimate
                # a new segment may begin where the last one closed, but no segment may be empty
                least = last_timestamp + (~closes)
                text[:, : self._eot].masked_fill_(closes[:, None], -torch.inf)
                forbidden = (last & penultimate)[:, None] | (self._numbers < least[:, None])
                timestamps.masked_fill_(forbidden, -torch.inf)
            outweighs = timestamps.logsumexp(1) > text.amax(1)
            text.masked_fill_(outweighs[:, None], -torch.inf)

    def follow(self, sources: list[int], token: Any) -> None:
        """Give every row the state of another and a token that was chosen for it, in place of `choose`.

        Args:
            sources: for each row the one whose state it takes.
            token: int64 (batch,).
        """
        for state in (self._last_is_timestamp, self._penultimate_is_timestamp, self._last_timestamp):
            state.copy_(state[sources])
        self.token.copy_(token)
        self._remember(self.token)

    def _remember(self, token: Any) -> None:
        """Keep what the timestamp rules have to know of the tokens just chosen."""
        import torch

        if not self._timestamps:
            return
        rows = slice(token.shape[0])
        last, last_timestamp = self._last_is_timestamp[rows], self._last_timestamp[rows]
        sampled = token >= self._begin
        self._penultimate_is_timestamp[rows] = last
        last.copy_(sampled)
        last_timestamp.copy_(torch.where(sampled, token - self._begin, last_timestamp))

    def ended(self) -> bool:
        """Return whether every window has ended; this waits for the device."""
        return bool(self._ended.all())

    def sampled(self) -> Any:
        """Return the last token of every window, int64 (batch,), in the windows' original order."""
        return self._in_order(self.token)

    def running(self) -> list[int]:
        """Return the rows that have not ended, ascending; this waits for the device."""
        return [row for row, ended in enumerate(self._ended.tolist()) if not ended]

    def close_ranks(self) -> list[tuple[int, int]]:
        """Move the rows that have not ended to the front; this waits for the device.

        Returns:
            (from, to) of each row that was swapped with one that has ended.
        """
        running = self.running()
        behind = [row for row in running if row >= len(running)]
        holes = sorted(set(range(len(running))) - set(running))
        if holes:
            flags = (self._ended, self._last_is_timestamp, self._penultimate_is_timestamp)
            for state in (self.token, self._sum_logprob, self._last_timestamp, self._window, *flags):
                state[holes + behind] = state[behind + holes]
        return list(zip(behind, holes, strict=True))

    def _in_order(self, rows: Any) -> Any:
        return rows.clone().index_copy_(0, self._window, rows)

    def windows(self, sampled: Any, no_speech_prob: Any) -> list[Window]:
        """Return the finished windows.

        Args:
            sampled: int64 (batch, steps), the result of `sampled()` for each step.
            no_speech_prob: float32 (batch,).
        """
        windows = []
        total_logprob = self._in_order(self._sum_logprob)
        for tokens, total, silence in zip(
            sampled.tolist(), total_logprob.tolist(), no_speech_prob.tolist(), strict=True
        ):
            end = tokens.index(self._eot) if self._eot in tokens else len(tokens)
            windows.append(Window(tuple(tokens[:end]), total, silence))
        return windows


@lru_cache(maxsize=8)
def _biases(rules: WindowRules, n_vocab: int, device: str) -> Any:
    """Return WindowRules.logit_biases on a device."""
    import torch

    return torch.from_numpy(rules.logit_biases(n_vocab)).to(device)
