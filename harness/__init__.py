"""Measures, scores, gates and reports engines; refers to no backend by name."""

from asrgate import old_names

old_names.replace(__name__)
