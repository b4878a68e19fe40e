"""How the tests run: nothing here is timed."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.s3 import running_s3

# A busy machine is not a failure; and what CI tries is the same every time, while a person's runs go on searching.
settings.register_profile("shardpipe", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("shardpipe")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs where somebody asks for it: by the marker, or by its name."""
    if "soak" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: make soak"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 server; every test makes a bucket of its own there."""
    with running_s3() as endpoint:
        yield endpoint
