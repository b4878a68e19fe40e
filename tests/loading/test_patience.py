"""How long a loader waits for servers when none is there."""

from __future__ import annotations

import socket

import pytest

from shardpipe.errors import StoreError
from shardpipe.loading.served.access import Access
from shardpipe.loading.served.addresses import servers_of
from shardpipe.loading.served.asking import Client
from shardpipe.loading.served.exchange import Question
from shardpipe.loading.served.replicas import Replicas
from shardpipe.loading.served.watch import Watch
from shardpipe.store import Retry


def test_every_question_waits_for_a_server_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait drawn at random would be a short one for one of the many batches that are asked for at once."""
    waits = []
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        replicas = Replicas(servers_of(f"shardpipe+http://127.0.0.1:{nobody.getsockname()[1]}/speech"))
        access = Access(None, None)
        retry = Retry(attempts=5, first_wait=1, longest_wait=3)
        client = Client(replicas, access, Watch(replicas, access, lambda _: None), retry)
        question = Question(method="GET", path="/about", key="", take=lambda head, body: None)
        with client.using():
            client.wait_for_all()
            monkeypatch.setattr(client, "_wait_for_one", lambda seconds, *, new=False: waits.append((seconds, new)))
            with pytest.raises(StoreError, match="no server makes batches.*after 5 attempts"):
                client.answer(question)
    assert [seconds for seconds, new in waits if not new] == [1, 2, 3, 3]
