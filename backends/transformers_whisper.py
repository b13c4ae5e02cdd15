"""Hugging Face's Whisper: transformers' model, features and generate(), with the checkpoint's weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import (
    SAMPLE_RATE_HZ,
    BackendError,
    Checkpoint,
    Settings,
    Transcript,
)
from asrgate.backends.checkpoints.catalog import load_state_dict
from asrgate.backends.checkpoints.conversions.transformers_weights import (
    fitting,
    generation_config,
    model_config,
)
from asrgate.backends.devices import require_package, require_torch
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_FRAMES, N_SAMPLES, num_languages
from asrgate.backends.whisper_common.decoding import (
    require_honourable,
    suppressed_tokens,
    to_decode_in,
)
from asrgate.backends.whisper_common.stage_clock import StageClock
from asrgate.backends.whisper_common.torch_setup import forbid_tf32, require_cuda, uses_tf32

COMPILED = "+compiled"


class TransformersWhisper:
    """WhisperForConditionalGeneration.generate, greedy: eager, or with a static cache and torch.compile.

    The two are precisions of one backend (`float32`, `float32+compiled`), so that a table shows them side by
    side. Only the first is part of a default run, because compiling takes minutes. Long clips use
    transformers' own sequential long-form. For clips of up to 30 s, its no-speech rule would run the whole
    model a second time; here the same rule is applied to the states of the first pass.
    """

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "float32" + COMPILED, "bfloat16"),
        "cuda": ("float16", "float16" + COMPILED, "bfloat16", "bfloat16" + COMPILED, "float32"),
    }
    imports: ClassVar[Sequence[str]] = ("torch", "transformers", "whisper")

    def __init__(self, model: Any, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        import torch
        from transformers import WhisperFeatureExtractor
        from whisper.tokenizer import LANGUAGES, get_tokenizer

        count = num_languages(checkpoint.dimensions["n_vocab"])
        self._torch: Any = torch
        self._model = model
        self._languages = tuple(LANGUAGES)[:count]
        self._tokenizer = get_tokenizer(checkpoint.is_multilingual, num_languages=count)
        self._checkpoint = checkpoint
        self._device = device
        self._precision = precision
        self._settings = settings
        self._extractor: Any = WhisperFeatureExtractor(feature_size=checkpoint.dimensions["n_mels"])
        self._clock = StageClock(self.synchronize)
        self._log_mel = self._clock.timed("log_mel", self._features)
        model.model.encoder.forward = self._clock.timed("encode", model.model.encoder.forward)

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package, the GPU or a CUDA build of torch is missing."""
        require_package("transformers", "transformers")
        require_package("whisper", "openai-whisper")  # its tokens
        require_torch(device)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings
    ) -> TransformersWhisper:
        """Build the model and load every tensor; no tensor may be missing or left over.

        Raises:
            BackendUnavailable: torch cannot use the GPU.
            BackendError: a setting cannot be honoured, or the weights do not fit the model.
        """
        require_honourable(checkpoint, settings, detects_language=True)
        if settings.beam_size != 1:
            raise BackendError(
                "transformers ends and ranks beams by different rules than openai-whisper, so beam_size "
                f"{settings.beam_size} cannot be honoured; use beam_size 1, or whisper-cpu or faster-whisper"
            )
        if settings.condition_on_previous_text:
            raise BackendError(
                "transformers refuses a prompt of 223 tokens if 224 more may follow, so "
                "condition_on_previous_text cannot be honoured; use false, or whisper-cpu or faster-whisper"
            )
        import torch
        from transformers import WhisperForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()  # every call would warn about what Whisper's generate() itself does
        torch.set_num_threads(settings.threads)
        forbid_tf32()
        if device == "cuda":
            require_cuda()
        model: Any = WhisperForConditionalGeneration(model_config(checkpoint))
        try:
            model.load_state_dict(fitting(load_state_dict(checkpoint)), strict=True)
            model = model.to(device, getattr(torch, precision.removesuffix(COMPILED))).eval()
        except RuntimeError as error:
            raise BackendError(f"{checkpoint.name} cannot be loaded: {str(error)[:300]}") from error
        suppressed = suppressed_tokens(settings, checkpoint)
        model.generation_config = generation_config(checkpoint, suppressed, settings.suppress_blank)
        if precision.endswith(COMPILED):
            from transformers import CompileConfig

            model.generation_config.cache_implementation = "static"
            compile_config: Any = CompileConfig(mode="default", fullgraph=True)
            compile_config._compile_all_devices = True  # otherwise only on GPUs
            model.generation_config.compile_config = compile_config
        return cls(model, checkpoint, device, precision, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings passed to generate(), and those with which torch really runs."""
        torch = self._torch
        compiled = self._precision.endswith(COMPILED)
        return {
            **self._settings.as_dict(),
            "threads": torch.get_num_threads(),
            "device": self._device,
            "precision": self._precision,
            "weights_dtype": str(self._model.dtype).removeprefix("torch."),
            "attention": self._model.config._attn_implementation,
            "cache": "static" if compiled else "dynamic",
            "compiled": "decoder steps after the first" if compiled else None,
            "tf32": uses_tf32(),
            "max_tokens_per_window": self._max_tokens,
            "compression_ratio_threshold": None,
            "without_timestamps": "clips up to 30 s",
            "audio_context": "30 s",
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip with generate(); see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language.
        """
        named = to_decode_in(self._checkpoint, language, self._languages)
        if len(audio) < HOP_LENGTH:  # less than a frame counts as no audio, as in openai-whisper
            return Transcript("", (), language="en" if named is None else None)
        with self._clock.call(), self._torch.inference_mode(), _silenced():
            features = self._log_mel(audio)
            spoken = named or self._detected(features)
            prompt = {"language": spoken, "task": self._settings.task}
            options = {
                **(prompt if self._checkpoint.is_multilingual else {}),
                "max_new_tokens": self._max_tokens,
            }
            if len(audio) <= N_SAMPLES:
                segments = self._window(features, options)
            else:
                segments = self._long_form(features, options)
            end = self._tokenizer.eot
            kept = [[token for token in segment if token != end] for segment in segments]
            # as in whisper.transcribe.transcribe: a segment without text does not count
            texts = [(self._tokenizer.decode(tokens), tokens) for tokens in kept]
            texts = [(text, tokens) for text, tokens in texts if text.strip()]
        tokens = tuple(token for _, tokens in texts for token in tokens)
        text = "".join(text for text, _ in texts).strip()
        return Transcript(text, tokens, dict(self._clock.seconds), spoken if named is None else None)

    def synchronize(self) -> None:
        """Wait for CUDA; PyTorch's CPU operations return when they are done."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    @property
    def _max_tokens(self) -> int:
        return self._checkpoint.dimensions["n_text_ctx"] // 2

    def _features(self, audio: np.ndarray) -> Any:
        features = self._extractor(
            audio,
            sampling_rate=SAMPLE_RATE_HZ,
            truncation=False,
            padding=False,
            device=self._device,
            return_tensors="pt",
        ).input_features
        # zeros after the spectrogram, as in openai-whisper; the extractor would add silence to the audio
        missing = max(N_FRAMES - features.shape[-1], 0)
        features = self._torch.nn.functional.pad(features, (0, missing))
        return features.to(self._device, self._model.dtype)

    def _detected(self, features: Any) -> str:
        """Return the language of the first window, by transformers' own detection."""
        found = self._model.detect_language(input_features=features[..., :N_FRAMES])
        code = self._tokenizer.decode([int(found.flatten()[0])])  # such as <|de|>
        return str(code).strip("<|>")

    def _window(self, features: Any, options: dict[str, Any]) -> list[list[int]]:
        scores: list[Any] = []
        states: list[Any] = []

        def keep_states(_module: Any, _inputs: Any, output: Any) -> None:
            states.append(output.last_hidden_state)
            handle.remove()

        def keep_scores(_ids: Any, processed: Any) -> Any:
            scores.append(processed)
            return processed

        handle = self._model.model.decoder.register_forward_hook(keep_states)
        try:
            sequences = self._model.generate(
                features, return_timestamps=False, logits_processor=[keep_scores], **options
            )
        finally:
            handle.remove()
        tokens = sequences[0].tolist()
        return [] if self._is_silent(states[0], scores, tokens) else [tokens]

    def _is_silent(self, states: Any, scores: list[Any], tokens: list[int]) -> bool:
        # whisper.transcribe.transcribe skips a window by the same rule; the prompt's first token starts the
        # transcript
        torch = self._torch
        logits = self._model.proj_out(states[0, 0]).float()
        no_speech = logits.softmax(-1)[self._tokenizer.no_speech].item()
        if no_speech <= self._settings.no_speech_threshold:
            return False
        # decoding is greedy, so the likeliest token was sampled; the last one is the end of the text
        likelihoods = torch.stack([score[0].float().log_softmax(-1).max() for score in scores])
        # the end of the text counts as sampled even if the window was cut before it
        n_text = sum(token != self._tokenizer.eot for token in tokens)
        average_logprob = likelihoods.sum().item() / (n_text + 1)
        return average_logprob <= self._settings.logprob_threshold

    def _long_form(self, features: Any, options: dict[str, Any]) -> list[list[int]]:
        results = self._model.generate(
            features,
            return_timestamps=True,
            return_segments=True,
            temperature=self._settings.temperature,
            condition_on_prev_tokens=False,
            no_speech_threshold=self._settings.no_speech_threshold,
            logprob_threshold=self._settings.logprob_threshold,
            **options,
        )
        segments = [segment["tokens"].tolist() for segment in results["segments"][0]]
        # a window's last complete segment ends with the opening timestamp of the next one, which is dropped
        begin = self._tokenizer.timestamp_begin
        return [tokens[:-1] if min(tokens[-2:]) >= begin else tokens for tokens in segments]


@contextmanager
def _silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        # safe, because the contract says that audio is only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        yield
