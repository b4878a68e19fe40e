"""The plain loader where an integration belongs: right, or one error that names it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.runs import ROOT
from tests.speech import pack_speech

START = """
import sys
import torch
from shardpipe import ShardLoader
from shardpipe.errors import ConfigError

data = sys.argv[1]
options = {"batch_size": 4, "window": 8, "lanes": 2}
loader = ShardLoader(data, **options)


def refused(function, *errors):
    try:
        function()
    except (errors or (ConfigError,)) as error:
        print("refused:", error)
    else:
        raise AssertionError("it was not refused")
"""
LIGHTNING = """
import lightning
from shardpipe.integrations.lightning import ShardData

seen = []


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch.audio[:, :1]).mean()

    def validation_step(self, batch, batch_idx):
        seen.extend(batch.keys)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ByIterator(Model):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


def trainer(**more):
    return lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                             default_root_dir=sys.argv[2], **{"enable_checkpointing": False, **more})


refused(lambda: trainer().fit(Model(), loader))
refused(lambda: trainer().fit(Model(), ShardData(data, **options), val_dataloaders=loader), Exception)
refused(lambda: trainer().validate(Model(), loader))
refused(lambda: trainer(overfit_batches=2).fit(Model(), ShardData(data, **options)))
refused(lambda: trainer().fit(ByIterator(), ShardData(data, **options)))
refused(lambda: ShardData(data, rank=0, world_size=2, **options))
refused(lambda: ShardData(data, repeat=False, **options))
refused(lambda: ShardData(data, **options).train_dataloader())
refused(lambda: trainer().fit(Model(), ShardData(data, batches_per_step=4, **options)))
trainer(num_sanity_val_steps=0).validate(Model(), ShardLoader(data, repeat=False, batch_size=4), verbose=False)
assert len(seen) == len(set(seen)) == 20
first = trainer(enable_checkpointing=True)
first.fit(Model(), ShardData(data, **options))
saved = torch.load(first.checkpoint_callback.best_model_path, weights_only=True)
del saved["ShardData"]
torch.save(saved, sys.argv[2] + "/without.ckpt")
refused(lambda: trainer().fit(Model(), ShardData(data, **options), ckpt_path=sys.argv[2] + "/without.ckpt"))
"""
LIGHTNING_SAYS = [
    "Train by shardpipe.integrations.lightning.ShardData(data, ...)",
    "",
    "make the loader with repeat=False",
    "overfit_batches is 2",
    "it fetches ahead",
    "rank is 0, but the trainer says it",
    "repeat is False",
    "give ShardData itself to the trainer",
    "the framework says how many batches a step accumulates",
    "ShardData has saved no place there",
]
TRANSFORMERS = """
from transformers import Trainer, TrainingArguments
from shardpipe.integrations.transformers import ShardTrainerMixin


class Sharded(ShardTrainerMixin, Trainer):
    pass


class Plain(Trainer):
    def get_train_dataloader(self):
        return loader


class Model(torch.nn.Linear):
    def forward(self, audio, **_):
        return {"loss": super().forward(audio[:, :1]).mean()}


def arguments(**more):
    return TrainingArguments(sys.argv[2], max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, **more)


plain = arguments(remove_unused_columns=False)
whole = ShardLoader(data, repeat=False, batch_size=4)
refused(lambda: Trainer(Model(1, 1), plain, train_dataset=loader).train(), TypeError)
refused(lambda: Plain(Model(1, 1), plain).train())
refused(lambda: Sharded(Model(1, 1), plain, train_dataset=[1]))
refused(lambda: Sharded(Model(1, 1), arguments(auto_find_batch_size=True), train_loader=loader))
refused(lambda: Sharded(Model(1, 1), plain, eval_loader=loader))
refused(lambda: Sharded(Model(1, 1), plain, train_loader=whole))
refused(lambda: Sharded(Model(1, 1), plain).train())
Sharded(Model(1, 1), plain, train_loader=ShardLoader(data, **options)).train()
open(sys.argv[2] + "/trainer_state.json", "w").write("{}")
trainer = Sharded(Model(1, 1), plain, train_loader=ShardLoader(data, **options))
refused(lambda: trainer._inner_training_loop(resume_from_checkpoint=sys.argv[2]))
stepping = ShardLoader(data, batches_per_step=4, **options)
refused(lambda: Sharded(Model(1, 1), plain, train_loader=stepping).train())
"""
TRANSFORMERS_SAYS = [
    "see shardpipe.integrations",
    "Train by shardpipe.integrations.transformers.ShardTrainerMixin",
    "batches come from train_loader",
    "auto_find_batch_size",
    "make eval_loader with repeat=False",
    "training goes on where it was",
    "it must be given to train",
    "hold the place of its data",
    "the framework says how many batches a step accumulates",
]
ACCELERATE = """
import warnings
from accelerate import Accelerator, DataLoaderConfiguration
from shardpipe.integrations.accelerate import prepare

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
model, optimizer = accelerator.prepare(torch.nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)], lr=1.0))


def accumulate(batches):
    for _ in batches:
        with accelerator.accumulate(model):
            pass


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    refused(lambda: accumulate(accelerator.prepare(loader)))
print("refused:", *(warning.message for warning in told))
refused(lambda: accelerator.skip_first_batches(loader, 2), AttributeError)
refused(lambda: accelerator.prepare_data_loader(loader), AttributeError)
refused(lambda: accumulate(prepare(accelerator, ShardLoader(data, **options))))
refused(lambda: prepare(accelerator, ShardLoader(data, **options)))
refused(lambda: prepare(accelerator, data))
refused(lambda: prepare(accelerator, ShardLoader(data, batches_per_step=4, **options)))
refused(lambda: prepare(accelerator, ShardLoader(data, repeat=False, batch_size=4)).state_dict())
other = Accelerator(cpu=True, gradient_accumulation_steps=3)
first, second = (torch.optim.SGD([torch.zeros(1)], lr=1.0) for _ in range(2))
mine, yours = (prepare(other, ShardLoader(data, **options), optimizer) for optimizer in (first, second))
for number, _ in enumerate(zip(mine, yours), 1):
    first.step()
    if number == 3:
        break
assert mine.state_dict()["loader"]["consumed_samples"] == 12, "by its own optimizer's steps"
assert yours.state_dict()["loader"]["consumed_samples"] == 0
saved = mine.state_dict()
refused(lambda: [next(iter(mine)) for _ in mine], RuntimeError)
refused(lambda: [mine.load_state_dict(saved) for _ in mine], RuntimeError)
splitting = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
refused(lambda: prepare(splitting, loader))
"""
ACCELERATE_SAYS = [
    "nothing tells it where an epoch of this loader ends",
    "its save_state will not hold the place of this loader",
    "it goes on by itself where its state was taken",
    "shardpipe.integrations.accelerate.prepare(accelerator, loader)",
    "no torch optimizer took a step in a whole pass",
    "several loaders are trained on",
    "it must be a ShardLoader",
    "the framework says how many batches a step accumulates",
    "every pass begins anew, and has no state",
    "another `for` over this loader has begun",
    "or a state was loaded",
    "split_batches is True",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("misuse"), 20, seconds=(0.05, 0.1))


@pytest.mark.parametrize(
    ("script", "expected"),
    [(LIGHTNING, LIGHTNING_SAYS), (TRANSFORMERS, TRANSFORMERS_SAYS), (ACCELERATE, ACCELERATE_SAYS)],
    ids=["lightning", "transformers", "accelerate"],
)
def test_one_clear_error(data: Path, tmp_path: Path, script: str, expected: list[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", START + script, str(data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    for line, part in zip(said, expected, strict=True):
        assert part in line


ALONE = {
    "lightning": "trainer().fit(Model(), ShardData(data, **options))",
    "transformers": "Sharded(Model(1, 1), TrainingArguments(sys.argv[2], report_to='none'), train_loader=loader)",
    "accelerate": "prepare(Accelerator(), loader)",
}

TRIED = """
try:
    {}
except ConfigError as error:
    print(error)
else:
    assert torch.distributed.get_world_size() == 2
    print("they know of each other")  # by some versions
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="frameworks find their GPUs")
@pytest.mark.parametrize("name", ALONE)
def test_processes_that_do_not_know_of_each_other(data: Path, tmp_path: Path, name: str) -> None:
    """As torchrun's without a GPU, unless the framework is told that there is none."""
    script = {"lightning": LIGHTNING, "transformers": TRANSFORMERS, "accelerate": ACCELERATE}[name]
    defined = script[: re.search(r"^(refused|plain|accelerator)\b", script, re.MULTILINE).start()]  # type: ignore[union-attr]
    (tmp_path / "script.py").write_text(START + defined + TRIED.format(ALONE[name]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "script.py"), str(data), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    refused = done.stdout.count("2 processes were launched, and each would train on all data by itself")
    assert refused + done.stdout.count("they know of each other") == 2


@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_a_missing_library_is_one_line_that_says_what_to_install(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None\nimport shardpipe.integrations.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode != 0
    assert f"pip install 'shardpipe[{name}]'" in done.stderr.splitlines()[-1]
