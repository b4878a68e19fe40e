"""The loader in the training loops of others, with the promises that it keeps in ours.

In: a ShardLoader, or what one is made of, and another framework's trainer. Out: batches, in the way that framework's
users expect them, and the place in the run within its checkpoints. Each module needs its library, so that none is
imported here:

    lightning       ShardData, a LightningDataModule; lightning_progress: Lightning's own count, brought to its place
    transformers    ShardTrainerMixin, to put before Trainer; transformers_evaluation: how it evaluates
    accelerate      prepare(accelerator, loader)
    course          what the three share: which of the fetched batches are in the weights
"""

__all__: list[str] = []
