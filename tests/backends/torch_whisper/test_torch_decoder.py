"""The tuned decoder samples what openai-whisper samples, with the same log-probabilities."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_checkpoint import MULTILINGUAL, fake_content
from paths import SHARED_AUDIO, TINY_EN
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import ModelDimensions, Whisper

from asrgate.backends.torch_whisper.decoder import TorchDecoder
from asrgate.backends.torch_whisper.linear import linear
from asrgate.backends.torch_whisper.selection import Selection
from asrgate.backends.whisper_common.greedy import Window, window_rules

# whisper's beam search passes a tensor to numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

POSITIONS = 30  # of audio: enough for attention to choose among


class Pair:
    """openai-whisper and our decoder on the same fake weights."""

    def __init__(self, **content: Any):
        held = fake_content(dtype=torch.float32, n_audio_ctx=POSITIONS, **content)
        self.weights, self.dims = held["model_state_dict"], ModelDimensions(**held["dims"])
        self.whisper = Whisper(self.dims).eval()
        self.whisper.load_state_dict(self.weights)
        self.ours = TorchDecoder(self.weights, self.dims)

    def features(self, batch: int = 1, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, POSITIONS, 32, generator=torch.Generator().manual_seed(seed))

    def options(self, **options: Any) -> DecodingOptions:
        language = "de" if self.whisper.is_multilingual else "en"
        return DecodingOptions(**{"language": language, "fp16": False, "sample_len": 48, **options})

    def theirs(self, features: torch.Tensor, options: DecodingOptions) -> Window:
        with torch.no_grad():
            found = DecodingTask(self.whisper, options).run(features)[0]
        return Window(tuple(found.tokens), found.avg_logprob * (len(found.tokens) + 1), found.no_speech_prob)

    def check(self, features: torch.Tensor, options: DecodingOptions) -> Window:
        rules, _ = window_rules(self.whisper, options)
        ours = self.ours.decode(features[0], rules)
        assert_same(ours, self.theirs(features, options))
        return ours


def assert_same(ours: Window, theirs: Window) -> None:
    assert tuple(ours.tokens) == tuple(theirs.tokens)
    steps = len(theirs.tokens) + 1
    assert ours.sum_logprob == pytest.approx(theirs.sum_logprob, abs=1e-4 * steps, rel=1e-4)
    assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, rel=1e-3, abs=1e-9)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for one another where the products are this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def english() -> Pair:
    return Pair()


@pytest.fixture(scope="module")
def multilingual() -> Pair:
    return Pair(n_vocab=MULTILINGUAL)


OPTIONS = [
    {"without_timestamps": True},
    {},
    {"prompt": list(range(400, 430))},
    {"prompt": list(range(400, 700)), "without_timestamps": True},
    {"suppress_blank": False, "suppress_tokens": "", "without_timestamps": True},
    {"max_initial_timestamp": None},
    {"sample_len": 3},
    {"beam_size": 5, "without_timestamps": True},
    {"beam_size": 5},
    {"beam_size": 2, "prompt": list(range(400, 430))},
    {"beam_size": 3, "sample_len": 1},
    {"beam_size": 4, "suppress_blank": False, "suppress_tokens": "", "without_timestamps": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("pair", ["english", "multilingual"])
def test_tokens_and_probabilities_are_openai_whispers(
    pair: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    models: Pair = request.getfixturevalue(pair)
    models.check(models.features(seed=len(options)), models.options(**options))


def test_a_window_that_never_ends_fills_the_context_like_openai_whispers() -> None:
    pair = Pair(loops=True, n_text_ctx=40)
    assert len(pair.check(pair.features(), pair.options(sample_len=None)).tokens) == 20
    prompted = pair.options(prompt=list(range(400, 419)), sample_len=30)
    assert len(pair.check(pair.features(), prompted).tokens) == 40 - 21 + 1, "one more than fits is sampled"


@pytest.mark.parametrize("options", [{"without_timestamps": True}, {}])
def test_a_batch_gives_every_clip_what_it_gets_alone(multilingual: Pair, options: dict[str, Any]) -> None:
    features = multilingual.features(batch=4, seed=5) * torch.tensor([0.1, 1.0, 3.0, 9.0])[:, None, None]
    chosen = multilingual.options(**options)
    rules, _ = window_rules(multilingual.whisper, chosen)
    together = multilingual.ours.decode_batch(features, rules)
    assert len({window.tokens for window in together}) > 1, "clips that differ"
    for window, clip in zip(together, features, strict=True):
        assert_same(window, multilingual.theirs(clip[None], chosen))


def test_windows_that_have_ended_make_room(multilingual: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that end last come last here, so they have to move to the front."""
    decoder, features = multilingual.ours, multilingual.features(batch=8, seed=5)
    rules, _ = window_rules(multilingual.whisper, multilingual.options(without_timestamps=True))
    endless = [decoder.decode(clip, rules).tokens for clip in features]
    shared = Counter(token for tokens in endless for token in set(tokens))
    # no fake window ends by itself, so a token that some of them hold becomes the end of text
    rules = replace(rules, eot=min(token for token, count in shared.items() if 4 <= count <= 6))
    alone = sorted(
        ((decoder.decode(clip, rules), clip) for clip in features), key=lambda pair: len(pair[0].tokens)
    )
    rows = []
    states = decoder._states
    monkeypatch.setattr(decoder, "_states", lambda t, position: rows.append(len(t)) or states(t, position))
    together = decoder.decode_batch([clip for _, clip in alone], rules)
    for window, (expected, _) in zip(together, alone, strict=True):
        assert_same(window, expected)
    assert {window.tokens for window in together} - set(endless), "some have ended"
    running = [sum(len(window.tokens) >= step for window in together) for step in range(len(rows))]
    assert rows == [count if 2 * count <= 8 else 8 for count in running]
    assert min(rows) < 8


@pytest.mark.parametrize("options", [{"without_timestamps": True}, {}])
def test_beams_find_what_openai_whispers_find(options: dict[str, Any]) -> None:
    """Beams that change places and end at different steps, where greedy decoding hears something else."""
    multilingual = Pair(seed=3, n_vocab=MULTILINGUAL, n_text_ctx=96)  # whose windows end by themselves
    chosen = multilingual.options(beam_size=5, **options)
    rules, _ = window_rules(multilingual.whisper, chosen)
    features = multilingual.features(batch=6, seed=5) * torch.logspace(-1, 1, 6)[:, None, None]
    together = multilingual.ours.decode_batch(features, rules)
    for window, clip in zip(together, features, strict=True):
        assert_same(window, multilingual.theirs(clip[None], chosen))
    greedy = multilingual.ours.decode_batch(features, replace(rules, beam_size=1))
    assert sum(a.tokens != b.tokens for a, b in zip(together, greedy, strict=True)) > 2
    lengths = [len(window.tokens) for window in together]
    assert min(lengths) < max(lengths) < chosen.sample_len, "some end by themselves"


def test_beams_fill_the_context_like_openai_whispers() -> None:
    pair = Pair(loops=True, n_text_ctx=40)
    assert len(pair.check(pair.features(), pair.options(sample_len=None, beam_size=5)).tokens) == 20
    prompted = pair.options(prompt=list(range(400, 419)), sample_len=30, beam_size=5)
    assert len(pair.check(pair.features(), prompted).tokens) == 40 - 21 + 1


def test_windows_do_not_leak_into_one_another(english: Pair) -> None:
    rules, _ = window_rules(english.whisper, english.options())
    first, second = english.features(seed=1)[0], english.features(seed=2)[0]
    alone = english.ours.decode(first, rules)
    english.ours.decode(second, rules)
    english.ours.decode(second[:7], rules)  # a shorter context
    english.ours.decode(second, replace(rules, beam_size=4))
    assert english.ours.decode(first, rules) == alone


def test_shorter_features_are_followed_by_those_given_for_it() -> None:
    pair = Pair()
    rules, _ = window_rules(pair.whisper, pair.options())
    heard, silence = pair.features(seed=1)[0], 3 * pair.features(seed=2)[0]
    completed = [torch.cat([heard[:length], silence[length:]]) for length in (9, 1, len(heard))]
    wanted = [pair.ours.decode(whole, rules) for whole in completed]
    shorter = pair.ours.decode(heard[:9], rules)
    pair.ours.follow_with(silence)
    found = [pair.ours.decode(heard[:length], rules) for length in (9, 1, len(heard))]
    for window, whole in zip(found, wanted, strict=True):
        assert_same(window, whole)
    assert len({window.tokens for window in (shorter, *wanted)}) > 2, "it made a difference"


def test_bfloat16_keys_and_values_stay_close_along_the_same_tokens() -> None:
    pair = Pair()
    rules, _ = window_rules(pair.whisper, pair.options(without_timestamps=True, sample_len=1))
    low = TorchDecoder(pair.weights, pair.dims, "bfloat16")
    for seed in range(3):
        features = pair.features(seed=seed)[0]
        exact, rough = (decoder.decode(features, rules) for decoder in (pair.ours, low))
        assert rough != exact, "it is another precision"
        assert rough.tokens == exact.tokens
        assert rough.sum_logprob == pytest.approx(exact.sum_logprob, rel=0.05, abs=0.05)


def test_the_step_that_is_captured_on_a_gpu_computes_the_same(english: Pair) -> None:
    decoder, tokens = english.ours, torch.tensor([[50_257, 400, 7, 30]])
    with torch.inference_mode():
        decoder._attend_to(english.features())
        decoder._states(tokens, 0)
        plain = decoder._states(torch.tensor([[11]]), 4)
        decoder._self_cache[:, :, :, :, 4:] = 99.0  # what the mask has to hide, and the step to replace
        captured = decoder._states(torch.tensor([[11]]), torch.tensor([4]))
    torch.testing.assert_close(captured, plain)


# --- the products ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("gelu", [False, True])
def test_packed_layers_compute_what_plain_ones_do(rows: int, gelu: bool, halves: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 384), (45, 384), (45,)))
    weight = weight.half().float() if halves else weight
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    exact = torch.nn.functional.gelu(exact) if gelu else exact
    found = linear(weight, bias, gelu)(x)
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 1e-6


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="needs a torch with FBGEMM"
)
def test_only_weights_that_lose_nothing_are_kept_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    pack = torch.ops.quantized.linear_prepack_fp16
    spy = SimpleNamespace(
        linear_prepack_fp16=lambda w, b: packed.append(w) or pack(w, b),
        linear_dynamic_fp16=torch.ops.quantized.linear_dynamic_fp16,
    )
    monkeypatch.setattr(torch.ops, "quantized", spy)
    weight = torch.full((4, 4), 0.5)
    linear(weight, None)
    assert len(packed) == 1
    linear(weight, None, rows=1500)  # the encoder's are bound by arithmetic
    for lossy in (1 + 2**-12, 2**-26, 70_000.0):
        weight[3, 3] = lossy
        linear(weight, None)
    assert len(packed) == 1


# --- the rules, on tensors ------------------------------------------------------------------------------


def test_the_rules_are_openai_whispers_on_random_logits(english: Pair) -> None:
    options = english.options(prompt=[400, 401])
    rules, _ = window_rules(english.whisper, options)
    task = DecodingTask(english.whisper, options)
    generator = torch.Generator().manual_seed(3)
    batch, begin, n_vocab = 3, rules.timestamp_begin, 51_864
    selection = Selection(rules, batch, n_vocab, "cpu")
    tokens, sums = torch.tensor([rules.prompt]).repeat(batch, 1), torch.zeros(batch)
    for step in range(40):
        logits = torch.randn(batch, n_vocab, generator=generator)
        # sometimes timestamps are likely, mostly the next ones; sometimes text is
        logits[:, begin + 25 * step : begin + 25 * step + 60] += 9.0 * torch.rand(1, generator=generator)
        logits[torch.arange(batch), torch.randint(220, (batch,), generator=generator)] += 12.0
        logits[:, rules.eot] += 9.0 * (step > 30)
        logits[:, list(rules.suppressed)] += 15.0  # what is not suppressed of them would win
        ours = logits + (selection.bias if step else selection.first_bias)
        selection.choose(ours, first=step == 0)
        for rule in task.logit_filters:
            rule.apply(logits, tokens)
        tokens, _ = task.decoder.update(tokens, logits, sums)
        assert selection.token.tolist() == tokens[:, -1].tolist(), f"step {step}"
    sampled = tokens[:, len(rules.prompt) :]
    stamps = sampled >= begin
    assert (stamps[:, 1:-1] & stamps[:, :-2]).any() and (~stamps).sum() > 20, "pairs, and text between them"
    windows = selection.windows(sampled, torch.zeros(batch))
    assert [window.sum_logprob for window in windows] == pytest.approx(sums.tolist(), rel=1e-5)
    assert (sampled == rules.eot).any(), "and ends"


def test_the_sum_of_log_probabilities_ends_with_the_text(english: Pair) -> None:
    rules, _ = window_rules(english.whisper, english.options(without_timestamps=True))
    selection = Selection(rules, 1, 51_864, "cpu")
    sampled = []
    for token in (5, rules.eot, 9):
        logits = torch.zeros(1, 51_864)
        logits[0, token] = 3.0
        selection.choose(logits)
        sampled.append(selection.token.clone())
    [window] = selection.windows(torch.stack(sampled, 1), torch.tensor([0.5]))
    one = float(logits.log_softmax(1).max())
    assert window.tokens == (5,) and window.no_speech_prob == 0.5 and selection.ended()
    assert window.sum_logprob == pytest.approx(2 * one, abs=1e-3), (
        "the end of text counts, nothing after it does"
    )


# --- real weights ---------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not TINY_EN.exists(),
    reason="needs tiny.en-openai.pt and the clips of ../shared, or ASRGATE_SHARED",
)
def test_the_first_clip_of_human_speech_decodes_alike() -> None:
    from asrgate.harness.corpus.audio import decode

    content = torch.load(TINY_EN, weights_only=True)
    dims = ModelDimensions(**content["dims"])
    model = Whisper(dims).eval()
    model.load_state_dict(content["model_state_dict"])
    import whisper

    entry = json.loads((SHARED_AUDIO / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[2])
    mel = whisper.log_mel_spectrogram(decode(SHARED_AUDIO / entry["audio_filepath"]), padding=480_000)
    with torch.no_grad():
        features = model.encoder(whisper.pad_or_trim(mel, 3000)[None])
    pair = SimpleNamespace(whisper=model, ours=TorchDecoder(content["model_state_dict"], dims))
    options = DecodingOptions(language="en", without_timestamps=True, fp16=False)
    rules, _ = window_rules(model, options)
    assert_same(pair.ours.decode(features[0], rules), Pair.theirs(pair, features, options))  # type: ignore[arg-type]
