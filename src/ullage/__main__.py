"""``python -m ullage``, as ``torchrun -m ullage train ...`` starts it."""

import sys

from ullage.apps.cli.main import main

sys.exit(main())
