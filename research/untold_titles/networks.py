"""What is compared, on patches of two stages of one convolutional tower: CMA-CLIP, and others on the same vectors.

All contenders see the same pooled vector of an image: the mean of the tower's last stage and, where patches come from
the last but one, the mean of that stage beside it. So what patches add is where something is, and nothing else.

Shapes: B listings, N patches of the last stage with d channels, n patches of the stage before with e channels,
F = N d + n e, D fusion width, M = 2 modalities in the order image, text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from model.config import FusionConfig, ModelConfig
from model.errors import ConfigError
from model.network.cma_clip import CMAClip, Output
from model.network.towers import Backbone, ImageTower, TextTower, TimmTower, TokenSequence
from model.tasks import Task
from model.training.initialise import initial_network
from research.study.networks import AttributeNetwork, BuildNetwork, PooledClip


class Patches(StrEnum):
    """The stage of the image tower whose patches are attended to."""

    LAST = "last"
    BEFORE = "before"
    """The last but one: more and smaller patches, of a lower level."""


class Contender(StrEnum):
    """How image and title are combined."""

    CMA_CLIP = "cma-clip"
    CONCATENATED = "concatenated"
    """Fine-tuned CLIP: both pooled vectors side by side."""
    EMBRACED = "embraced"
    """EmbraceNet (arXiv:1904.09078): of each place of the vectors, one modality is drawn."""
    MULTIPLIED = "multiplied"
    """As `CONCATENATED`, with the product of both vectors beside them: the interaction term."""


# --- towers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the two stages are in an image's flat vector: patches and channels of each."""

    last: tuple[int, int]
    before: tuple[int, int]

    @property
    def size(self) -> int:
        """F, the length of the vector."""
        return self.last[0] * self.last[1] + self.before[0] * self.before[1]

    def last_of(self, flat: Tensor) -> Tensor:
        """Return the patches of the last stage, `[B, N, d]`, of `flat`, `[B, F]`."""
        return flat[:, : self.last[0] * self.last[1]].reshape(-1, *self.last)

    def before_of(self, flat: Tensor) -> Tensor:
        """Return the patches of the last stage but one, `[B, n, e]`, of `flat`, `[B, F]`."""
        return flat[:, self.last[0] * self.last[1] :].reshape(-1, *self.before)


class StagedTower(ImageTower):
    """A convolutional timm tower that returns the patches of its last two stages as one vector, `[B, F]`."""

    def __init__(self, tower: ImageTower, image_size: tuple[int, int]) -> None:
        super().__init__()
        if not isinstance(tower, TimmTower) or tower.prefix:
            raise ConfigError("patches of two stages need a convolutional image tower")
        self.trunk = tower.trunk
        self.grid, self.width, self.pools_plainly = tower.grid, tower.width, tower.pools_plainly
        with torch.no_grad():
            was_training = self.trunk.training
            self.trunk.eval()  # or batch statistics would learn from this image
            last, before = self._stages(torch.zeros(1, 3, *image_size))
            self.trunk.train(was_training)
        self.layout = Layout(last=(last.shape[1], last.shape[2]), before=(before.shape[1], before.shape[2]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([stage.flatten(1) for stage in self._stages(images)], dim=1)

    def layers(self) -> list[list[nn.Parameter]]:
        """One layer: the tower is locked, or trained at one rate."""
        return [list(self.parameters())]

    def _stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        last, stages = self.trunk.forward_intermediates(images, indices=2)
        return last.flatten(2).transpose(1, 2), stages[0].flatten(2).transpose(1, 2)  # [B, N, d], [B, n, e]


class StagedBackbone(Backbone):
    """Towers whose images are one vector each, `[B, F]`, of both stages."""

    image: StagedTower

    def __init__(self, image: StagedTower, text: TextTower) -> None:
        super().__init__(image, text)

    def encode_image(self, images: Tensor) -> TokenSequence:
        """Encode images, `[B, 3, H, W]`, to `[B, F]`."""
        return as_sequence(self.image(images))


class GivenStages(StagedBackbone):
    """The same towers, under the same names, for images that are encoded already."""

    def encode_image(self, images: Tensor) -> TokenSequence:
        """Wrap `images`, `[B, F]`."""
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return as_sequence(images.to(dtype))


def as_sequence(flat: Tensor) -> TokenSequence:
    """Return images, `[B, F]`, as sequences of one token: whether they are there is in the mask, `[B, 1]`."""
    mask = torch.ones(len(flat), 1, dtype=torch.bool, device=flat.device)
    return TokenSequence(flat, mask, mask.new_zeros(len(flat), dtype=torch.long))


class KnownTokens(nn.Embedding):
    """Embeddings of the tokens that training titles have; any other token has that of the first.

    Nothing is trained of the embedding of a token that no training title has, but an optimiser step would read and
    write them all: in a vocabulary of 49,408 tokens that is most of what a step costs here.
    known: the tokens, `[K]` int64, rising. weight: the embeddings of the whole vocabulary, `[V, d]`.
    """

    def __init__(self, weight: Tensor, known: Tensor) -> None:
        super().__init__(len(known), weight.shape[1])
        self.weight = nn.Parameter(weight.detach()[known].clone())
        self.known = known  # as a buffer, it would enter the average of weights

    def forward(self, tokens: Tensor) -> Tensor:
        known = self.known.to(tokens.device)
        places = torch.searchsorted(known, tokens).clamp(max=len(known) - 1)
        return super().forward(torch.where(known[places] == tokens, places, 0))


def with_known_tokens(build: BuildNetwork, tokens: Sequence[int]) -> BuildNetwork:
    """Return a function that builds the same network with embeddings of `tokens` alone, and of padding."""
    known = torch.tensor(sorted({0, *tokens}))

    def built(model: ModelConfig, tasks: Sequence[Task], initial: str | None) -> AttributeNetwork:
        network = build(model, tasks, initial)
        text = network.backbone.text.text
        text.token_embedding = KnownTokens(text.token_embedding.weight, known)
        return network

    return built


# --- from stages to tokens ---------------------------------------------------------------------------------


class PooledStages(nn.Module):
    """An image's stages, `[B, F]`, to one vector, `[B, D]`."""

    def __init__(self, layout: Layout, patches: Patches, width: int) -> None:
        super().__init__()
        self.layout = layout
        self.last = _projection(layout.last[1], width)
        self.before = _projection(layout.before[1], width) if patches is Patches.BEFORE else None

    def forward(self, flat: Tensor) -> Tensor:
        pooled: Tensor = self.last(self.layout.last_of(flat).mean(dim=1))
        # Two projections, added up, are one of both vectors side by side.
        return pooled if self.before is None else pooled + self.before(self.layout.before_of(flat).mean(dim=1))


class StagesAsTokens(nn.Module):
    """An image's stages, `[B, F]`, to tokens, `[B, 1 + patches, D]`: the vector of `PooledStages`, then the patches."""

    def __init__(self, layout: Layout, patches: Patches, width: int) -> None:
        super().__init__()
        self.pooled = PooledStages(layout, patches, width)
        self.own = _projection(layout.before[1], width) if patches is Patches.BEFORE else None

    def forward(self, flat: Tensor) -> Tensor:
        layout = self.pooled.layout
        # As in the shipped network, patches of the last stage are projected as their mean is.
        patches = self.pooled.last(layout.last_of(flat)) if self.own is None else self.own(layout.before_of(flat))
        return torch.cat([self.pooled(flat)[:, None], patches], dim=1)


def _projection(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))


# --- contenders --------------------------------------------------------------------------------------------


class StagedCMAClip(CMAClip):
    """CMA-CLIP on the patches of one stage."""

    def __init__(self, backbone: StagedBackbone, tasks: Sequence[Task], config: FusionConfig, patches: Patches) -> None:
        super().__init__(backbone, tasks, config)
        layout = backbone.image.layout
        self.tokens = 1 + (layout.last if patches is Patches.LAST else layout.before)[0]
        self.sequence_attention.project_image = StagesAsTokens(layout, patches, config.width)  # type: ignore[assignment]

    def forward(self, image: TokenSequence | None, text: TokenSequence | None) -> Output:
        """Predict from encoded modalities, one of which may be None; an image's vector becomes its tokens."""
        if image is not None:
            image = TokenSequence(image.embeddings, image.mask.expand(-1, self.tokens), image.pooled)
        return super().forward(image, text)


class Concatenated(PooledClip):
    """Fine-tuned CLIP on the pooled stages of the image and the title's last token."""

    def __init__(self, backbone: StagedBackbone, tasks: Sequence[Task], config: FusionConfig, patches: Patches) -> None:
        super().__init__(backbone, tasks, config)
        self.project_image = PooledStages(backbone.image.layout, patches, config.width)  # type: ignore[assignment]

    def pool(self, sequence: TokenSequence) -> Tensor:
        """Return what is projected: an image is one vector already."""
        return sequence.embeddings if sequence.embeddings.ndim == 2 else super().pool(sequence)


class Multiplied(Concatenated):
    """`Concatenated`, with the product of both vectors beside them."""

    joint = 3

    def join(self, pooled: Tensor, weights: Tensor) -> Tensor:
        """Return both modalities' vectors and their product, `[B, 3D]`."""
        return torch.cat([super().join(pooled, weights), pooled[:, 0] * pooled[:, 1]], dim=1)


class Embraced(Concatenated):
    """EmbraceNet: in training, each place of the joint vector is drawn from one of the modalities that are present.

    Otherwise it is their average, which is what is drawn on average.
    """

    joint = 1

    def join(self, pooled: Tensor, weights: Tensor) -> Tensor:
        """Return the joint vector, `[B, D]`."""
        docked = pooled.relu()
        if self.training:
            drawn = torch.multinomial(weights, pooled.shape[2], replacement=True)  # [B, D]
            return docked.gather(1, drawn[:, None]).squeeze(1)
        return (weights[:, :, None] * docked).sum(dim=1)


_NETWORKS: dict[Contender, type[StagedCMAClip] | type[Concatenated]] = {
    Contender.CMA_CLIP: StagedCMAClip,
    Contender.CONCATENATED: Concatenated,
    Contender.EMBRACED: Embraced,
    Contender.MULTIPLIED: Multiplied,
}


def builder(contender: Contender, patches: Patches) -> BuildNetwork:
    """Return what builds a contender on the staged towers that it would start from."""

    def build(model: ModelConfig, tasks: Sequence[Task], initial: str | None) -> AttributeNetwork:
        backbone = staged(initial_network(model, tasks, initial).backbone, model.preprocess.image_size)
        return _NETWORKS[contender](backbone, tasks, model.fusion, patches)

    return build


def staged(backbone: Backbone, image_size: tuple[int, int]) -> StagedBackbone:
    """Return the same towers, whose images are encoded as both stages."""
    return StagedBackbone(StagedTower(backbone.image, image_size), backbone.text)
