"""Whisper's constants, derived as in openai-whisper's audio.py, without importing an engine."""

from asrgate.backends.base import MULTILINGUAL_VOCAB, SAMPLE_RATE_HZ, WINDOW_SECONDS

N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples per frame of the spectrogram: 10 ms
N_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE_HZ  # samples per window: 480,000
N_FRAMES = N_SAMPLES // HOP_LENGTH  # frames per window: 3,000
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_LENGTH  # 100
CONV_STRIDE = 2  # of the encoder's second convolution: frames per position
N_AUDIO_CTX = N_FRAMES // CONV_STRIDE  # positions per window: 1,500
N_SAMPLES_PER_TOKEN = HOP_LENGTH * CONV_STRIDE  # 320: a position lasts 20 ms
LARGE_V3_VOCAB = MULTILINGUAL_VOCAB + 1  # tokens: large-v3 and its successors know one more language

_TOKENS_OF_NO_LANGUAGE = 51_765  # tokens of an English-only vocabulary that stand for no language


def num_languages(n_vocab: int) -> int:
    """Return how many languages a vocabulary has tokens for, as whisper.model.Whisper.num_languages does."""
    return n_vocab - _TOKENS_OF_NO_LANGUAGE - (n_vocab >= MULTILINGUAL_VOCAB)
