"""The data module under Lightning: the same batches whatever the workers, and after a resume in mid-epoch."""

import contextlib
import gc
import multiprocessing
import pickle

import cv2
import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from datamodules import samplers
from datamodules.augment import BevAugmentation
from datamodules.datamodule import NuScenesDataModule
from datamodules.loader import sample_loader
from datamodules.prepare import PreparedSamples


def module(root, **options):
    settings = {
        "image_size_px": (16, 32),
        "lidar_sweeps": 2,
        "radar_sweeps": 1,
        "batch_size": 2,
        "depth_stride": 8,
        "total_epochs": 3,
        "seed": 3,
        "bev_augmentation": BevAugmentation(),
    }
    return NuScenesDataModule(root, "v1.0-small", "small_train", "small_val", **{**settings, **options})


def fingerprint(batch):
    """What was drawn, and a sum over what was made of it."""
    return batch.tokens, [round(p, 6) for p in batch.progress.tolist()], round(float(batch.lidar.points.sum()), 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_three_epochs_do_not_depend_on_workers(small_set, num_workers):
    loader = module(small_set, num_workers=num_workers).train_dataloader()
    epochs = [[fingerprint(batch) for batch in loader] for _ in range(3)]
    reference = module(small_set).train_dataloader()
    assert epochs == [[fingerprint(batch) for batch in reference] for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert [len(epoch) for epoch in epochs] == [len(loader)] * 3 == [4] * 3


@pytest.mark.parametrize(("num_workers", "consumed"), [(0, 0), (0, 1), (2, 3), (0, 4)])
def test_own_loops_resume_by_position(small_set, num_workers, consumed):
    reference = module(small_set, image_size_px=None).train_dataloader()
    batches = [fingerprint(batch) for _ in range(3) for batch in reference]
    resumed = module(small_set, image_size_px=None, num_workers=num_workers)
    resumed.set_resume_position(1, consumed)
    loader = resumed.train_dataloader()
    rest = [fingerprint(batch) for _ in range(2 if consumed < 4 else 1) for batch in loader]
    assert rest == batches[4 + consumed :]
    assert len(loader) == 4


def test_state_counts_consumed_batches_not_prefetched_ones(small_set):
    data = module(small_set, num_workers=2)
    loader = data.train_dataloader()
    iterator = iter(loader)
    for consumed in range(1, 4):
        next(iterator)
        assert data.state_dict() == {"epoch": 0, "consumed_batches": consumed, "batch_size": 2, "num_batches": 4}
    next(iterator)
    assert data.state_dict()["epoch"] == 1
    assert data.state_dict()["consumed_batches"] == 0


def test_resume_in_mid_epoch_with_another_batch_size_is_refused(small_set):
    state = {"epoch": 1, "consumed_batches": 2, "batch_size": 1, "num_batches": 7}
    data = module(small_set)
    data.load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size 1, num_batches 7 to resume in mid-epoch") as error:
        data.train_dataloader()
    assert "\n" not in str(error.value)
    data.load_state_dict({**state, "consumed_batches": 0})
    assert next(iter(data.train_dataloader())).progress.min() >= 1 / 3


class Toy(LightningModule):
    """One weight that every batch changes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, fingerprint(batch)))
        return (self.weight * batch.progress.mean()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Killed(RuntimeError):
    pass


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Killed


def fit(root, folder, num_workers, callbacks=(), checkpoint=None, **options):
    task = Toy()
    trainer = Trainer(
        **{"max_epochs": 3, "limit_val_batches": 0, **options},
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with contextlib.suppress(Killed):
        trainer.fit(
            task,
            datamodule=module(root, image_size_px=None, num_workers=num_workers),
            ckpt_path=checkpoint,
            weights_only=False,
        )
    return task.seen


@pytest.fixture(scope="module")
def uninterrupted(small_set, tmp_path_factory):
    return fit(small_set, tmp_path_factory.mktemp("whole"), 0, [], enable_checkpointing=False)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader':UserWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("saved_at", "killed_at", "num_workers"), [(1, 2, 0), (4, 5, 0), (6, 7, 2), (8, 8, 0), (11, 11, 0)]
)
def test_a_killed_fit_goes_on_where_its_checkpoint_stands(
    small_set, tmp_path, uninterrupted, saved_at, killed_at, num_workers
):
    """Four batches per epoch: checkpoints in mid-epoch, at the last batch, and after steps that are lost."""
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=saved_at, save_top_k=-1)
    before = fit(small_set, tmp_path, num_workers, [saver, Kill(killed_at)])
    assert before == uninterrupted[:killed_at]
    after = fit(small_set, tmp_path, num_workers, [], checkpoint=tmp_path / f"step={saved_at}.ckpt")
    assert after == uninterrupted[saved_at:]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fit_resumed_at_an_epochs_end_starts_the_next(small_set, tmp_path, uninterrupted):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(small_set, tmp_path, 0, [saver, Kill(9)])
    after = fit(small_set, tmp_path, 0, [], checkpoint=tmp_path / "epoch=1.ckpt")
    assert after == uninterrupted[8:]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fit_bounded_by_steps_resumes_too(small_set, tmp_path, uninterrupted):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    options = {"max_epochs": -1, "max_steps": 10}
    fit(small_set, tmp_path, 0, [saver, Kill(7)], **options)
    after = fit(small_set, tmp_path, 0, [], checkpoint=tmp_path / "step=6.ckpt", **options)
    assert after == uninterrupted[6:10]


def test_workers_start_after_opencv_used_its_threads(small_set):
    """Forked with the pool alive, a worker would wait for threads that it does not have."""
    cv2.setNumThreads(2)
    cv2.resize(np.zeros((900, 1600, 3), np.uint8), (704, 256), interpolation=cv2.INTER_AREA)
    data = module(small_set)
    samples = PreparedSamples(data.frames("small_val"), data.clean_preparation)
    assert len(list(sample_loader(samples, 2, batch_size=2, timeout=60))) == 2
    assert cv2.getNumThreads() == 1


def test_a_fresh_module_pickles(small_set):
    """As strategies that spawn processes need it."""
    data = module(small_set)
    data.frames("small_train")
    assert len(pickle.loads(pickle.dumps(data)).train_dataloader()) == 4


def test_workers_end_with_their_loader(small_set):
    """At once, without waiting for the collector of cycles."""
    data = module(small_set, image_size_px=None, num_workers=1)
    loader = data.train_dataloader()
    workers = {child.pid for child in multiprocessing.active_children()}
    next(iter(loader))
    assert len({child.pid for child in multiprocessing.active_children()} - workers) == 1
    gc.disable()
    try:
        del loader
        assert {child.pid for child in multiprocessing.active_children()} <= workers
    finally:
        gc.enable()


def test_evaluation_is_in_order_and_without_augmentation(small_set):
    data = module(small_set, image_size_px=None, eval_batch_size=3)
    batches = list(data.evaluation_loader("small_train"))
    assert [token for batch in batches for token in batch.tokens] == list(data.frames("small_train").tokens)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    for batch in batches:
        np.testing.assert_array_equal(batch.ego_from_ego_aug, np.tile(np.eye(4), (len(batch), 1, 1)))
        assert batch.progress.isnan().all()
        assert batch.camera is None
    assert [len(batch) for batch in data.evaluation_loader("small_val", batch_size=1)] == [1, 1, 1]


def test_training_has_depth_and_evaluation_has_none(small_set):
    data = module(small_set)
    assert next(iter(data.train_dataloader())).camera.depth_m.shape == (2, 6, 2, 4)
    assert next(iter(data.val_dataloader())).camera.depth_m is None


def test_ranks_see_different_samples(small_set, monkeypatch):
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(samplers, "rank_and_world_size", lambda rank=rank: (rank, 2))
        loader = module(small_set).train_dataloader()
        assert len(loader) == 2
        seen.append([token for batch in loader for token in batch.tokens])
    assert len(seen[0]) == len(seen[1]) == 4
    assert len(set(seen[0]) | set(seen[1])) == 7


def test_balanced_training_draws_with_replacement(small_set):
    loader = module(small_set, balance_classes=True, image_size_px=None).train_dataloader()
    assert sum(len(batch) for batch in loader) == 7


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("eval_batch_size", 0), ("num_workers", -1)])
def test_a_wrong_count_is_refused_before_anything_is_read(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"expected {name} as a whole number"):
        module(tmp_path / "nowhere", **{name: value})
