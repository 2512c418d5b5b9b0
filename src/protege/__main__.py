"""``python -m protege``."""

from .cli import main

main()
