"""Lists of utterances: WeNet's data.list, Kaldi's data directory; and what a key may be."""

from shardpipe.lists.keys import MAX_KEY_BYTES, check_key, fix_key
from shardpipe.lists.line import Utterance
from shardpipe.lists.read import read_list

__all__ = ["MAX_KEY_BYTES", "Utterance", "check_key", "fix_key", "read_list"]
