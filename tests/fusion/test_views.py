"""The view encoder: shapes, independence of rows, FLOPs, errors."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusion.encoders.views import ViewEncoder
from fusion.ops.pretrained import without_fetching

NARROW = {"channels": [16, 24, 32, 48]}


@pytest.fixture(scope="module")
def encoder() -> ViewEncoder:
    torch.manual_seed(0)
    return ViewEncoder("resnet18", channels=10, num_depths=7, stride=8, neck_channels=16, backbone_options=NARROW)


@pytest.mark.parametrize(
    ("backbone", "stride", "size"),
    [("resnet10t", 8, (64, 176)), ("resnet10t", 16, (32, 80)), ("mobilenetv4_conv_small", 8, (40, 72))],
)
def test_shapes_at_any_multiple_of_the_stride(backbone, stride, size):
    encoder = ViewEncoder(backbone, channels=10, num_depths=7, stride=stride)
    features = encoder(torch.rand(2, 3, *size))
    feature_size = (size[0] // stride, size[1] // stride)
    assert features.context.shape == (2, 10, *feature_size)
    assert features.depth_logits.shape == (2, 7, *feature_size)


def test_half_size_images_pass_the_same_encoder(encoder):
    assert encoder(torch.rand(1, 3, 32, 88)).context.shape[2:] == (4, 11)


def test_no_rows_run_nothing(encoder):
    calls = []
    handle = encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    features = encoder(torch.rand(0, 3, 64, 176))
    handle.remove()
    assert not calls
    assert features.context.shape == (0, 10, 8, 22)
    assert features.depth_logits.shape == (0, 7, 8, 22)


def test_a_row_does_not_depend_on_the_others(encoder):
    images = torch.rand(4, 3, 32, 48)
    encoder.train()
    together = encoder(images)
    order = torch.tensor([2, 0, 3])
    chosen = encoder(images[order])
    torch.testing.assert_close(chosen.context, together.context[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chosen.depth_logits, together.depth_logits[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv4_conv_small"])
def test_no_batch_statistics(backbone):
    encoder = ViewEncoder(backbone, channels=4, num_depths=3)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    assert not any("running" in name for name in encoder.state_dict())


def test_pretrained_norms_are_frozen(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *names, **options: create(*names, **{**options, "pretrained": False})
    )
    encoder = ViewEncoder("resnet10t", channels=4, num_depths=3, pretrained=True).train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items() if "running" in name}
    encoder(torch.rand(2, 3, 32, 48)).context.sum().backward()
    assert before
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    assert all(encoder.backbone.state_dict()[name].equal(value) for name, value in before.items())


def test_where_a_checkpoint_follows_nothing_is_fetched_and_the_norms_are_frozen_all_the_same(monkeypatch):
    asked, create = [], timm.create_model

    def spy(*names, **options):
        asked.append(options.pop("pretrained", False))
        return create(*names, **options)

    monkeypatch.setattr(timm, "create_model", spy)
    fetched = ViewEncoder("resnet10t", channels=4, num_depths=3, pretrained=True)
    assert any(asked)
    asked.clear()
    with without_fetching():
        built = ViewEncoder("resnet10t", channels=4, num_depths=3, pretrained=True)
    assert not any(asked)
    assert built.state_dict().keys() == fetched.state_dict().keys()


def test_flops_agree_with_pytorch(encoder):
    with FlopCounterMode(display=False) as counter:
        encoder(torch.rand(1, 3, 64, 176))
    assert encoder.gflops((64, 176)) * 1e9 == counter.get_total_flops()
    assert encoder.gflops((32, 88)) < 0.3 * encoder.gflops((64, 176))


def test_images_are_normalised_as_imagenet_was(encoder):
    seen = []
    handle = encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.tensor([0.485, 0.456 + 0.224, 0.406]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    handle.remove()
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-5)


def test_every_parameter_learns(encoder):
    encoder.zero_grad()
    features = encoder(torch.rand(1, 3, 64, 96))
    (features.context.square().sum() + features.depth_logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_autocast_and_inference_mode(encoder):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = encoder(torch.rand(1, 3, 32, 48))
    assert features.context.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet18", "stride": 6}, "stride among"),
        ({"backbone": "no_such_net"}, "timm model"),
        ({"backbone": "resnet18", "backbone_options": {"no_such_option": 1}}, "timm model"),
    ],
)
def test_user_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViewEncoder(channels=4, num_depths=3, **arguments)


def test_odd_image_sides(encoder):
    with pytest.raises(ValueError, match="multiples of 8, got 60x176"):
        encoder(torch.rand(1, 3, 60, 176))
