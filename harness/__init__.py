"""How engines are measured, scored, gated and reported; knows no backend by name."""

from asrgate import old_names

old_names.replace(__name__)
