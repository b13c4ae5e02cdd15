"""A backend and a report format for asrbench, as a package of their own."""
