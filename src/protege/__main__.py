"""``python -m protege``."""

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]  # Python put it there for -m; what lies in a folder is not imported because one works in it

from .commands.app import main

main()
