"""Training of a FusionModel: stages, losses, optimiser, validation. Everything that Lightning needs to know."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.adaptive.depth_terms import DepthTerms, ExitLoss
from fusion.checkpoint import model_weights, require_same_model
from fusion.custom_step import modules_of, named_terms
from fusion.draws import keyed_generator, keyed_randomness
from fusion.heads.decode import DecodeOptions, decode
from fusion.heads.losses import LOSS_WEIGHTS, center_loss
from fusion.heads.targets import center_targets
from fusion.model import FusionOutput
from fusion.optim import OptimizerSettings, learning_rate_factor
from fusion.routed_steps import paired_step, sandwich_step
from fusion.router_lessons import RouterLessons
from fusion.routing.budget import budget_loss, checked_budget, route_entropy
from fusion.routing.objectives import BudgetTerm, mean_over_process_group
from fusion.routing.plan import BRANCHES, NUM_BRANCHES, RoutingPlan
from fusion.stage_effect import require_effect
from fusion.stage_entry import StageEntry, meet_data, require_steps
from fusion.stages import BY_ROUTER, LESSONS, Curriculum, Stage
from fusion.validation import DetectionScores, QuickPrecision
from sensors.rig import UNITS

DEFAULT_WEIGHTS = {**LOSS_WEIGHTS, "depth": 0.5, "budget": 10.0, "entropy": 0.0}
"""Weights of all terms. ``budget`` is large since its hinge is a squared share; ``entropy`` is subtracted."""

ROUTE_TERMS = {**dict.fromkeys(LESSONS, "router"), "sandwich": "distillation"}
"""Route of a stage -> the loss term that only such a stage has, of weight 1 unless the configuration says otherwise."""


class FusionTask(pl.LightningModule):
    """How a model learns.

    All randomness of a step (budgets, random routes, the router's noise, dropout) is keyed by (seed, step, rank): a run
    that was killed and resumed repeats it.

    Args:
        model: what learns: a FusionModel, or any module with its ``forward``, ``router``, ``head.grid``, ``available``,
            ``plan_of``, ``prices`` and ``min_budget``.
        stages: one after the other, over training progress.
        optimizer: learning rates and schedule.
        loss_weights: on the terms of DEFAULT_WEIGHTS; those not named keep their default.
        validation_budget: share of the full cost at which the router is validated, from the model's least budget to 1.
        seed: of all draws of training.
        budget_term: in place of the squared hinge, such as ``fusion.routing.objectives.LagrangianBudget``.
        lessons: how stages with a route of ``fusion.router_lessons`` teach the router; None for its defaults.
        exit_loss: what early exits learn from, for models that have some: ``fusion.trunk.exits_losses``; None for the
            plain sum of their detection losses. It must not count the last exit, which the detection loss teaches.

    Attributes:
        run_config: plain data to keep in the checkpoint as its hyper-parameters, such as the run's configuration.
        stage: the one that training is in.
        step_values: scalars of the last training step by name, detached, on the device.
        num_steps: optimiser steps of the whole training.
        step_routes: choice and branch probabilities of every route that the last training step ran, detached.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage],
        optimizer: OptimizerSettings | None = None,
        loss_weights: Mapping[str, float] | None = None,
        validation_budget: float = 1.0,
        seed: int = 0,
        budget_term: BudgetTerm | None = None,
        exit_loss: ExitLoss | None = None,
        lessons: RouterLessons | None = None,
    ):
        super().__init__()
        self.curriculum = Curriculum(stages)
        # Terms of stages that this training has: the others would be columns of zeros in every table.
        routes = {stage.route for stage in self.curriculum.stages}
        steps = [stage.step for stage in self.curriculum.stages]
        self.route_terms = named_terms(steps, [term for route, term in ROUTE_TERMS.items() if route in routes])
        # Only where a stage asks for it: its memory is part of the checkpoint.
        taught = routes & set(LESSONS) - {"paired"}
        self.lessons = (lessons or RouterLessons()) if taught else None
        self.depth_terms = DepthTerms(model, exit_loss)
        known = {**DEFAULT_WEIGHTS, **dict.fromkeys((*self.route_terms, *self.depth_terms.names), 1.0)}
        unknown = sorted(set(loss_weights or {}) - set(known))
        if unknown:
            raise ValueError(f"expected loss weights among {', '.join(known)}, got {', '.join(unknown)}")
        self.model = model
        self.loss_weights = {**known, **(loss_weights or {})}
        self.curriculum.check(model, tuple(known), model.min_budget)
        for stage in self.curriculum.stages:
            require_effect(stage, model, {name: self.weight_of(name, stage) for name in known})
        self.stage_entry = StageEntry(model, self.curriculum)
        self.custom_steps = nn.ModuleList(modules_of(steps))
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.budget_term = budget_term
        self.step_routes: list[tuple[Tensor, Tensor]] = []
        self.validation_budget = checked_validation_budget(validation_budget, model.min_budget)
        self.seed = seed
        self.stage = self.curriculum.stages[0]
        self.step_values: dict[str, Tensor] = {}
        self.num_steps = 0
        self.precision_at_2m = QuickPrecision()
        self.detection_scores = DetectionScores()
        self.decode_options = DecodeOptions(min_score=0.1, num_candidates=200, max_boxes=200)
        self.run_config: dict = {}

    def configure_optimizers(self):
        """AdamW; the schedule's factor times that of the stage, once per optimiser step.

        Raises:
            ValueError: a training so short that a stage gets no step.
        """
        self.num_steps = int(self.trainer.estimated_stepping_batches)
        if not self.trainer.fast_dev_run:  # which tries the code on a batch, and keeps no weights
            require_steps(self.curriculum, self.num_steps)
        settings = self.optimizer_settings
        schedule = learning_rate_factor(settings.schedule, self.num_steps, settings.warm_up_steps)

        def factor(step: int, group: str) -> float:
            return schedule(step) * self.curriculum.at(step / self.num_steps).rate_factor(group)

        own = [parameter for parameter in self.custom_steps.parameters() if parameter.requires_grad]
        optimizer, scheduler = settings.build(self.model, factor, own)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["hyper_parameters"] = self.run_config

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Before a run is resumed.

        Raises:
            ValueError: the checkpoint belongs to another model.
        """
        require_same_model(model_weights(checkpoint, average=False), self.model, self.trainer.ckpt_path)

    def setup(self, stage: str) -> None:
        """Before the training loader is built: stages and data meet."""
        if stage == "fit":
            meet_data(self.curriculum, self.trainer.datamodule)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Enter the stage that progress has reached.

        Here and not earlier: under DDP every parameter must want a gradient when the model is wrapped.
        """
        self.stage = self.stage_entry.enter(self.trainer.global_step / self.num_steps)
        self.depth_terms.rest({name: self.weight_of(name) for name in self.depth_terms.names})

    def on_train_end(self) -> None:
        """Says which stages a training that was cut off has not come to: nothing else tells of them."""
        step = self.trainer.global_step
        reached = self.curriculum.at(max(step - 1, 0) / max(self.num_steps, 1))
        stages = self.curriculum.stages
        missed = [stage.name for stage in stages[stages.index(reached) + 1 :]]
        if missed:
            rank_zero_warn(
                f"training ended at step {step} of {self.num_steps}, in stage '{reached.name}' and before "
                f"{', '.join(missed)}: what these teach, such as a router, has not been learnt"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        accumulated = self.trainer.accumulate_grad_batches
        step = self.trainer.global_step * accumulated + batch_idx % accumulated
        output, route_terms = self._trained_forward(batch, step)
        terms = self.loss_terms(output, batch)
        terms |= {name: route_terms.get(name, torch.zeros((), device=self.device)) for name in self.route_terms}
        weights = {name: self.weight_of(name) for name in terms}
        added = {name: value for name, value in route_terms.items() if name not in terms}  # by a custom step
        terms, weights = terms | added, weights | dict.fromkeys(added, 1.0)
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        if not loss.requires_grad:
            raise ValueError(
                f"stage {self.stage.name!r}: expected a loss that depends on something that the stage trains, got "
                "none; change its trainable, its route and units, or its losses"
            )
        self.step_values = {"loss": loss.detach(), **_detached(terms), **route_values(output)}
        # The step table has every step; Lightning's own log of thirty values costs a tenth of a small step.
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            logged = {f"train/{name}": value for name, value in self.step_values.items()}
            self.log_dict(logged, batch_size=len(batch))
        return loss

    def weight_of(self, name: str, stage: Stage | None = None) -> float:
        """Of a loss term in a stage; in the present one, if none is named."""
        return self.loss_weights[name] * (stage or self.stage).losses.get(name, 1.0)

    def _trained_forward(self, batch: Batch, step: int) -> tuple[FusionOutput, dict[str, Tensor]]:
        """The output to take the detection loss from, and the further terms of a stage with several routes."""
        generator = keyed_generator(self.seed, "stage", step, self.global_rank)
        stage, plan, budget = self.stage, None, 1.0
        if stage.route == "custom":
            with keyed_randomness(self.device, self.seed, "forward", step, self.global_rank):
                output, terms = stage.step(self, batch, generator)
            self.step_routes = [(output.plan.choice, output.plan.probs.detach())]
            return output, terms
        if stage.route in ROUTE_TERMS:
            return self._several_routes(batch, step, generator)
        if stage.route == "learned":
            budget = stage.budget_of(len(batch), self.model.min_budget, generator).to(self.device)
        else:
            plan = self.plan_of(stage, batch, generator)
        self.model.router.set_noise_key(self.seed, step, self.global_rank)
        with keyed_randomness(self.device, self.seed, "forward", step, self.global_rank):
            output = self.model(batch, budget=budget, plan=plan, execution=stage.execution)
        self.step_routes = [(output.plan.choice, output.plan.probs.detach())]
        return output, {}

    def _several_routes(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[FusionOutput, dict[str, Tensor]]:
        with keyed_randomness(self.device, self.seed, "forward", step, self.global_rank):
            if self.stage.route == "paired":
                budget = self.stage.budget_of(len(batch), self.model.min_budget, generator)
                done = paired_step(self.model, batch, budget, generator, self.loss_weights)
            elif self.stage.route in LESSONS:
                budget = self.stage.budget_of(len(batch), self.model.min_budget, generator)
                given = (self.model, batch, budget, generator, self.loss_weights)
                done = self.lessons(self.stage.route, *given)
            else:
                done = sandwich_step(self.model, batch, generator)
        self.step_routes = [(choice, output_probs(choice)) for choice in done.choices]
        return done.output, done.terms

    def plan_of(self, stage: Stage, batch: Batch, generator: torch.Generator) -> RoutingPlan:
        """The plan of a stage whose route is not learnt."""
        available = self.model.available(batch)
        choice = stage.choice_of(available, generator, self.model.prices().exists())
        return self.model.plan_of(choice.to(available.device), available)

    def loss_terms(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms by name; 0 where a term has nothing to say."""
        if batch.boxes is None:
            raise ValueError("expected labels to train and validate on, got a split without any; choose another")
        targets = center_targets(batch.boxes, len(batch), self.model.head.grid)
        terms = center_loss(output.head, targets)
        none = torch.zeros((), device=self.device)
        terms["depth"] = none if output.depth_loss is None else output.depth_loss
        is_learned = self.training and self.stage.route == "learned"
        terms["budget"] = self._budget_loss(output.plan) if is_learned else none
        terms["entropy"] = -route_entropy(output.plan) if is_learned else none
        return terms | self.depth_terms(output, targets)

    def _budget_loss(self, plan: RoutingPlan) -> Tensor:
        if self.budget_term is None:
            return budget_loss(self._with_usage_of_all_ranks(plan))
        progress = self.trainer.global_step / max(self.num_steps, 1)
        return self.budget_term(plan, progress, mean_over_process_group)

    def _with_usage_of_all_ranks(self, plan: RoutingPlan) -> RoutingPlan:
        """The plan with its costs shifted so that their mean is that of all ranks.

        The hinge is on the mean excess: squared per rank and averaged it would punish ranks that drew costly samples.
        Each rank keeps the gradient of its own costs, which DDP averages.
        """
        if self.trainer.world_size == 1:
            return plan
        excess = (plan.expected_cost - plan.budget).detach().mean()
        everywhere = self.trainer.strategy.reduce(excess.clone(), reduce_op="mean")
        return replace(plan, expected_cost=plan.expected_cost + (everywhere - excess))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        plan = None
        if self.stage.route not in BY_ROUTER:
            route = self.stage if self.stage.route == "fixed" else replace(self.stage, route="full", lite_share=0.0)
            plan = self.plan_of(route, batch, keyed_generator(self.seed, "validation"))
        output = self.model(batch, budget=self.validation_budget, plan=plan, execution="sparse")
        terms = self.loss_terms(output, batch)
        loss = torch.stack([self.loss_weights[name] * value for name, value in terms.items()]).sum()
        shared = {"batch_size": len(batch), "sync_dist": True, "on_epoch": True, "on_step": False}
        self.log("val/loss", loss, **shared)
        self.log("val/gflops", route_values(output)["gflops"], **shared)
        found = decode(output.head, self.model.head.grid, self.decode_options)
        self.precision_at_2m.update(found, batch.boxes)
        self.log("val/ap_2m", self.precision_at_2m, on_epoch=True, on_step=False, batch_size=len(batch))
        self.detection_scores.update(found, batch.boxes, batch.tokens)

    def on_validation_epoch_end(self) -> None:
        """nuScenes' scores of the split; every rank has gathered all of it."""
        scores = {f"val/{name}": value for name, value in self.detection_scores.compute().items()}
        self.log_dict(scores, sync_dist=True)
        self.detection_scores.reset()


def checked_validation_budget(budget: object, min_budget: float) -> float:
    """The budget itself.

    Raises:
        ValueError: no number, or one that the model cannot keep.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise ValueError(f"validation_budget: expected a number in [{min_budget:.4f}, 1], got {budget!r}; change it")
    try:
        checked_budget(budget, 1, min_budget)
    except ValueError as error:
        raise ValueError(f"validation_budget: {error}") from error
    return budget


def route_values(output: FusionOutput) -> dict[str, Tensor]:
    """Mean executed GFLOPs per sample, and the share of samples that chose each branch of each unit."""
    choice = output.plan.choice
    shares = torch.nn.functional.one_hot(choice, NUM_BRANCHES).float().mean(dim=0)
    gflops = output.trace.gflops()
    values = {"gflops": torch.tensor(sum(gflops) / max(len(gflops), 1), device=choice.device)}
    for row, unit in enumerate(UNITS):
        for column in range(1, NUM_BRANCHES):
            values[f"{unit}/{BRANCHES[column]}"] = shares[row, column]
    return values


def output_probs(choice: Tensor) -> Tensor:
    """Branch probabilities of a route that nobody drew: certainty."""
    return torch.nn.functional.one_hot(choice, NUM_BRANCHES).float()


def _detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}
