"""transformers: `python transformers_ctc.py TRAIN VALID OUT`, or by torchrun; given again after a stop, it goes on."""

import sys
from pathlib import Path

import torch
from ctc import CTC, collate
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from shardpipe import ShardLoader
from shardpipe.integrations.transformers import ShardTrainerMixin


class ShardTrainer(ShardTrainerMixin, Trainer):
    pass


train, valid, out = sys.argv[1:]
torch.manual_seed(1)
arguments = TrainingArguments(
    out,
    num_train_epochs=2,
    gradient_accumulation_steps=4,
    learning_rate=1e-3,
    save_steps=5,
    eval_strategy="epoch",
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
trainer = ShardTrainer(
    CTC(),
    arguments,
    train_loader=ShardLoader(train, batch_seconds=20, seed=1, collate=collate),
    eval_loader=ShardLoader(valid, batch_seconds=20, shuffle=False, repeat=False, collate=collate),
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if Path(out).exists() else None)
trainer.save_model()
