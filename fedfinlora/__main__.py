"""`python -m fedfinlora`."""

import sys

from fedfinlora.cli import main

sys.exit(main())
