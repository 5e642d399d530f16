"""A stand-in for a flawless network: it knows the rendered room behind the photos it is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS
from multiview.cameras import Camera
from tests.dust3r.room_scene import RoomView, room_views

WIDTH, HEIGHT = 144, 112  # nine by seven patches: photos of this size go into the network as they are
_DESCRIPTOR_SCALE = 3.0
_SEEN = 0.02


def pixels_of(view: RoomView) -> np.ndarray:
    """(H, W, 3) uint8 photo of a view, unlike that of any other view."""
    return np.rint((view.image.transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)


def views_of_room(count: int, *, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[RoomView]:
    """Landscape and portrait views of the room with balls."""
    return room_views(count, size=size, seed=seed)


class PerfectModel(AsymmetricMASt3R):
    """Predicts the exact geometry of known photos, each pair at a scale of its own.

    Args:
        views: What it knows. Photos of other things it takes for the most similar known one.
        scale_noise: Standard deviation of the log scale of each pass.
        worlds: Number of the world of each view; views of different worlds do not match.
    """

    def __init__(
        self,
        views: Sequence[RoomView],
        *,
        scale_noise: float = 0.0,
        worlds: Sequence[int] | None = None,
        side: int = 128,
    ):
        super().__init__(**{**PRESETS["tiny"].model, "img_size": (side, side)})
        self.views = list(views)
        self.worlds = list(worlds or [0] * len(self.views))
        self.scale_noise = scale_noise
        self.encoded: list[int] = []
        self.decoded = 0
        self._photos = {pixels_of(view).tobytes(): k for k, view in enumerate(self.views)}
        generator = torch.Generator().manual_seed(0)
        self._waves = torch.randn(3, self.enc_embed_dim - 1, generator=generator)

    def _encode_image(self, image, true_shape):
        if type(image).__name__ == "FakeTensor":  # only counts operations
            return super()._encode_image(image, true_shape)
        numbers = [self._number(row) for row in image]
        self.encoded += numbers
        features = torch.stack([self._features(k) for k in numbers])
        return features, torch.zeros(*features.shape[:2], 2, dtype=torch.long), None

    def _number(self, image: torch.Tensor) -> int:
        pixels = ((image * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        return self._photos[pixels.tobytes()]

    def _features(self, k: int) -> torch.Tensor:
        """(N, C): the number of the photo, and waves over the room at the centre of each patch."""
        points = torch.from_numpy(self.views[k].points[8::16, 8::16]).float().flatten(0, 1)
        waves = torch.sin(points @ self._waves + 10.0 * self.worlds[k])
        return torch.cat([torch.full((len(points), 1), 1e-4 * k), waves], dim=1)

    def _decoder(self, f1, pos1, f2, pos2):
        if type(f1).__name__ == "FakeTensor":
            return super()._decoder(f1, pos1, f2, pos2)
        self.decoded += len(f1)
        numbers = torch.stack([f1[:, 0, 0], f2[:, 0, 0]], 1).mul(1e4).round().long()
        return [f1, numbers], [f2, numbers]

    def _downstream_head(self, head_num, decout, img_shape):
        if type(decout[-1]).__name__ == "FakeTensor":
            return super()._downstream_head(head_num, decout, img_shape)
        rows = [self._maps(*pair, head_num - 1) for pair in decout[-1].tolist()]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _maps(self, first: int, second: int, side: int) -> dict[str, torch.Tensor]:
        shown, other = ((first, second), (second, first))[side]
        view = self.views[shown]
        cam = np.linalg.inv(self.views[first].pose)
        rng = np.random.default_rng(1000 * first + second)
        points = np.exp(rng.normal(0, self.scale_noise)) * (view.points @ cam[:3, :3].T + cam[:3, 3])
        visible = self._visible(shown, other)
        world = torch.from_numpy(view.points).float() / _DESCRIPTOR_SCALE
        square = world.square().sum(-1, keepdim=True)
        desc = torch.cat([2 * world, square - 1], -1) / (square + 1)  # stereographic: near points, near descriptors
        if self.worlds[first] != self.worlds[second]:
            generator = torch.Generator().manual_seed(2000 * first + 2 * second + side)
            desc = torch.nn.functional.normalize(torch.randn(desc.shape, generator=generator), dim=-1)
        return {
            "pts3d": torch.from_numpy(points).float(),
            "conf": torch.full(view.points.shape[:2], 10.0),
            "desc": desc,
            "desc_conf": torch.from_numpy(np.where(visible, 20.0, 0.01)).float(),
        }

    def _visible(self, shown: int, other: int) -> np.ndarray:
        """(H, W) bool: which points of one view the other one sees."""
        view, there = self.views[shown], self.views[other]
        if self.worlds[shown] != self.worlds[other]:
            return np.zeros(view.points.shape[:2], bool)
        height, width = there.points.shape[:2]
        cam = np.linalg.inv(there.pose)
        local = view.points @ cam[:3, :3].T + cam[:3, 3]
        xy = Camera(there.K, width, height).project(local)
        inside = np.isfinite(xy).all(-1) & (xy >= 0).all(-1) & (xy <= (width - 1, height - 1)).all(-1)
        column, row = np.moveaxis(np.rint(np.where(inside[..., None], xy, 0)).astype(int), -1, 0)
        seen = there.points[row, column] @ cam[2, :3] + cam[2, 3]
        return inside & (np.abs(seen - local[..., 2]) < _SEEN * local[..., 2])
