"""`python -m automl` is the `trimtab` command."""

import sys

from automl.cli import main

sys.exit(main())
