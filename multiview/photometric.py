"""Matches placed to a fraction of a pixel of the photos themselves, and checked by what the photos show there.

A network that sees photos at a fifth of their size places matches to a pixel of that size at best. Around each
match the patch of image 0, deformed by the affine map of its neighbourhood (`multiview.local_affine`), is slid and
bent over image 1 until both look alike: Gauss-Newton steps of the inverse compositional kind (Baker and Matthews,
2004) on patches freed of brightness and contrast, from coarse to fine resolution. Patches that look alike in the
end, near where the network put them, and where the neighbours agree, are right with few exceptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multiview.images import Image
from multiview.local_affine import local_affines
from multiview.matches import Matches

_AT_ONCE = 4096  # matches; bounds the memory of the patches
_ROWS = 256  # of a picture that are computed at once; bounds the memory of large photos
_LUMA = (0.299, 0.587, 0.114)
_DAMPING = (1e-3, 1e-3, 1e-2, 1e-2, 1e-2, 1e-2)  # of the steps (shift, bend), in units of the mean curvature
_LARGEST_STEP = 2.0  # pixels of the level
_LARGEST_BEND = 0.3
_NOISE = 3.0  # usual difference of two pictures of one thing, in grey levels
_BORDER = 6  # pixels of a picture next to its edge that hold no points worth matching
_MAX_REACH = 32.0  # of the matches around a point that is carried over, in pixels of the network's input
_LEAST_TELLING = 0.25  # share of matches; fewer with texture around them prove nothing
_LEAST_MATCHES = 50  # nor do fewer than these
_FLAT = 1e-3  # least contrast of a patch, in grey levels of 0..255


@dataclass(frozen=True)
class PhotometricConfig:
    """How matches are placed and checked.

    Attributes:
        radius: Half side of a patch in pixels, at each level of resolution.
        iterations: Steps at each level.
        min_correlation: Least correlation of the patches of a checked match, -1..1.
        max_move: Farthest that a match may move, in pixels of the network's input.
        max_deviation: Where the patch has so little texture that its place is known no better than this, in the same
            pixels, the photos have no say: the match stays where it is, and its neighbours alone decide on it.
        max_stray: Farthest that a match may lie from where its neighbours send it, in the same pixels.
        min_support: Least share of neighbours that agree, see `LocalAffines.support`.
        min_checked: With fewer checked matches than this all are kept: then it is the light that differs.

    Raises:
        ValueError: If a value is out of its range.
    """

    radius: int = 6
    iterations: int = 8
    min_correlation: float = 0.7
    max_move: float = 2.0
    max_deviation: float = 0.25
    max_stray: float = 6.0
    min_support: float = 0.2
    min_checked: int = 50

    def __post_init__(self) -> None:
        if self.radius < 2 or self.iterations < 1 or self.min_checked < 0:
            raise ValueError(
                "radius must be at least 2, iterations at least 1 and min_checked not negative, got "
                f"{self.radius}, {self.iterations} and {self.min_checked}."
            )
        if not min(self.max_move, self.max_deviation, self.max_stray) > 0:
            raise ValueError(
                "max_move, max_deviation and max_stray must be positive, got "
                f"{self.max_move}, {self.max_deviation} and {self.max_stray}."
            )
        if not -1 <= self.min_correlation <= 1 or not 0 <= self.min_support <= 1:
            raise ValueError(
                "min_correlation must be in -1..1 and min_support in 0..1, got "
                f"{self.min_correlation} and {self.min_support}."
            )


@dataclass(frozen=True, eq=False)
class PlacedMatches:
    """Matches after they were placed.

    Attributes:
        matches: All matches, in their order; the checked ones with their new `xy1`.
        correlation: (N,) correlation of both patches in the end, -1..1.
        deviation: (N,) how well the texture of the patch in image 0 tells its place, a standard deviation in pixels
            of image 0; large without texture, and along edges.
        support: (N,) share of neighbours that agree.
        checked: (N,) bool: the neighbours agree, and the patches look alike near the match's first place or have
            no texture.
        telling: (N,) bool: the patch in image 0 has the texture that tells its place.
    """

    matches: Matches
    correlation: np.ndarray
    deviation: np.ndarray
    support: np.ndarray
    checked: np.ndarray
    telling: np.ndarray

    @property
    def confirmed(self) -> np.ndarray:
        """(N,) bool: checked, and it is the patches that say so."""
        return self.checked & self.telling

    def kept(self, least: int) -> Matches:
        """The checked matches; all if they are fewer than `least`."""
        return self.matches.filter(self.checked) if self.checked.sum() >= least else self.matches


def confirmed_share(placed: PlacedMatches) -> float:
    """Share of the matches that the photos confirm, of those whose surroundings tell something, 0..1."""
    count = max(placed.telling.sum(), _LEAST_TELLING * len(placed.telling), _LEAST_MATCHES)
    return float(placed.confirmed.sum() / count)


def believed_share(placed: PlacedMatches) -> float:
    """Share of the matches where there is something to see that the photos confirm, 0..1; 1 if those are too few."""
    telling = placed.telling.sum()
    too_few = telling < max(_LEAST_TELLING * len(placed.telling), _LEAST_MATCHES)
    return 1.0 if too_few else float(placed.confirmed.sum() / telling)


class MatchPlacer:
    """Places and checks matches between two photos; their smaller pictures are made once.

    Args:
        image0: Photo 0.
        image1: Photo 1.
        config: How it is done.
        device: Where it is computed; default the CPU.
    """

    def __init__(
        self,
        image0: Image | GreyPyramid,
        image1: Image | GreyPyramid,
        *,
        config: PhotometricConfig | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.config = config or PhotometricConfig()
        self._photos = tuple(i if isinstance(i, GreyPyramid) else GreyPyramid(i, device) for i in (image0, image1))

    def place(self, matches: Matches) -> PlacedMatches:
        """Move the second ends of matches, in pixels of the photos, to where the photos look alike.

        Raises:
            ValueError: If the photos have other sizes than the matches say.
        """
        self._check_sizes(matches)
        pixel0, pixel1 = model_pixels(matches)
        around = local_affines(matches.xy0, matches.xy1, scale=(pixel0 * pixel1) ** 0.5)
        end, correlation, deviation = self._slide(matches, around.A, pixel0, pixel1)
        alike = self._alike(matches.xy1, end, correlation, pixel1)
        telling = deviation < self.config.max_deviation * pixel0
        placed = replace(matches, xy1=np.where((alike & telling)[:, None], end, matches.xy1))
        stray = np.linalg.norm(around.xy1 - matches.xy1, axis=1)
        agreed = (around.support > self.config.min_support) & (stray < self.config.max_stray * pixel1)
        checked = agreed & (alike | ~telling)
        return PlacedMatches(placed, correlation, deviation, around.support, checked, telling)

    def carry(self, matches: Matches, points: np.ndarray) -> Matches:
        """Match given points of photo 0: sent to photo 1 as the matches around them go, placed and confirmed there.

        Args:
            matches: Matches in pixels of the photos, wrong ones among them.
            points: (K, 2) pixels of photo 0.

        Returns:
            A match for each point that lies among matches and that the photos confirm, with the point's number as
            `index0`; confidences are the correlations of the patches, 0..1.

        Raises:
            ValueError: If the photos have other sizes than the matches say.
        """
        self._check_sizes(matches)
        pixel0, pixel1 = model_pixels(matches)
        around = local_affines(matches.xy0, matches.xy1, at=points, scale=(pixel0 * pixel1) ** 0.5)
        sent = np.flatnonzero((around.support > self.config.min_support) & (around.reach < _MAX_REACH * pixel0))
        sizes = (matches.size0, matches.size1, matches.model_size0, matches.model_size1)
        start = Matches(points[sent], around.xy1[sent], np.ones(len(sent)), *sizes, index0=sent)
        end, correlation, deviation = self._slide(start, around.A[sent], pixel0, pixel1)
        sure = self._alike(start.xy1, end, correlation, pixel1) & (deviation < self.config.max_deviation * pixel0)
        return replace(start, xy1=end, confidence=correlation).filter(sure)

    def swapped(self) -> MatchPlacer:
        """The same with the roles of the photos exchanged."""
        return MatchPlacer(*self._photos[::-1], config=self.config)

    def _check_sizes(self, matches: Matches) -> None:
        for photo, size, name in zip(self._photos, (matches.size0, matches.size1), ("image0", "image1")):
            if photo.size != size:
                raise ValueError(f"{name} must have the size {size} that the matches are of, got {photo.size}.")

    def _alike(self, start: np.ndarray, end: np.ndarray, correlation: np.ndarray, pixel1: float) -> np.ndarray:
        """Whether (N,) patches look alike near their first place and inside the photo."""
        inside = ((end > -0.5) & (end < np.subtract(self._photos[1].size, 0.5))).all(1)
        near = np.linalg.norm(end - start, axis=1) < self.config.max_move * pixel1
        return (correlation > self.config.min_correlation) & near & inside

    def _slide(
        self, matches: Matches, A: np.ndarray, pixel0: float, pixel1: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """New ends (N, 2), correlations (N,) and deviations (N,) of matches whose surroundings are bent by A."""
        photo0, photo1 = self._photos
        xy0, start, bend = (torch.from_numpy(v).float().to(photo0.device) for v in (matches.xy0, matches.xy1, A))
        first = max(0, round(math.log2(max(pixel0 / 2, 1e-3))))
        shift = round(math.log2(pixel1 / pixel0))
        pyramid0, pyramid1 = photo0.pictures(first), photo1.pictures(max(0, first + shift))
        found = [torch.zeros(0, 4, device=photo0.device)]
        for k in range(0, len(matches), _AT_ONCE):
            rows = slice(k, k + _AT_ONCE)
            found.append(_placed(pyramid0, pyramid1, shift, xy0[rows], start[rows], bend[rows], self.config))
        columns = torch.cat(found).cpu().numpy()
        return columns[:, :2], columns[:, 2], columns[:, 3]

    def check(self, matches: Matches) -> Matches:
        """The checked ones of the placed matches; all placed ones if too few pass."""
        return self.place(matches).kept(self.config.min_checked)


def place_matches(
    matches: Matches,
    image0: Image,
    image1: Image,
    *,
    config: PhotometricConfig | None = None,
    device: torch.device | None = None,
) -> PlacedMatches:
    """Move the second ends of matches to where the photos look alike.

    Args:
        matches: Matches in pixels of the original photos.
        image0: Photo 0.
        image1: Photo 1.
        config: How it is done.
        device: Where it is computed; default the CPU.

    Raises:
        ValueError: If the photos have other sizes than the matches say.
    """
    return MatchPlacer(image0, image1, config=config, device=device).place(matches)


def checked_matches(
    matches: Matches,
    image0: Image,
    image1: Image,
    *,
    config: PhotometricConfig | None = None,
    device: torch.device | None = None,
) -> Matches:
    """The checked ones of the placed matches; all placed ones if too few pass (arguments as `place_matches`)."""
    return MatchPlacer(image0, image1, config=config, device=device).check(matches)


def model_pixels(matches: Matches) -> tuple[float, float]:
    """Sides of a pixel of the network's input in pixels of both photos, at least 1; 1 if no network saw them."""
    sizes = ((matches.size0, matches.model_size0), (matches.size1, matches.model_size1))
    sides = [1.0 if seen is None else max(1.0, min(size[0] / seen[0], size[1] / seen[1])) for size, seen in sizes]
    return sides[0], sides[1]


# --- pictures ---


class GreyPyramid:
    """A photo in grey at falling sizes, made when they are asked for.

    Args:
        image: The photo.
        device: Where its pictures live; default the CPU.

    Attributes:
        size: (width, height) of the photo.
        device: Where its pictures live.
    """

    def __init__(self, image: Image, device: torch.device | None = None) -> None:
        self.size = image.size
        self.device = device
        self._sharp = _grey(image.pixels, device)
        self._pictures = [_softened(self._sharp)]

    def pictures(self, levels: int) -> list[Tensor]:
        """Pictures (H, W), each half as large as the one before, up to so many after the first; fewer if it is tiny."""
        while len(self._pictures) <= levels and min(self._sharp.shape) >= 2:
            self._sharp = F.avg_pool2d(self._sharp[None, None], 2)[0, 0]
            self._pictures.append(_softened(self._sharp))
        return self._pictures[: levels + 1]


def _grey(pixels: np.ndarray, device: torch.device | None) -> Tensor:
    """(H, W) grey levels of (H, W, 3) bytes."""
    luma = torch.tensor(_LUMA, device=device)
    grey = torch.empty(pixels.shape[:2], device=device)
    for top in range(0, len(grey), _ROWS):
        rows = slice(top, top + _ROWS)
        grey[rows] = torch.from_numpy(pixels[rows].astype(np.float32)).to(device) @ luma
    return grey


def _softened(picture: Tensor) -> Tensor:
    """Blurred by a little, so that gradients reach beyond single pixels."""
    kernel = torch.tensor([0.1, 0.8, 0.1], device=picture.device)
    padded = F.pad(picture[None, None], (1, 1, 1, 1), mode="replicate")
    soft = torch.empty_like(picture)
    for top in range(0, len(soft), _ROWS):
        rows = padded[:, :, top : top + _ROWS + 2]
        soft[top : top + _ROWS] = F.conv2d(F.conv2d(rows, kernel.view(1, 1, 1, 3)), kernel.view(1, 1, 3, 1))[0, 0]
    return soft


def _sample(picture: Tensor, xy: Tensor) -> Tensor:
    """(N, P) bilinear values at (N, P, 2) pixels; outside the picture those of its border."""
    size = torch.tensor([picture.shape[1], picture.shape[0]], device=xy.device)
    grid = (2 * xy + 1) / size - 1
    return F.grid_sample(picture[None, None], grid[None], align_corners=False, padding_mode="border")[0, 0]


def _at_level(xy: Tensor, level: int) -> Tensor:
    """Pixels of the photo as pixels of a picture 2^level times smaller."""
    return (xy + 0.5) / 2**level - 0.5


def _at_photo(xy: Tensor, level: int) -> Tensor:
    return (xy + 0.5) * 2**level - 0.5


# --- placing ---


def _placed(
    pyramid0: list[Tensor],
    pyramid1: list[Tensor],
    shift: int,
    xy0: Tensor,
    xy1: Tensor,
    A: Tensor,
    config: PhotometricConfig,
) -> Tensor:
    """(N, 4): new ends (x, y) in image 1, correlation and deviation at the finest level."""
    window = _Window.of(config.radius, xy0.device)
    correlation = deviation = xy0.new_zeros(len(xy0))
    for level0 in range(len(pyramid0) - 1, -1, -1):
        level1 = min(max(0, level0 + shift), len(pyramid1) - 1)
        stretch = 2.0 ** (level0 - level1)
        patches = _Patches.cut(pyramid0[level0], _at_level(xy0, level0), window)
        place, bend, correlation = patches.slid(
            pyramid1[level1], _at_level(xy1, level1), stretch * A, config.iterations
        )
        xy1, A, deviation = _at_photo(place, level1), bend / stretch, patches.deviation
    return torch.column_stack([xy1, correlation, deviation])


@dataclass(frozen=True, eq=False)
class _Window:
    """Pixels of a patch around its centre, and their weights."""

    offsets: Tensor  # (P, 2)
    weights: Tensor  # (P,) summing to 1
    radius: int

    @classmethod
    def of(cls, radius: int, device: torch.device) -> _Window:
        offsets = _square(radius, device)
        weights = torch.exp(-(offsets**2).sum(-1) / (2 * (0.6 * radius) ** 2))
        return cls(offsets, weights / weights.sum(), radius)

    def normalised(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P) patches of zero mean and unit contrast, and their contrasts (N, 1)."""
        centred = values - (values @ self.weights)[:, None]
        contrast = (centred**2 @ self.weights).sqrt().clamp_min(_FLAT)[:, None]
        return centred / contrast, contrast


def _square(radius: int, device: torch.device) -> Tensor:
    """((2 radius + 1)^2, 2) offsets (x, y), row by row."""
    side = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class _Patches:
    """Patches of image 0 at one level, and what their Gauss-Newton steps need."""

    window: _Window
    values: Tensor  # (N, P) normalised
    steepest: Tensor  # (N, P, 6) derivative by (shift, bend)
    solver: Tensor  # (N, 6, P): from the difference of patches to the step
    deviation: Tensor  # (N,) of the place, in pixels of the level

    @classmethod
    def cut(cls, picture: Tensor, xy: Tensor, window: _Window) -> _Patches:
        """The patches around (N, 2) pixels of a picture (H, W)."""
        side = 2 * window.radius + 3
        wide = _sample(picture, xy[:, None] + _square(window.radius + 1, xy.device)).view(-1, side, side)
        values, contrast = window.normalised(wide[:, 1:-1, 1:-1].flatten(1))
        dx, dy = (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2, (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2
        slope = torch.stack([dx.flatten(1), dy.flatten(1)], dim=-1) / contrast[..., None]
        slope = slope - torch.einsum("npi,p->ni", slope, window.weights)[:, None]
        bend = slope[..., :, None] * (window.offsets / window.radius)[:, None, :]
        steepest = torch.cat([slope, bend.flatten(2)], dim=-1)
        weighted = steepest * window.weights[:, None]
        curvature = weighted.mT @ steepest
        mean = curvature.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(1e-9)[:, None, None]
        damped = curvature + mean * torch.diag(torch.tensor(_DAMPING, device=xy.device))
        covariance = torch.linalg.inv(curvature + 1e-6 * mean * torch.eye(6, device=xy.device))
        spread = covariance[:, :2, :2].diagonal(dim1=1, dim2=2).sum(-1).clamp_min(0)
        deviation = (spread * (window.weights**2).sum()).sqrt() * _NOISE / contrast[:, 0]
        return cls(window, values, steepest, torch.linalg.solve(damped, weighted.mT), deviation)

    def slid(self, picture: Tensor, xy: Tensor, A: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        """Place (N, 2), bend (N, 2, 2) and correlation (N,) in image 1; the first ones where steps do not help."""
        place, bend = xy, A
        for _ in range(iterations):
            step = (self.solver @ (self._seen(picture, place, bend) - self.values)[..., None])[..., 0]
            change = (step[:, 2:].view(-1, 2, 2) / self.window.radius).clamp(-_LARGEST_BEND, _LARGEST_BEND)
            bend = bend @ torch.linalg.inv(torch.eye(2, device=xy.device) + change)
            place = place - (bend @ step[:, :2, None].clamp(-_LARGEST_STEP, _LARGEST_STEP))[..., 0]
        before, after = (self._correlation(picture, *at) for at in ((xy, A), (place, bend)))
        better = (after >= before) & place.isfinite().all(1)
        place = torch.where(better[:, None], place, xy)
        return place, torch.where(better[:, None, None], bend, A), torch.where(better, after, before)

    def _seen(self, picture: Tensor, place: Tensor, bend: Tensor) -> Tensor:
        """Normalised patches of image 1, deformed."""
        return self.window.normalised(_sample(picture, place[:, None] + self.window.offsets @ bend.mT))[0]

    def _correlation(self, picture: Tensor, place: Tensor, bend: Tensor) -> Tensor:
        return (self._seen(picture, place, bend) * self.values) @ self.window.weights


# --- points worth matching ---


def textured_points(photo: GreyPyramid, spacing: float, *, pixel: float = 1.0) -> np.ndarray:
    """The points of a photo whose place its texture tells best, one in every cell of a grid.

    Args:
        photo: The photo.
        spacing: Side of a cell in pixels of the photo.
        pixel: Side of a pixel of the network's input; the texture is looked at about four times as fine.

    Returns:
        (K, 2) float64 pixels of the photo, row by row of cells; cells without any texture have none.
    """
    level = max(0, round(math.log2(max(pixel / 4, 1.0))))
    pictures = photo.pictures(level)
    level = len(pictures) - 1
    picture = pictures[level]
    worth = _least_curvature(picture)
    size = max(2, round(spacing / 2**level))
    height, width = (side // size * size for side in picture.shape)
    if not height or not width:
        return np.zeros((0, 2))
    cells = worth[:height, :width].view(height // size, size, width // size, size).transpose(1, 2).flatten(2)
    best, place = cells.max(2)
    row, column = torch.meshgrid(*(torch.arange(n, device=picture.device) for n in best.shape), indexing="ij")
    y, x = row * size + place // size, column * size + place % size
    chosen = best > _FLAT
    return _at_photo(torch.stack([x[chosen], y[chosen]], dim=-1).double(), level).cpu().numpy()


def _least_curvature(picture: Tensor) -> Tensor:
    """(H, W) smaller eigenvalue of the structure tensor (Shi and Tomasi, 1994), 0 at the border."""
    inner = picture[1:-1, 1:-1]
    dx, dy = (picture[1:-1, 2:] - picture[1:-1, :-2]) / 2, (picture[2:, 1:-1] - picture[:-2, 1:-1]) / 2
    products = torch.stack([dx * dx, dx * dy, dy * dy])[:, None]
    xx, xy, yy = F.avg_pool2d(products, 7, stride=1, padding=3)[:, 0] if inner.numel() else products[:, 0]
    least = (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt()
    border = _BORDER - 1
    least[:border], least[-border:], least[:, :border], least[:, -border:] = 0, 0, 0, 0
    return F.pad(least, (1, 1, 1, 1))
