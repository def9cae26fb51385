"""A ViT with all its tokens teaches the same ViT with fewer: the teacher terms of DynamicViT."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fusion.encoders.vit_tokens import Dense
from fusion.ops.rows import mean_so_far

SOURCES = ("own", "start")


class TokenTeacher(nn.Module):
    """Depths and last features of the dense pass, as targets without gradients (DynamicViT, Rao et al., NeurIPS 2021).

    The paper compares class scores; what a view encoder predicts is a distribution over depths in every patch, so the
    divergence is taken there: the mean over patches of KL(teacher || student), through the student's neck. The distance
    of features is the mean square over the patches that are kept to the end (all of them, where a method does not say).
    Nothing of it runs at evaluation; a training step costs one dense pass without gradients more.

    Args:
        weights: whose: ``own``, those that are being trained; or ``start``, those that the ViT has when training first
            runs, pretrained or loaded. These are kept with the model and do not change.
        divergence_weight, feature_weight: in ``token_loss``. In the paper ratio loss, divergence and features weigh 2,
            0.5 and 0.5: so do the defaults, with the weight 2 on the term ``tokens``.

    Attributes:
        last_terms: divergence and distance, unweighted, with gradients: the mean over all rows compared since it was
            None, as ``forget_tokens`` makes it at the start of a training pass.
        last_rows: how many these are.

    Raises:
        ValueError: other weights.
    """

    def __init__(self, weights: str = "own", divergence_weight: float | int = 0.25, feature_weight: float | int = 0.25):
        super().__init__()
        if weights not in SOURCES:
            raise ValueError(f"expected weights of the teacher among {', '.join(SOURCES)}, got {weights!r}")
        self.weights, self.divergence_weight, self.feature_weight = weights, divergence_weight, feature_weight
        self.last_terms: Tensor | None = None
        self.last_rows: int | None = None
        self._names: dict[str, str] = {}
        self._is_taken = False

    def attach(self, vit: nn.Module) -> None:
        """Makes room for the weights of ``start``."""
        if self.weights == "start":
            self.register_buffer("taken", torch.zeros((), dtype=torch.bool))
            for name, parameter in vit.named_parameters():
                self._names[name] = "start_" + name.replace(".", "_")
                self.register_buffer(self._names[name], parameter.detach().clone())

    def compare(
        self,
        vit: nn.Module,
        neck: nn.Module,
        images: Float[Tensor, "r 3 h w"],
        patches: Float[Tensor, "r n c"],
        depth_logits: Float[Tensor, "r d fh fw"],
        kept: Float[Tensor, "r n"] | None = None,
    ) -> None:
        """Adds to ``last_terms`` what the student made of normalised images.

        Args:
            patches: the student's last features, after the norm.
            depth_logits: the student's; the last channels of the neck.
            kept: patches that count for the features.
        """
        targets, logits = self._dense(vit, neck, images, depth_logits.shape[1:])
        divergence = functional.kl_div(
            depth_logits.float().log_softmax(dim=1), logits.float().log_softmax(dim=1), reduction="sum", log_target=True
        ) / (len(images) * patches.shape[1])
        distance = (patches.float() - targets.float()).square().mean(dim=-1)
        kept = torch.ones_like(distance) if kept is None else kept
        terms = torch.stack([divergence, (distance * kept).sum() / kept.sum().clamp_min(1)])
        self.last_terms, self.last_rows = mean_so_far(self.last_terms, self.last_rows, terms, len(images))

    def token_loss(self) -> Float[Tensor, ""] | None:
        """Weighted sum of the terms, where a training batch has run."""
        if self.last_terms is None:
            return None
        return self.divergence_weight * self.last_terms[0] + self.feature_weight * self.last_terms[1]

    def __getstate__(self) -> dict:
        """Copies do not take the last batch along: it may hang on a graph."""
        return {**self.__dict__, "last_terms": None, "last_rows": None}

    @torch.no_grad()
    def _dense(self, vit: nn.Module, neck: nn.Module, images: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Features of all patches and their depth logits, without dropout."""
        whole, was_training = _Whole(vit), vit.training
        vit.eval()
        patches = functional_call(whole, self._weights_of(vit), (images,))
        vit.train(was_training)
        head = neck(patches.transpose(1, 2).unflatten(2, tuple(shape[1:])))
        return patches, head[:, -shape[0] :]

    def _weights_of(self, vit: nn.Module) -> dict[str, Tensor]:
        """By name in ``_Whole``; empty for the ViT's own."""
        if self._names and not self._is_taken:
            if not bool(self.taken):
                for name, parameter in vit.named_parameters():
                    self.get_buffer(self._names[name]).copy_(parameter)
                self.taken.fill_(True)
            self._is_taken = True
        return {f"vit.{name}": self.get_buffer(kept) for name, kept in self._names.items()}


class _Whole(nn.Module):
    """Normalised images to the features of all patches."""

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        vit = self.vit
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        return vit.norm(Dense()(vit.blocks, tokens, vit.num_prefix_tokens))
