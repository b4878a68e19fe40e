"""The lists that people have: WeNet's data.list, Kaldi's data directory.

In: a list's path. Out: an `Utterance` for every line, in the list's order, with a key that fits a tar; a ListError with
file and line for every line that is none. Opens no audio. A format is one module; `read` is the one place that
chooses among them.
"""

from shardpipe.lists.keys import MAX_KEY_BYTES, check_key, fix_key
from shardpipe.lists.line import Utterance
from shardpipe.lists.read import read_list

__all__ = ["MAX_KEY_BYTES", "Utterance", "check_key", "fix_key", "read_list"]
