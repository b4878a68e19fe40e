"""Sets by name, and the names of figures."""

from __future__ import annotations

import pytest

from shardpipe.errors import ConfigError
from shardpipe.train.config import TrainConfig
from shardpipe.train.validation import figure_of, sets_of, shown


@pytest.mark.parametrize(
    ("setting", "sets"),
    [
        (None, {}),
        ("packed", {"valid": "packed"}),
        ("a,b", {"valid": "a,b"}),
        ("./lang=en/dev", {"valid": "./lang=en/dev"}),
        ("s3://bucket/lang=en/dev", {"valid": "s3://bucket/lang=en/dev"}),
        ("dev=packed", {"dev": "packed"}),
        ("dev=a,test-2=s3://{b,c}/x=1,noisy.8k=d", {"dev": "a", "test-2": "s3://{b,c}/x=1", "noisy.8k": "d"}),
        ("dev=a, test=b", {"dev": "a", "test": "b"}),
        ({"b": "x", "a": "y"}, {"b": "x", "a": "y"}),
    ],
)
def test_sets(setting: object, sets: dict[str, str]) -> None:
    assert sets_of(setting) == sets
    assert list(sets_of(setting)) == list(sets), "the first one is the first"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("dev=", "no folder or URL"),
        ("", "no folder or URL"),
        ("packed,test=b", "'packed' has no name, and others have"),
        ("dev=a,dev=b", "two sets have the name dev"),
        ("train=a", "train is the name of"),
        ({"a/b": "x"}, "'a/b' is no name"),
        ({1: "x"}, "1 is no name"),
        ({"a": None}, "None, which a is to be"),
        ({"": "x"}, "'' is no name"),
        (["a"], "it names no sets"),
    ],
)
def test_what_names_no_sets(setting: object, says: str) -> None:
    with pytest.raises(ConfigError, match="valid is ") as caught:
        sets_of(setting)
    assert says in str(caught.value)


def test_a_figure_is_the_first_sets_or_the_named_ones() -> None:
    assert figure_of("best_by", "cer", ["dev", "test"]) == "dev/cer"
    assert figure_of("best_by", "test/loss", ["dev", "test"]) == "test/loss"
    assert shown("valid/loss") == shown("valid/loss", ["valid"]) == "loss"
    assert shown("valid/loss", ["dev", "valid"]) == "valid/loss"
    assert shown("dev/loss") == "dev/loss"
    for by, sets, says in (
        ("ser", ["dev"], "it must be one of loss, wer, cer"),
        ("other/cer", ["dev", "test"], "the sets are dev, test. Name one of these, like dev/cer"),
        ("cer", [], "there is no validation set"),
    ):
        with pytest.raises(ConfigError) as caught:
            figure_of("best_by", by, sets)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sub_epoch_samples": 5, "sub_epochs": 2}, "sub_epochs is 2. Give one of the two"),
        ({"sub_epoch_samples": 0}, "at least 1"),
        ({"sub_epochs": 0}, "at least 1"),
        ({"max_sub_epochs": 0}, "at least 1"),
        ({"max_minutes": 0.0}, "a positive number"),
        ({"schedule": "plateau"}, "whether there is a plateau is not known. Give --valid"),
        ({"best_by": "dev/cer"}, "there is no validation set"),
        ({"best_by": "ser"}, "it must be one of loss, wer, cer"),
        ({"cycle": "1steps"}, "long enough to fall in"),
        ({"cycle": "5steps", "cycle_growth": 10**400}, "it must be 100 or less"),
        ({"valid": "v", "best_by": "dev/cer"}, "the sets are valid"),
        ({"cycle": "5steps", "schedule": "constant"}, "constant has none"),
        ({"cycle": "0samples"}, "long enough to fall in"),
        ({"cycle": "10min"}, "it must be like"),
        ({"cycle_growth": 2}, "there are no cycles. Give --cycle"),
        ({"plateau_factor": 1.0}, "between 0 and 1"),
        ({"plateau_patience": 0}, "at least 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(data="d", out="o", **settings)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert caught.value.name in settings
