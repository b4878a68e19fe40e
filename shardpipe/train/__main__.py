"""`python -m shardpipe.train`, as torchrun starts it."""

import sys

from shardpipe.train.cli import main

sys.exit(main())
