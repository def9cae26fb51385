"""Pretraining of the cameras in their own pictures: what is where, and how far; no BEV is computed.

A step costs a fraction of one through lift, trunk and head, and needs no depth to begin with. Afterwards
``dynfusion train start_from={camera: RUN}`` takes the encoder over.
"""

import torch
from torch import Tensor

from datamodules.batch import Batch
from fusion.draws import keyed_generator
from fusion.encoders.perspective import center_map_loss
from fusion.routing.plan import FULL, LITE
from fusion.task import FusionTask, output_probs
from sensors.rig import NUM_CAMERAS, UNITS

VIEW_WEIGHTS = {"perspective": 1.0, "depth": 1.0}


class ViewTask(FusionTask):
    """A FusionTask that teaches the view encoder alone. Its stages must be routed ``fixed`` with the cameras as units.

    A step runs the full branch, or with the stage's ``lite_share`` the lite one. Validation scores the whole model, as
    always; before a training with a BEV it finds nothing, so leave it out (``trainer.limit_val_batches=0``).

    Raises:
        ValueError: a model without cameras or whose encoder has no class channels, or a stage of another route or
            that trains something else alone.
    """

    def __init__(self, model, stages, optimizer=None, loss_weights=None, **settings):
        unknown = sorted(set(loss_weights or {}) - set(VIEW_WEIGHTS))
        if unknown:
            raise ValueError(f"expected loss weights among {', '.join(VIEW_WEIGHTS)}, got {', '.join(unknown)}")
        if not getattr(getattr(model.cameras, "encoder", None), "class_channels", False):
            raise ValueError("expected a model whose view encoder has class channels; set class_channels=true")
        for stage in stages:
            if stage.route != "fixed" or list(stage.units) != ["CAMERAS"]:
                raise ValueError(f"expected stages with route fixed and units [CAMERAS], got '{stage.name}' otherwise")
        super().__init__(model, stages, optimizer, **settings)
        self.view_weights = {**VIEW_WEIGHTS, **(loss_weights or {})}
        for stage in self.curriculum.stages:
            if not any(stage.trains(f"cameras.{name}") for name, _ in model.cameras.named_parameters()):
                raise ValueError(
                    f"stage '{stage.name}': expected stages that train the cameras, which alone learn in their "
                    f"pictures, got trainable={list(stage.trainable)}; change it"
                )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        accumulated = self.trainer.accumulate_grad_batches
        step = self.trainer.global_step * accumulated + batch_idx % accumulated
        generator = keyed_generator(self.seed, "stage", step, self.global_rank)
        is_lite = LITE in self.model.cameras.sizes_px and torch.rand((), generator=generator) < self.stage.lite_share
        branch = LITE if is_lite else FULL
        terms = self.view_terms(batch, branch)
        loss = torch.stack([self.view_weights[name] * value for name, value in terms.items()]).sum()
        self.step_values = {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}
        choice = torch.zeros(len(batch), len(UNITS), dtype=torch.int64, device=self.device)
        choice[:, :NUM_CAMERAS] = branch * batch.unit_present[:, :NUM_CAMERAS]
        self.step_routes = [(choice, output_probs(choice))]
        return loss

    def view_terms(self, batch: Batch, branch: int) -> dict[str, Tensor]:
        """Losses of all views that are present: centres by class, and depth.

        Raises:
            ValueError: a batch without pictures or without the targets.
        """
        camera = batch.camera
        if camera is None or camera.center_maps is None or camera.depth_m is None:
            raise ValueError(
                "expected pictures with depth and centre targets, got a batch without; set data.center_maps=true, "
                "data.depth_stride and data.image_size_px"
            )
        cameras = self.model.cameras
        rows = torch.nonzero(batch.unit_present[:, :NUM_CAMERAS].flatten())[:, 0]
        gates = torch.ones(len(rows), device=rows.device)
        features = cameras.rows(branch, camera, rows, gates).features
        return {
            "perspective": center_map_loss(features.context, camera.center_maps.flatten(0, 1)[rows]),
            "depth": cameras.lift.depth_loss(features, camera.depth_m.flatten(0, 1)[rows]),
        }
