"""`python -m fedfinlora`."""

import sys

# `python -m` puts the working directory first: a json.py, random.py or torch.py there would be imported in the
# library's place.
if not sys.flags.safe_path:
    del sys.path[0]

from fedfinlora.cli import main

sys.exit(main())
