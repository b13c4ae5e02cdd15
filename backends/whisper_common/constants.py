"""Whisper's constants, derived as in openai-whisper's audio.py, without importing an engine."""

from asrgate.backends.base import SAMPLE_RATE_HZ, WINDOW_SECONDS

N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms
N_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE_HZ  # of one window: 480,000
N_FRAMES = N_SAMPLES // HOP_LENGTH  # of one window: 3,000
N_AUDIO_CTX = N_FRAMES // 2  # positions after the second convolution, whose stride is 2: 1,500
