"""The running average of the weights against its definition."""

import pytest
import torch

from fusion.ema import WeightAverage, put_weights
from fusion.trainer import build_trainer
from tests.fusion.toy_data import ToyData
from tests.fusion.train_toy import toy_task


class Recorder(WeightAverage):
    """Keeps the weights after every step, and those that validation saw."""

    def __init__(self, decay: float):
        super().__init__(decay)
        self.weights, self.validated, self.after = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *arguments) -> None:
        super().on_train_batch_end(trainer, pl_module, *arguments)
        self.weights.append(pl_module.model.head.shared[0].weight.detach().clone())

    def on_validation_batch_end(self, trainer, pl_module, *arguments) -> None:
        self.validated.append(pl_module.model.head.shared[0].weight.detach().clone())

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.after.append(pl_module.model.head.shared[0].weight.detach().clone())


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_wrong_decay_is_one_line(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(decay)


def test_average_follows_its_definition_and_serves_validation(tmp_path):
    recorder = Recorder(decay=0.4)
    options = {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    trainer = build_trainer(tmp_path, average_decay=None, callbacks=[recorder], **options)
    task = toy_task()
    expected = task.model.head.shared[0].weight.detach().clone()
    trainer.fit(task, datamodule=ToyData(num_batches=3, num_workers=0))
    averages = []
    for n, weight in enumerate(recorder.weights):
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        averages.append(expected)
    assert recorder.num_updates == 6
    torch.testing.assert_close(recorder.average["head.shared.0.weight"], averages[-1])
    torch.testing.assert_close(recorder.validated[0], averages[2])
    torch.testing.assert_close(recorder.validated[-1], averages[5])
    assert torch.equal(recorder.after[0], recorder.weights[2])  # training goes on with the weights
    assert torch.equal(task.model.head.shared[0].weight, recorder.weights[5])


def test_put_weights_keeps_the_precision_of_the_parameters():
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    put_weights(layer, {name: torch.ones_like(value).float() for name, value in layer.named_parameters()})
    assert layer.weight.dtype == torch.bfloat16
    assert (layer.weight == 1).all()
