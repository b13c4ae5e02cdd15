"""A backend and a report format for asrgate, as a package of their own."""
