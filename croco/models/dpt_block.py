"""DPT decoder: from tokens of four transformer layers to a dense map (Ranftl et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from croco.models.blocks import to_pair


class ResidualConvUnit(nn.Module):
    """x + conv2(relu(conv1(relu(x)))), 3x3 convolutions; spatial size is kept."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FeatureFusionBlock(nn.Module):
    """Add a skip connection, refine, upsample by two."""

    def __init__(self, features: int):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Fuse.

        Args:
            x: (B, C, h, w) deeper path.
            skip: (B, C, h, w) layer of this resolution, or None for the deepest block.

        Returns:
            (B, C, 2 h, 2 w).
        """
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Upsample(nn.Module):
    """Bilinear upsampling that keeps the corner pixels in place."""

    def __init__(self, scale_factor: float):
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, floor(s h), floor(s w))."""
        return F.interpolate(x, scale_factor=self.scale_factor, mode="bilinear", align_corners=True)


class FusionPath(nn.Module):
    """Projections `layer{1..4}_rn` to one width, and the fusion blocks `refinenet{1..4}`."""

    def __init__(self, layer_dims: Sequence[int], features: int):
        super().__init__()
        projections = [nn.Conv2d(dim, features, 3, padding=1, bias=False) for dim in layer_dims]
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = projections
        self.layer_rn = nn.ModuleList(projections)  # the same modules: official state dicts hold both names
        self.refinenet1 = FeatureFusionBlock(features)
        self.refinenet2 = FeatureFusionBlock(features)
        self.refinenet3 = FeatureFusionBlock(features)
        self.refinenet4 = FeatureFusionBlock(features)  # has no skip: its resConfUnit1 is stored but unused

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps of 4, 2, 1 and 1/2 times the token grid into (B, features, 8 rows, 8 columns)."""
        layers = [project(x) for project, x in zip(self.layer_rn, maps)]
        rows, columns = layers[2].shape[-2:]
        path = self.refinenet4(layers[3])[..., :rows, :columns]  # odd grids were rounded up by the stride
        path = self.refinenet3(path, layers[2])
        path = self.refinenet2(path, layers[1])
        return self.refinenet1(path, layers[0])


def _make_reassembly(dims: Sequence[int], layer_dims: Sequence[int]) -> nn.ModuleList:
    """Per layer: project the tokens, then resample their grid by 4, 2, 1 and 1/2."""
    resample = [
        [nn.ConvTranspose2d(layer_dims[0], layer_dims[0], 4, stride=4)],
        [nn.ConvTranspose2d(layer_dims[1], layer_dims[1], 2, stride=2)],
        [],
        [nn.Conv2d(layer_dims[3], layer_dims[3], 3, stride=2, padding=1)],
    ]
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(dim, layer_dim, 1), *after) for dim, layer_dim, after in zip(dims, layer_dims, resample)
    )


class DPTOutputAdapter(nn.Module):
    """Dense prediction head on four token layers of a vision transformer.

    Args:
        num_channels: Output channels.
        stride_level: Must be 1: tokens come from full-size images.
        patch_size: Patch size in pixels.
        main_tasks: Accepted for compatibility, unused.
        hooks: Indices of the four token layers, shallow to deep.
        layer_dims: Widths after reassembly, four.
        feature_dim: Width of the fusion path.
        last_dim: Width of the last layers.
        use_bn: Must be False: no published model of the family uses batch norm here.
        dim_tokens_enc: Token width of each hooked layer; one int stands for all four.
        head_type: Must be 'regression'.
        output_width_ratio: Must be 1.

    Raises:
        ValueError: On unsupported options or wrong lengths.
    """

    def __init__(
        self,
        num_channels: int = 1,
        stride_level: int = 1,
        patch_size: int | tuple[int, int] = 16,
        main_tasks: Iterable[str] = ("rgb",),
        hooks: Sequence[int] = (2, 5, 8, 11),
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        last_dim: int = 32,
        use_bn: bool = False,
        dim_tokens_enc: int | Sequence[int] | None = None,
        head_type: str = "regression",
        output_width_ratio: float = 1,
    ):
        super().__init__()
        if use_bn or head_type != "regression" or output_width_ratio != 1 or stride_level != 1:
            raise ValueError(
                "DPTOutputAdapter supports use_bn=False, head_type='regression', output_width_ratio=1 and "
                f"stride_level=1 only, got {use_bn}, {head_type!r}, {output_width_ratio}, {stride_level}."
            )
        dims = (dim_tokens_enc or 768,) * 4 if not isinstance(dim_tokens_enc, Sequence) else dim_tokens_enc
        if not len(hooks) == len(layer_dims) == len(dims) == 4:
            raise ValueError(f"DPT needs four hooks, layer_dims and token widths, got {hooks}, {layer_dims}, {dims}.")
        self.num_channels = num_channels
        self.main_tasks = tuple(main_tasks)
        self.hooks = tuple(hooks)
        self.patch_size = to_pair(patch_size)
        self.act_postprocess = _make_reassembly(dims, layer_dims)
        self.scratch = FusionPath(layer_dims, feature_dim)
        self.head = nn.Sequential(
            nn.Conv2d(feature_dim, last_dim, 3, padding=1),
            Upsample(2 * self.patch_size[0] / 16),  # the path so far magnifies the token grid by 8
            nn.Conv2d(last_dim, last_dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last_dim, num_channels, 1),
        )

    def reassemble(self, tokens: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """The hooked token layers as maps of 4, 2, 1 and 1/2 times the token grid, shallow to deep.

        Args:
            tokens: All token layers, each (B, N, C_l).
            image_size: (height, width) in pixels of the input the tokens come from.
        """
        rows, columns = image_size[0] // self.patch_size[0], image_size[1] // self.patch_size[1]
        grids = (tokens[hook].transpose(1, 2).unflatten(2, (rows, columns)) for hook in self.hooks)
        return [process(grid) for process, grid in zip(self.act_postprocess, grids)]

    def forward(self, encoder_tokens: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Predict a dense map.

        Args:
            encoder_tokens: All token layers, each (B, N, C_l), raster order.
            image_size: (height, width) of the image in pixels.

        Returns:
            (B, num_channels, H, W).
        """
        return self.head(self.scratch(self.reassemble(encoder_tokens, image_size)))
