"""ViTs with fewer tokens as camera backbones, and points that choose tokens or are dropped."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import PointBatch
from fusion.encoders.contract import ImageEncoder
from fusion.encoders.guide import point_scores
from fusion.encoders.point_drop import drop_regions
from fusion.encoders.vit import VitViewEncoder
from fusion.encoders.vit_learned import AVit, DynamicVit
from fusion.encoders.vit_tokens import Dense, EVit, GuidedKeep, TokenMethod, ToMe, merge_alike
from fusion.ops.projection import PosedViews
from sensors.grid import BevGrid

SIZE, DIM = (32, 64), 32
OPTIONS = {"depth": 4, "embed_dim": DIM, "num_heads": 4, "patch_size": 8}


def encoder(method=None, **options) -> VitViewEncoder:
    torch.manual_seed(0)
    options = {"backbone_options": OPTIONS, "image_size_px": SIZE, "neck_channels": 16, **options}
    return VitViewEncoder("vit_tiny_patch16_224", 6, 5, method=method, **options).eval()


IMAGES = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
PLAIN = encoder()
NUM_PATCHES = 32


def with_method(method) -> VitViewEncoder:
    """The same weights in ViT and neck."""
    made = encoder(method).eval()
    made.load_state_dict(PLAIN.state_dict(), strict=False)
    return made


@torch.no_grad()
def test_dense_is_timm_and_fits_the_contract():
    assert isinstance(PLAIN, ImageEncoder)
    features = PLAIN(IMAGES)
    assert features.context.shape == (3, 6, 4, 8)
    assert features.depth_logits.shape == (3, 5, 4, 8)
    expected = PLAIN.vit.forward_features((IMAGES - PLAIN.mean) / PLAIN.std)[:, 1:]
    tokens = PLAIN.tokens((IMAGES - PLAIN.mean) / PLAIN.std)
    found = PLAIN.vit.norm(Dense()(PLAIN.vit.blocks, tokens, 1))
    torch.testing.assert_close(found, expected)
    assert PLAIN(IMAGES[:, :, :16, :32]).context.shape == (3, 6, 2, 4)  # the lite branch's smaller picture
    assert PLAIN(IMAGES[:0]).context.shape == (0, 6, 4, 8)


@pytest.mark.parametrize(
    "method",
    [EVit((1, 2), 1), ToMe(merged=0), DynamicVit(DIM, (1, 2), 1), AVit(never=True), GuidedKeep(keep=1)],
    ids=lambda method: type(method).__name__,
)
@torch.no_grad()
def test_keep_one_is_dense(method):
    assert isinstance(method, TokenMethod)
    found, dense = with_method(method)(IMAGES), PLAIN(IMAGES)
    assert torch.equal(found.context, dense.context)
    assert method.gflops(DIM, 4, 1, 32, 4.0) == pytest.approx(Dense().gflops(DIM, 4, 1, 32, 4.0))


def methods():
    torch.manual_seed(0)
    guided = GuidedKeep(0.5)
    guided.scores = torch.rand(3, NUM_PATCHES)
    halting = AVit(gamma=2.0, beta=-0.5)
    return [EVit((1, 2), 0.5), ToMe(6), DynamicVit(DIM, (1, 2), 0.5), halting, guided]


@pytest.mark.parametrize("method", methods(), ids=lambda method: type(method).__name__)
@torch.no_grad()
def test_fewer_tokens_enter_the_blocks_and_every_patch_gets_a_feature(method):
    made = with_method(method)
    entered = []
    mlps = [
        block.mlp.register_forward_pre_hook(lambda _, x: entered.append(x[0].numel() // DIM))
        for block in made.vit.blocks
    ]
    features = made(IMAGES)
    for hook in mlps:
        hook.remove()
    assert entered[-1] < 3 * (NUM_PATCHES + 1)
    assert entered == sorted(entered, reverse=True)
    assert features.context.isfinite().all()
    assert not torch.allclose(features.context, PLAIN(IMAGES).context)
    # A picture alone has the features it has in company.
    if isinstance(method, GuidedKeep):
        method.scores = method.scores[1:2]
    alone = made(IMAGES[1:2])
    torch.testing.assert_close(alone.context, features.context[1:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [EVit((1, 2), 0.5), DynamicVit(DIM, (1, 2), 0.5)], ids=["EVit", "DynamicVit"])
@torch.no_grad()
def test_flops_agree_with_pytorch(method):
    made = with_method(method)
    with FlopCounterMode(display=False) as counter:
        made(IMAGES[:1])
    # EViT looks at the class token's attention once more: a query per head, below a percent.
    assert made.gflops(SIZE) * 1e9 == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert made.gflops(SIZE) < PLAIN.gflops(SIZE)


@torch.no_grad()
def test_evit_keeps_what_the_class_token_looks_at():
    """Dropped patches keep the feature they had; the fused token is their mean by attention."""
    made = with_method(EVit((1,), 0.5))
    tokens = made.tokens((IMAGES - made.mean) / made.std)
    first = made.vit.blocks[0](tokens)
    found = made.method(made.vit.blocks[:2], tokens, 1)
    block = made.vit.blocks[1]
    qkv = block.attn.qkv(block.norm1(first)).view(3, 33, 3, 4, 8)
    look = (qkv[:, 0, 0, :, None] * qkv[:, :, 1].transpose(1, 2)).sum(-1) * 8**-0.5
    share = look.softmax(dim=-1).mean(dim=1)[:, 1:]
    attended = first + block.attn(block.norm1(first))
    worst = share.argsort(dim=1)[:, :16]
    gone = attended[:, 1:].gather(1, worst[..., None].expand(-1, -1, DIM))
    torch.testing.assert_close(found.gather(1, worst[..., None].expand(-1, -1, DIM)), gone, rtol=1e-3, atol=1e-4)
    best = share.argmax(dim=1)
    kept = attended[torch.arange(3), best + 1]
    expected = kept + block.mlp(block.norm2(kept))
    torch.testing.assert_close(found[torch.arange(3), best], expected, rtol=1e-3, atol=1e-4)


def test_a_stride_is_the_side_of_a_patch():
    """The data's configuration reads it from the model's."""
    assert encoder(stride=8).stride == 8
    with pytest.raises(ValueError, match="expected a stride of 8, the side of a patch of vit_tiny_patch16_224, got 16"):
        encoder(stride=16)


def test_evit_wants_a_class_token():
    without = {**OPTIONS, "class_token": False, "global_pool": "avg"}
    for options in (without, {**without, "reg_tokens": 2}):  # registers are prefix tokens, too
        with pytest.raises(ValueError, match="expected a ViT with a class token for EVit, got one without; use"):
            encoder(EVit((1,), 0.5), backbone_options=options)
    made = encoder(backbone_options=without)
    made.method = EVit((1,), 0.5)  # past the encoder's check
    with pytest.raises(ValueError, match="class token"):
        made(IMAGES)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (EVit((1, 20), 0.5), "at of EVit among the blocks of the ViT, 0 to 3, each once, got [1, 20]; change it"),
        (EVit((), 0.5), "at of EVit among the blocks of the ViT, 0 to 3, each once, got []; change it"),
        (EVit((-1,), 1), "at of EVit among the blocks of the ViT, 0 to 3, each once, got [-1]; change it"),
        (DynamicVit(DIM), "at of DynamicVit among the blocks of the ViT, 0 to 3, each once, got [3, 6, 9]; change it"),
        (
            DynamicVit(DIM, (1, 1)),
            "at of DynamicVit among the blocks of the ViT, 0 to 3, each once, got [1, 1]; change it",
        ),
        (DynamicVit(DIM - 1, (1,)), "dim of DynamicVit to be 32, the width of the ViT, got 31; change it"),
        (
            ToMe([1] * 5),
            "merged of ToMe for at most the 4 blocks of the ViT, got 5 numbers, [1, 1, 1, 1, 1]; leave some out",
        ),
        (AVit(target_depth=5), "target_depth of AVit from 1 to 4, the blocks of the ViT, got 5; lower it"),
    ],
)
def test_a_method_that_does_not_fit_the_vit(method, message):
    with pytest.raises(ValueError) as error:
        encoder(method)
    assert str(error.value) == f"expected {message}"


def test_a_method_that_just_fits_the_vit():
    for method in (EVit((0, 3), 0.5), DynamicVit(DIM, (3, 0)), ToMe([1] * 4), AVit(target_depth=4)):
        encoder(method)


def test_merging_by_hand():
    """Four patches on a line of likeness: patch 2 is most like patch 3 and goes into it; sizes weigh the mean."""
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.5, 0.9]]])
    patches = torch.tensor([[[1.0], [2.0], [3.0], [6.0]]])
    size = torch.tensor([[1.0, 1.0, 2.0, 1.0]])
    merged, new_size, moved = merge_alike(patches, keys, size, 1)
    assert merged.flatten().tolist() == [1.0, 2.0, pytest.approx((3 * 2 + 6 * 1) / 3)]
    assert new_size.tolist() == [[1.0, 1.0, 3.0]]
    assert moved.tolist() == [[0, 1, 2, 2]]


def test_merging_keeps_the_sum_and_says_where_each_went():
    torch.manual_seed(0)
    patches, size = torch.randn(2, 11, 5), torch.rand(2, 11) + 1
    merged, new_size, moved = merge_alike(patches, torch.randn(2, 11, 4), size, 3)
    assert merged.shape == (2, 8, 5)
    torch.testing.assert_close((merged * new_size[..., None]).sum(1), (patches * size[..., None]).sum(1))
    for row in range(2):
        for token in range(8):
            own = moved[row] == token
            mean = (patches[row, own] * size[row, own, None]).sum(0) / size[row, own].sum()
            torch.testing.assert_close(merged[row, token], mean)


@torch.no_grad()
def test_tome_of_equal_patches_changes_nothing_but_the_count():
    """Four pairs merged by the first block, then attention weighted by size: what the eight would have been."""
    made = with_method(ToMe([4]))
    half = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(3))
    tokens = torch.cat([half[:, :1], half[:, 1:].repeat_interleave(2, dim=1)], dim=1)
    dense = Dense()(made.vit.blocks, tokens, 1)
    torch.testing.assert_close(made.method(made.vit.blocks, tokens, 1), dense, rtol=1e-3, atol=1e-4)


def test_dynamicvit_trains_its_predictors_and_drops_the_same_at_evaluation():
    made = with_method(DynamicVit(DIM, (1, 2), 0.5)).train()
    features = made(IMAGES)
    (features.context.square().mean() + made.method.ratio_loss()).backward()
    assert made.method.last_shares[1] <= made.method.last_shares[0] <= 1
    for name, parameter in made.method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_masked_halting_is_gathered_halting():
    made = with_method(AVit(gamma=2.0, beta=-0.5))
    gathered = made(IMAGES).context
    depths = made.method.last_depths
    assert len(set(depths.flatten().tolist())) > 1
    made.method.train()
    masked = made(IMAGES).context
    assert torch.equal(made.method.last_depths, depths)
    torch.testing.assert_close(masked, gathered, rtol=1e-3, atol=1e-4)


def test_halting_by_hand():
    """Halting values of 0.5, 0.4 and then the rest: y = 0.5 x1 + 0.4 x2 + 0.1 x3, ponder 3 + 0.1."""

    class Plus(torch.nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first = first

        def forward(self, tokens):
            return torch.stack([torch.full_like(tokens[..., 0], self.first), tokens[..., 1] + 1], dim=-1)

    method = AVit(gamma=1.0, beta=0.0, epsilon=0.01).eval()
    blocks = [Plus(float(torch.logit(torch.tensor(value)))) for value in (0.5, 0.4, 0.3)]
    out = method(blocks, torch.zeros(1, 2, 2), 0)
    assert out[0, 0, 1].item() == pytest.approx(0.5 * 1 + 0.4 * 2 + 0.1 * 3)
    assert method.last_ponder.item() == pytest.approx(3.1)
    # dy/dbeta: h' = h (1 - h) is 0.25 and 0.24, and what is missing to 1 falls by both, so
    # 0.25 (x1 - x3) + 0.24 (x2 - x3) = 0.25 (1 - 3) + 0.24 (2 - 3) = -0.74.
    out[0, 0, 1].backward(retain_graph=True)
    assert method.beta.grad.item() == pytest.approx(-0.74, rel=1e-4)
    method.beta.grad = None
    method.last_ponder.backward()
    # d ponder / d beta = d (1 - h1 - h2) / d beta = -(0.25 + 0.24).
    assert method.beta.grad.item() == pytest.approx(-0.49, rel=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_a_convolutional_backbone(backbone):
    with pytest.raises(ValueError, match="Vision Transformer"):
        VitViewEncoder(backbone, 6, 5)


def points_at(xyz_m, sample, num_samples=2) -> PointBatch:
    xyz_m = torch.tensor(xyz_m, dtype=torch.float32)
    fields = torch.cat([xyz_m, torch.zeros(len(xyz_m), 2)], dim=1)
    return PointBatch(fields, torch.tensor(sample), torch.ones(num_samples, dtype=torch.bool))


def test_regions_with_most_points_stay():
    grid = BevGrid.square(10.0, 10.0)  # two by two
    xyz_m = [[-5, -5, 0]] * 3 + [[5, 5, 0]] * 2 + [[5, -5, 0]] + [[1, 1, 0], [50, 0, 0]]
    points = points_at(xyz_m, [0] * 6 + [1, 1])
    kept = drop_regions(points, grid, 0.5)
    assert kept.points[:, :2].tolist() == [[-5, -5]] * 3 + [[5, 5]] * 2 + [[1, 1]]
    assert kept.sample.tolist() == [0] * 5 + [1]
    assert len(kept.present) == 2
    assert drop_regions(points, grid, 1) is points
    nearest = drop_regions(points_at([[-1, -1, 0]] + [[5, 5, 0]] * 4, [0] * 5), BevGrid.square(12.0, 8.0), 0.5, True)
    assert nearest.points[:, :2].tolist() == [[-1, -1]]
    with pytest.raises(ValueError, match="keep"):
        drop_regions(points, grid, 0.0)


def test_points_choose_the_patches_that_they_fall_into():
    """A camera at the origin that looks along x: x_cam = -y, y_cam = -z, z_cam = x; f 32 px, centre (32, 16)."""
    ego_from_camera = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])[None]
    image_from_camera = torch.tensor([[32.0, 0, 32], [0, 32, 16], [0, 0, 1]])[None]
    # Straight ahead: pixel (32, 16), patch (2, 4). Left by 45 degrees: u = 0. Behind: nowhere. Another sample: not its.
    points = points_at([[10, 0, 0], [10, 0, 0], [10, 9.9, 0], [-10, 0, 0], [10, 0, 0]], [0, 0, 0, 0, 1])
    view = PosedViews(image_from_camera, ego_from_camera, torch.tensor([0]), SIZE)
    scores = point_scores(points, view, (4, 8))
    expected = np.zeros((4, 8))
    expected[2, 4], expected[2, 0] = 2, 1
    assert scores.view(4, 8).tolist() == expected.tolist()
    method = GuidedKeep(2 / 32)
    method.scores = scores
    made = with_method(method)
    tokens = made.tokens((IMAGES[:1] - made.mean) / made.std)
    changed = (made.method(made.vit.blocks, tokens, 1) != tokens[:, 1:]).any(dim=-1)
    assert torch.nonzero(changed)[:, 1].tolist() == [16, 20]
    method.scores = None
    with pytest.raises(ValueError, match="scores of"):
        made(IMAGES)
