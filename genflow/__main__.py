"""``python -m genflow``."""

import sys

from genflow.cli.main import main

sys.exit(main())
