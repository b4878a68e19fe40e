"""How the tests run: nothing here is timed."""

import os

from hypothesis import settings

# A busy machine is not a failure; and what CI tries is the same every time, while a person's runs go on searching.
settings.register_profile("shardpipe", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("shardpipe")
