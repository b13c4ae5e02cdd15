"""How engines are measured, scored, gated and reported; knows no backend by name."""
