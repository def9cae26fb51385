"""Pretraining of the cameras in the picture: what it teaches, what it leaves alone, what it refuses."""

from dataclasses import replace

import pytest
import torch

from fusion.encoders.lift import Lift
from fusion.encoders.perspective import center_map_loss
from fusion.encoders.views import ViewEncoder
from fusion.routing.plan import FULL, LITE
from fusion.stages import Stage
from fusion.units import ViewBranches
from fusion.view_task import ViewTask
from tests.fusion.small_model import BEV, IMAGE_SIZE_PX, small_batch, small_model

VIEWS = Stage("views", 1.0, route="fixed", units=("CAMERAS",), trainable=("cameras",))


def taught_model():
    model = small_model()
    torch.manual_seed(0)
    options = {"channels": [8, 8, 16, 16]}
    encoder = ViewEncoder("resnet18", 12, 10, neck_channels=8, backbone_options=options, class_channels=True)
    model.cameras = ViewBranches(encoder, Lift(BEV, 12, (1.0, 61.0), 10), IMAGE_SIZE_PX)
    return model


def batch_with_centres(lost=()):
    batch = small_batch(2, lost=lost)
    maps = torch.zeros(2, 6, 10, *batch.camera.depth_m.shape[2:])
    for view in range(6):
        maps[0, view, view, 1, view], maps[1, view, 9 - view, 2, 3] = 1.0, 1.0
    return replace(batch, camera=replace(batch.camera, center_maps=maps))


@pytest.mark.parametrize("branch", [FULL, LITE])
def test_both_losses_fall_and_only_the_encoder_learns(branch):
    task, batch = ViewTask(taught_model(), [VIEWS]), batch_with_centres()
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    first = {name: value.item() for name, value in task.view_terms(batch, branch).items()}
    for _ in range(15):
        optimizer.zero_grad()
        sum(task.view_terms(batch, branch).values()).backward()
        optimizer.step()
    for name, value in task.view_terms(batch, branch).items():
        assert value.item() < 0.8 * first[name], name
    learnt = {name for name, parameter in task.model.named_parameters() if parameter.grad is not None}
    assert learnt
    assert all(name.startswith("cameras.encoder.") for name in learnt)


def test_terms_are_those_of_the_encoder_on_the_views_that_are_there():
    lost = ((0, "CAM_FRONT"), (1, "CAM_BACK"))
    task, batch = ViewTask(taught_model(), [VIEWS]), batch_with_centres(lost)
    present = batch.camera.present
    assert int(present.sum()) == 10
    features = task.model.cameras.encoder(batch.camera.images[present])
    terms = task.view_terms(batch, FULL)
    torch.testing.assert_close(
        terms["perspective"], center_map_loss(features.context, batch.camera.center_maps[present])
    )
    torch.testing.assert_close(
        terms["depth"], task.model.cameras.lift.depth_loss(features, batch.camera.depth_m[present])
    )


def test_what_cannot_be_taught_is_refused_in_one_line():
    with pytest.raises(ValueError, match="class_channels=true"):
        ViewTask(small_model(), [VIEWS])
    with pytest.raises(ValueError, match="route fixed and units"):
        ViewTask(taught_model(), [replace(VIEWS, units=("LIDAR",))])
    with pytest.raises(
        ValueError, match=r"stage 'views': expected stages that train the cameras.*got trainable=\['head'\]"
    ):
        ViewTask(taught_model(), [replace(VIEWS, trainable=("head",))])
    with pytest.raises(ValueError, match="loss weights among perspective, depth, got heatmap"):
        ViewTask(taught_model(), [VIEWS], loss_weights={"heatmap": 1.0})
    with pytest.raises(ValueError, match="center_maps=true"):
        ViewTask(taught_model(), [VIEWS]).view_terms(small_batch(1), FULL)
