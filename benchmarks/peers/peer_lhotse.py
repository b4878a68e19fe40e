"""Lhotse: Shar archives with the audio as it was, its dynamic sampler, its own reading of audio and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import SHUFFLE_BUFFER, Epoch, Job, pad_tensors
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.dataset import DynamicCutSampler, IterableDatasetWrapper
from lhotse.dataset.collation import collate_audio
from torch.utils.data import DataLoader, Dataset

PACKAGE = "lhotse"


def prepare(job: Job) -> None:
    def cuts() -> Any:
        for key, path, text in job.utterances():
            recording = Recording.from_file(path, recording_id=key)
            length = recording.duration
            said = SupervisionSegment(id=key, recording_id=key, start=0, duration=length, text=text)
            yield MonoCut(id=key, start=0, duration=length, channel=0, recording=recording, supervisions=[said])

    CutSet(cuts()).to_shar(job.folder, fields={"recording": "original"}, shard_size=300)


class _Padded(Dataset[Any]):
    def __init__(self, job: Job) -> None:
        self._job = job
        if job.decoder == "soundfile":
            set_current_audio_backend(LibsndfileBackend())

    def __getitem__(self, cuts: CutSet) -> tuple[Any, list[int]]:
        if self._job.decoder == "soundfile":
            audio, lengths = collate_audio(cuts)
            return audio, lengths.tolist()
        return pad_tensors([self._audio(cut) for cut in cuts])

    def _audio(self, cut: Any) -> np.ndarray:
        return self._job.decoded(cut.recording.sources[0].source)


def open_epochs(job: Job) -> Epoch:
    cuts = CutSet.from_shar(
        in_dir=job.folder, shuffle_shards=True, stateful_shuffle=True, seed=0, split_for_dataloading=job.count > 0
    )
    sampler = DynamicCutSampler(cuts, max_cuts=job.batch_size, shuffle=True, shuffle_buffer_size=SHUFFLE_BUFFER, seed=0)
    loader = DataLoader(
        IterableDatasetWrapper(_Padded(job), sampler),
        batch_size=None,
        num_workers=job.count,
        persistent_workers=job.count > 0,
    )
    return lambda: iter(loader)
