"""`python -m wordsight`, and what launchers start: `accelerate launch -m wordsight fit ...`."""

import sys

from wordsight.cli import main

sys.exit(main())
