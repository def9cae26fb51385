"""Replayed routes are the plain path's, in maps and in cost."""

from dataclasses import fields

import pytest
import torch

from fusion.adaptive.allocation import SharedBudget, bounded_route
from fusion.efficiency.replay import EncodedSample, at_rest
from fusion.heads.center import HeadOutput
from fusion.routing.plan import SKIP
from sensors.rig import LIDAR_UNIT
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import small_batch, small_model


def undecided(model):
    """Tokens of which about half take part."""
    with torch.no_grad():
        model.trunk.stages[-1][1].selectors[0].layers[-1].bias.zero_()
    return model


def with_depths(model):
    """The LiDAR, where it runs, gives the cameras depths."""
    model.cameras.depth_from_lidar = True
    return model


MODELS = {
    "plain": small_model,
    "depths from the LiDAR": lambda: with_depths(small_model()),
    "weighted": lambda: small_model(weighted=True),
    "exits and tokens": lambda: undecided(adaptive_model()),
    "exits that run": lambda: adaptive_model(first_group=(), cascade=True, places=(0,)),
}


@pytest.mark.parametrize("lost", [(), ((0, "CAM_FRONT"), (0, "LIDAR_TOP"))])
@pytest.mark.parametrize("kind", MODELS)
def test_every_replayed_route_is_the_plain_one(lost, kind):
    model, batch = MODELS[kind]().eval(), small_batch(1, lost=lost)
    available = model.available(batch)
    generator = torch.Generator().manual_seed(3)
    choice = torch.randint(0, 3, (24, 8), generator=generator)
    choice[:3, :6], choice[3:5, LIDAR_UNIT:] = SKIP, SKIP
    choice = torch.where(available, choice, SKIP)
    encoded = EncodedSample.of(model, batch)
    with torch.no_grad():
        replayed = encoded.run(choice)
        for row in range(len(choice)):
            plain = model(batch, plan=model.plan_of(choice[row : row + 1], available))
            for field in fields(HeadOutput)[:-1]:  # the last says which class is in which group
                torch.testing.assert_close(
                    getattr(replayed.head, field.name)[row : row + 1],
                    getattr(plain.head, field.name),
                    atol=2e-5,
                    rtol=1e-4,
                )
            assert float(replayed.gflops[row]) == pytest.approx(plain.trace.gflops()[0], rel=1e-9)


def test_at_rest_nothing_but_the_route_decides():
    """Also against calibrated settings, which come back afterwards."""
    model, batch = undecided(adaptive_model(thresholds=[0.0, 0.0])), small_batch(1)
    model.trunk.stages[-1][1].set_rate(-1.0, 0.25)
    model.shared_budget = shared = SharedBudget([bounded_route(0.9)], (), "word")
    with pytest.raises(ValueError, match="at_rest"):
        EncodedSample.of(model, batch)
    choice = model.full_plan(batch).choice
    with at_rest(model), torch.no_grad():
        gflops = float(EncodedSample.of(model, batch).run(choice).gflops)
        plain = model(batch, plan=model.plan_of(choice, model.available(batch)))
    assert plain.exits.exit_of.tolist() == [2]
    assert gflops == pytest.approx(plain.trace.gflops()[0], rel=1e-9)
    # No early head has run, and some tokens took no part.
    always = model.prices().always
    heads = [one for one in plain.trace.executions if one.branch == "exits"]
    assert not heads
    assert gflops < model.prices().full_gflops - always["router"] - always["exits"]
    assert model.shared_budget is shared
    assert model.exits.thresholds == (0.0, 0.0)
    assert (model.trunk.stages[-1][1].threshold, model.trunk.stages[-1][1].most) == (-1.0, 0.25)


def test_exits_that_must_run_before_the_cameras_cannot_be_replayed():
    with pytest.raises(ValueError, match="first_group"), at_rest(adaptive_model(cascade=True)) as model:
        EncodedSample.of(model, small_batch(1))


def test_encoders_run_once_however_many_routes():
    model, batch = small_model().eval(), small_batch(1)
    calls = []
    for part in (model.cameras.encoder, *model.lidar.encoders().values(), *model.radar.encoders().values()):
        part.register_forward_hook(lambda *_: calls.append(1))
    encoded = EncodedSample.of(model, batch)
    encoded.run(torch.randint(0, 3, (40, 8), generator=torch.Generator().manual_seed(0)))
    assert len(calls) == 2 + 2 + 2  # the shared image encoder at two sizes, two branches each of LiDAR and radar


def test_only_one_sample_at_a_time():
    with pytest.raises(ValueError, match="one sample"):
        EncodedSample.of(small_model().eval(), small_batch(2))
