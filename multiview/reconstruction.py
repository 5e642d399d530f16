"""What the library knows about many images after looking at them together."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.archive import image_summary, images_from, scene_arrays, tracks_from
from multiview.colmap_model import read_model, write_model
from multiview.display import reconstruction_html
from multiview.export import CAMERA_COLORS, DrawnCamera, Surface, points_surface, write_glb, write_ply
from multiview.files import atomic_write, read_npz, write_npz
from multiview.gravity import DOWN, estimate_gravity
from multiview.nerfstudio import write_transforms
from multiview.plots import scene_figure
from multiview.poses import Pose
from multiview.reconstructed_image import ImageStatus, ReconstructedImage
from multiview.similarity import (
    ScaleStatus,
    Similarity,
    check_scale_status,
    rotation_between,
    similarity_from_poses,
)
from multiview.tracks import Tracks
from multiview.trajectory import write_tum

if TYPE_CHECKING:
    import PIL.Image

logger = logging.getLogger(__name__)

__all__ = ["ImageStatus", "ReconstructedImage", "Reconstruction", "ScaleStatus", "Tracks"]

PixelOf = tuple[str, tuple[float, float]]
"""A place in an image: its name and (x, y) in original pixels."""

_FORMAT = "multiview.Reconstruction/1"
_NEAR_SHARE = 0.01  # of the longer side: so near an observation must be to stand for a pixel


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Cameras and points of many images.

    Attributes:
        images: All images that were asked for, failed ones too.
        tracks: Sparse points seen in several images; may be empty.
        scale_status: Where the unit of length comes from.
        timings: Seconds spent per step, by name.

    Raises:
        ValueError: If names repeat, or a track was observed in an image that is not registered.
    """

    images: tuple[ReconstructedImage, ...]
    tracks: Tracks
    scale_status: ScaleStatus
    timings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_scale_status(self.scale_status)
        object.__setattr__(self, "images", tuple(self.images))
        repeated = [name for name, count in Counter(image.name for image in self.images).items() if count > 1]
        if repeated:
            raise ValueError(f"Every image of a Reconstruction needs a name of its own, {repeated[0]!r} repeats.")
        seen = np.unique(self.tracks.image_index)
        if len(seen) and seen[-1] >= len(self.images):
            raise ValueError(f"Tracks were observed in image {seen[-1]}, there are only {len(self.images)} images.")
        if not set(seen.tolist()) <= set(self.registered):
            missing = self.images[min(set(seen.tolist()) - set(self.registered))].name
            raise ValueError(f"Tracks were observed in image {missing!r}, which is not registered.")

    def __len__(self) -> int:
        return len(self.images)

    def image(self, name: str) -> ReconstructedImage:
        """The image of this name.

        Raises:
            ValueError: If there is none.
        """
        return self.images[self._index(name)]

    @property
    def registered(self) -> tuple[int, ...]:
        """Positions of the registered images in `images`."""
        return tuple(i for i, image in enumerate(self.images) if image.registered)

    @property
    def poses(self) -> dict[str, Pose]:
        """Pose (world_from_cam) of every registered image, by name."""
        return {image.name: image.pose for image in self.images if image.pose is not None}

    @property
    def components(self) -> tuple[int, ...]:
        """Numbers of the connected components that have registered images, ascending."""
        return tuple(sorted({self.images[i].component for i in self.registered}))

    def part(self, component: int) -> Reconstruction:
        """One connected component; images of others count as failed.

        Raises:
            ValueError: If no image belongs to it.
        """
        if component not in self.components:
            raise ValueError(f"component must be one of {self.components}, got {component}.")
        kept = [image.registered and image.component == component for image in self.images]
        observed = np.array(kept, dtype=bool)[self.tracks.image_index]
        images = tuple(
            image if keep or not image.registered else _left_out(image) for image, keep in zip(self.images, kept)
        )
        return replace(self, images=images, tracks=self.tracks.filter_observations(observed))

    def points(self, confidence_percentile: float = 20.0, *, component: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The points of one component: of its pointmaps, or of its tracks if it has no pointmaps.

        Args:
            confidence_percentile: Share of each pointmap's points to leave out, least confident first.
            component: Which component; each has its own world.

        Returns:
            (P, 3) float32 points in the world and (P, 3) uint8 RGB colours.
        """
        points, colors = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.uint8)]
        for image in self._members(component):
            if image.pointmap is not None and image.model_colors is not None:
                mask = image.pointmap.confident(confidence_percentile)
                points.append(image.pointmap.points[mask])
                colors.append(image.model_colors[mask])
        if len(points) == 1 and len(self.tracks) and component in self.components:
            tracks = self.part(component).tracks
            return tracks.points.astype(np.float32), tracks.colors
        return np.concatenate(points), np.concatenate(colors)

    def point_at(self, name: str, xy: tuple[float, float]) -> np.ndarray:
        """The world point behind an original pixel of an image.

        It comes from the pointmap (see `ReconstructedImage.point_at`), without one from the tracked point
        observed nearest to the pixel, at most 1 % of the longer side away.

        Returns:
            (3,) float64.

        Raises:
            ValueError: If there is no such image or no point at this pixel.
        """
        i = self._index(name)
        image, here = self.images[i], np.flatnonzero(self.tracks.image_index == i)
        if image.pointmap is not None or not len(here):
            return image.point_at(xy)
        distance = np.linalg.norm(self.tracks.xy[here] - np.asarray(xy, dtype=np.float64), axis=1)
        if distance.min() > _NEAR_SHARE * max(image.size):
            raise ValueError(f"Image {name!r} has no tracked point near pixel {tuple(map(float, xy))}.")
        return self.tracks.points[self.tracks.point_index[here[distance.argmin()]]]

    def transformed(
        self, scale: float = 1.0, R: np.ndarray | None = None, t: np.ndarray | None = None
    ) -> Reconstruction:
        """The same scene in another world: `x_new = scale * R @ x + t`, for every component.

        Args:
            scale: Positive factor of lengths; the scale status stays as it is, see `rescale`.
            R: (3, 3) rotation; default none.
            t: (3,) translation in the new unit; default none.
        """
        similarity = Similarity(scale, np.eye(3) if R is None else R, np.zeros(3) if t is None else t)
        images = tuple(image.transformed(similarity) for image in self.images)
        return replace(self, images=images, tracks=self.tracks.transformed(similarity))

    def rescale(
        self,
        *,
        known_distance: tuple[PixelOf, PixelOf, float] | None = None,
        poses: Mapping[str, Pose] | None = None,
    ) -> Reconstruction:
        """The scene in metres that the user knows. Give one of the two; it needs a single component (`part`).

        Args:
            known_distance: `((name_a, (x, y)), (name_b, (x, y)), metres)`: two points in original pixels
                (see `point_at`) and their distance. Lengths change, nothing turns or moves but by
                this factor.
            poses: Known world_from_cam in metres of at least two images, by name; the scene is brought into
                their world by a least-squares similarity.

        Returns:
            The scene with scale status "metric-given".

        Raises:
            ValueError: If what is given does not determine a scale.
        """
        if (known_distance is None) == (poses is None):
            raise ValueError("rescale() takes either known_distance or poses.")
        if len(self.components) != 1:
            raise ValueError(
                f"The reconstruction has {len(self.components)} components of unrelated scale; "
                "choose one with part(component) first."
            )
        if poses is not None:
            similarity = self._similarity_to(poses)
        elif known_distance is not None:
            similarity = Similarity(self._scale_to(*known_distance), np.eye(3), np.zeros(3))
        moved = self.transformed(similarity.scale, similarity.R, similarity.t)
        return replace(moved, scale_status="metric-given")

    def align(self, gravity: np.ndarray | None = None) -> Reconstruction:
        """Turn the scene so that gravity points along +y: y down, as in OpenCV's camera axes.

        The turn is the smallest that does this and goes about the origin.

        Args:
            gravity: (3,) direction of gravity in the present world. None estimates it for every component
                from the cameras' x axes, which photographers keep level, and from level surfaces.

        Raises:
            ValueError: If the direction is zero, no image is registered, or one direction is given for
                several components.
        """
        if not self.registered:
            raise ValueError("There is no registered image to align.")
        if gravity is not None:
            direction = np.asarray(gravity, dtype=np.float64).reshape(-1)
            if direction.shape != (3,) or not np.isfinite(direction).all() or not direction.any():
                raise ValueError(f"gravity must be a direction of three finite numbers, got {direction.tolist()}.")
            if len(self.components) != 1:
                raise ValueError(
                    f"The reconstruction has {len(self.components)} components with a world each; "
                    "choose one with part(component), or leave gravity out."
                )
            return self.transformed(R=rotation_between(direction, DOWN))
        turns = {
            component: Similarity(1.0, rotation_between(estimate_gravity(self._members(component)), DOWN), np.zeros(3))
            for component in self.components
        }
        return self._turned(turns)

    def summary(self) -> dict[str, Any]:
        """Everything but the arrays, as plain JSON values."""
        return {
            "format": _FORMAT,
            "scale_status": self.scale_status,
            "num_images": len(self.images),
            "num_registered": len(self.registered),
            "num_components": len(self.components),
            "num_points": len(self.tracks),
            "num_observations": len(self.tracks.point_index),
            "timings": {name: float(value) for name, value in self.timings.items()},
            "images": [image_summary(image) for image in self.images],
        }

    def surfaces(self, confidence_percentile: float = 20.0, *, component: int = 0) -> list[Surface]:
        """The pointmaps of one component to draw, or its tracks if it has no pointmaps (see `points`)."""
        members = self._members(component)
        found = [
            Surface(
                image.pointmap.points,
                image.model_colors,
                image.pointmap.confident(confidence_percentile),
                image.pose.center,
            )
            for image in members
            if image.pointmap is not None and image.model_colors is not None and image.pose is not None
        ]
        if found or not members:
            return found
        centers = [image.pose.center for image in members if image.pose is not None]
        points, colors = self.points(confidence_percentile, component=component)
        return [points_surface(points, colors, np.mean(centers, axis=0))]

    def drawn_cameras(self, *, component: int = 0) -> list[DrawnCamera]:
        """The cameras of one component to draw."""
        return [
            DrawnCamera(image.camera, image.pose, CAMERA_COLORS[i % len(CAMERA_COLORS)])
            for i, image in enumerate(self._members(component))
            if image.camera is not None and image.pose is not None
        ]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        confidence_percentile: float = 20.0,
        as_mesh: bool = False,
        camera_size: float | None = None,
        draw_cameras: bool | None = None,
        component: int = 0,
    ) -> Path:
        """Write the scene; the name chooses the form. Files appear complete or not at all.

        Args:
            path: `.npz`: everything, see `load`. `.json`: `summary()`, but `transforms.json` is nerfstudio's
                form with a point cloud beside it. `.tum`: the camera trajectory. `.glb`: coloured points (or
                meshes) and cameras, y up after `align`. `.ply`: coloured points, OpenCV axes. A folder (a
                name without suffix): a binary COLMAP model, see `to_colmap`.
            confidence_percentile: .glb, .ply and transforms.json leave out this share of each pointmap's
                points, least confident first.
            as_mesh: .glb: triangles between neighbouring pixels in place of points.
            camera_size: .glb and .ply: length of the drawn cameras; default a tenth of the median distance
                of the points from their cameras.
            draw_cameras: Whether to draw cameras; default in .glb yes, in .ply no.
            component: Which connected component; .npz and .json hold all of them.

        Returns:
            The path.

        Raises:
            ValueError: If the name is none of these or there is nothing to write.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return write_npz(path, summary=json.dumps(self.summary()), **scene_arrays(self.images, self.tracks))
        if suffix == ".json" and path.name != "transforms.json":
            with atomic_write(path) as file:
                file.write(json.dumps(self.summary(), indent=2).encode())
            return path
        if not suffix or path.is_dir():
            return self.to_colmap(path, component=component)
        members = self._exported(component)
        if suffix == ".json":
            return write_transforms(path, members, *self.points(confidence_percentile, component=component))
        if suffix == ".tum":
            return write_tum(path, {image.name: image.pose for image in members if image.pose is not None})
        if suffix not in (".glb", ".ply"):
            raise ValueError(
                f"A Reconstruction is saved as .npz, .json, .tum, .glb, .ply or a folder, got {path.name!r}."
            )
        surfaces = self.surfaces(confidence_percentile, component=component)
        draw = suffix == ".glb" if draw_cameras is None else draw_cameras
        cameras = self.drawn_cameras(component=component) if draw else []
        if suffix == ".ply":
            return write_ply(path, surfaces, cameras, camera_size=camera_size)
        return write_glb(path, surfaces, cameras, as_mesh=as_mesh, camera_size=camera_size)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reconstruction:
        """Read a .npz file that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file.
        """
        arrays = read_npz(path)
        try:
            summary = json.loads(str(arrays["summary"]))
            if summary["format"] != _FORMAT:
                raise ValueError(f"format {summary['format']!r}, expected {_FORMAT!r}")
            images = images_from(summary["images"], arrays)
            return cls(images, tracks_from(arrays), summary["scale_status"], summary["timings"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} is not a .npz file written by Reconstruction.save ({error}).") from error

    def to_colmap(self, folder: str | os.PathLike[str], *, binary: bool = True, component: int = 0) -> Path:
        """Write a COLMAP model: cameras at original resolution, poses and tracks.

        Args:
            folder: Target folder; files in it that are no part of the model stay.
            binary: Binary or text files.
            component: Which connected component.

        Returns:
            The folder.

        Raises:
            ValueError: If no image is registered.
            ImportError: If pycolmap is not installed.
        """
        self._exported(component)
        part = self.part(component)
        return write_model(folder, part.images, part.tracks, binary=binary)

    @classmethod
    def from_colmap(cls, folder: str | os.PathLike[str], *, scale_status: ScaleStatus = "arbitrary") -> Reconstruction:
        """Read a COLMAP model, binary or text.

        Args:
            folder: Folder with cameras, images and points3D.
            scale_status: What is known of its unit of length, which COLMAP does not say.

        Raises:
            ValueError: If there is no model or it has camera models without a counterpart.
            ImportError: If pycolmap is not installed.
        """
        images, tracks = read_model(folder)
        return cls(images, tracks, scale_status)

    def plot(self, *, confidence_percentile: float = 20.0, component: int = 0, height: int = 480) -> PIL.Image.Image:
        """The scene from above and from the side with its cameras, as a picture (see `plots.scene_figure`)."""
        points, colors = self.points(confidence_percentile, component=component)
        return scene_figure(points, colors, self.drawn_cameras(component=component), height=height)

    def _exported(self, component: int) -> list[ReconstructedImage]:
        """The images of one component; says so if others are left out."""
        if not self.registered:
            raise ValueError("There is no registered image to export.")
        if component not in self.components:
            raise ValueError(f"component must be one of {self.components}, got {component}.")
        if len(self.components) > 1:
            logger.warning("Component %d of %s is exported; each has a world of its own.", component, self.components)
        return self._members(component)

    def _members(self, component: int) -> list[ReconstructedImage]:
        return [image for image in self.images if image.registered and image.component == component]

    def _index(self, name: str) -> int:
        for i, image in enumerate(self.images):
            if image.name == name:
                return i
        raise ValueError(
            f"There is no image named {name!r}; names are like {self.images[0].name!r}."
            if self.images
            else f"There is no image named {name!r}: the reconstruction is empty."
        )

    def _scale_to(self, a: PixelOf, b: PixelOf, metres: float) -> float:
        """Factor that makes two points `metres` apart."""
        if not (np.isfinite(metres) and metres > 0):
            raise ValueError(f"The known distance must be a positive number of metres, got {metres}.")
        distance = float(np.linalg.norm(self.point_at(*a) - self.point_at(*b)))
        if distance == 0:
            raise ValueError(f"The points {a} and {b} are the same point, so their distance gives no scale.")
        return metres / distance

    def _similarity_to(self, poses: Mapping[str, Pose]) -> Similarity:
        known = [(image.pose, poses[image.name]) for image in self.images if image.pose and image.name in poses]
        for name in poses:
            self._index(name)
        if len(known) < 2:
            raise ValueError(f"rescale() needs known poses of at least two registered images, got {len(known)}.")
        return similarity_from_poses([pose for pose, _ in known], [target for _, target in known])

    def _turned(self, turns: Mapping[int, Similarity]) -> Reconstruction:
        """Each component by its own map; a point goes with the images that observe it."""
        images = tuple(
            image.transformed(turns[image.component]) if image.registered else image for image in self.images
        )
        points = self.tracks.points.copy()
        component = np.array([image.component for image in self.images], dtype=np.int64)[self.tracks.image_index]
        for number, similarity in turns.items():
            chosen = np.unique(self.tracks.point_index[component == number])
            points[chosen] = similarity.apply(self.tracks.points[chosen])
        return replace(self, images=images, tracks=replace(self.tracks, points=points))

    def __repr__(self) -> str:
        components = f" in {len(self.components)} components" if len(self.components) > 1 else ""
        maps = sum(image.pointmap is not None for image in self.images)
        return (
            f"Reconstruction({len(self.registered)} of {len(self.images)} images registered{components}, "
            f"{maps} pointmaps, {len(self.tracks)} tracked points, scale {self.scale_status}, "
            f"{sum(self.timings.values()):.2f} s)"
        )

    def _repr_html_(self) -> str:
        return reconstruction_html(self)


def _left_out(image: ReconstructedImage) -> ReconstructedImage:
    reason = f"It belongs to component {image.component}, which was left out."
    return ReconstructedImage(image.name, image.size, "failed", reason, image.path)
