"""What the library knows about two images after looking at them together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.cameras import Camera
from multiview.display import pair_html
from multiview.export import CAMERA_COLORS, DrawnCamera, Surface, write_glb, write_ply
from multiview.files import atomic_write, read_npz, write_npz
from multiview.images import Image, ImageTransform, resample
from multiview.matches import Matches
from multiview.plots import pair_figure
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstructed_image import ReconstructedImage
from multiview.reconstruction import Reconstruction
from multiview.similarity import ScaleStatus, check_scale_status
from multiview.track_building import tracks_from_matches
from multiview.tracks import Tracks
from multiview.triangulation import triangulate_tracks

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["PairResult", "ScaleStatus"]

_FORMAT = "multiview.PairResult/1"


@dataclass(frozen=True, eq=False)
class PairResult:
    """Geometry of two images. Camera 0 defines the frame; "0" and "1" name the images.

    Attributes:
        images: Both images, upright, at original resolution.
        transforms: For each image the map from original to model pixels.
        pointmaps: Points of both images at model resolution, BOTH in camera 0's frame.
        matches: Correspondences in original pixels.
        cameras: Intrinsics of both images in ORIGINAL pixels.
        pose1: Pose of camera 1 in camera 0's frame, in the unit of the pointmaps; None if none could be
            estimated.
        num_inliers: Number of matches that agree with `pose1`.
        scale_status: Where the unit of length comes from.
        own_pointmap1: Points of image 1 in camera 1's own frame, if the network was also run the other way
            round.
        timings: Seconds spent per step, by name.

    Raises:
        ValueError: If the scale status is unknown or sizes contradict each other.
    """

    images: tuple[Image, Image]
    transforms: tuple[ImageTransform, ImageTransform]
    pointmaps: tuple[Pointmap, Pointmap]
    matches: Matches
    cameras: tuple[Camera, Camera]
    pose1: Pose | None
    num_inliers: int
    scale_status: ScaleStatus
    own_pointmap1: Pointmap | None = None
    timings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_scale_status(self.scale_status)
        for i in (0, 1):
            original = (
                self.images[i].size,
                self.transforms[i].size_from,
                (self.cameras[i].width, self.cameras[i].height),
            )
            if len(set(original)) != 1:
                raise ValueError(f"Image, transform and camera {i} must have one original size, got {original}.")
            if self.transforms[i].size_to != self.pointmaps[i].size:
                raise ValueError(
                    f"Pointmap {i} has size {self.pointmaps[i].size}, "
                    f"its transform leads to {self.transforms[i].size_to}."
                )

    @property
    def pose0(self) -> Pose:
        """Pose of camera 0: the identity."""
        return Pose.identity()

    @property
    def poses(self) -> tuple[Pose, Pose | None]:
        """Poses of both cameras in camera 0's frame."""
        return self.pose0, self.pose1

    @property
    def confidences(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) confidence of both pointmaps (see `Pointmap.confidence`)."""
        return self.pointmaps[0].confidence, self.pointmaps[1].confidence

    @property
    def baseline(self) -> float | None:
        """Distance of the cameras, in metres if the scale is metric."""
        return None if self.pose1 is None else float(np.linalg.norm(self.pose1.center))

    def colors(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB colours of pointmap `i`."""
        return resample(self.images[i], self.transforms[i])

    def depth(self, i: int) -> np.ndarray:
        """Depth map of image `i` in its own camera.

        Args:
            i: 0 or 1.

        Returns:
            (H, W) float32 z at model resolution, in the unit of the pointmaps.

        Raises:
            ValueError: If it is asked for image 1 and neither its own pointmap nor its pose is known.
        """
        if i == 0:
            return self.pointmaps[0].points[..., 2]
        if self.own_pointmap1 is not None:
            return self.own_pointmap1.points[..., 2]
        if self.pose1 is None:
            raise ValueError("The depth of image 1 needs its pose, which could not be estimated for this pair.")
        return self.pose1.inverse().apply(self.pointmaps[1].points)[..., 2].astype(np.float32)

    def surfaces(self, confidence_percentile: float = 20.0) -> list[Surface]:
        """Both pointmaps to draw, without the least confident share of each."""
        centers = (np.zeros(3), np.zeros(3) if self.pose1 is None else self.pose1.center)
        return [
            Surface(pointmap.points, self.colors(i), pointmap.confident(confidence_percentile), centers[i])
            for i, pointmap in enumerate(self.pointmaps)
        ]

    def drawn_cameras(self) -> list[DrawnCamera]:
        """The cameras whose poses are known, to draw."""
        views = zip(self.cameras, self.poses, CAMERA_COLORS)
        return [DrawnCamera(camera, pose, color) for camera, pose, color in views if pose is not None]

    def to_reconstruction(self, names: tuple[str, str] | None = None) -> Reconstruction:
        """The pair as a reconstruction of two images; the matches become tracks, triangulated.

        Args:
            names: Names of the images; default their files' names, or "image0" and "image1".

        Returns:
            A reconstruction in camera 0's frame. Without `pose1`, image 1 is failed and there are no tracks.
        """
        names = self._names() if names is None else names
        images = tuple(self._reconstructed(i, name) for i, name in enumerate(names))
        tracks = Tracks.empty()
        if self.pose1 is not None:
            tracks = triangulate_tracks(images, tracks_from_matches(names, {names: self.matches}))
        return Reconstruction(images, tracks, self.scale_status, self.timings)

    def to_colmap(self, folder: str | os.PathLike[str], *, binary: bool = True) -> Path:
        """Write a COLMAP model of both cameras and the triangulated matches (see `Reconstruction.to_colmap`)."""
        return self.to_reconstruction().to_colmap(folder, binary=binary)

    def summary(self) -> dict[str, Any]:
        """Everything but the arrays, as plain JSON values."""
        return {
            "format": _FORMAT,
            "scale_status": self.scale_status,
            "num_matches": len(self.matches),
            "num_inliers": int(self.num_inliers),
            "baseline": self.baseline,
            "pose1_world_from_cam": None if self.pose1 is None else self.pose1.world_from_cam.tolist(),
            "timings": {name: float(value) for name, value in self.timings.items()},
            "views": [self._view_summary(i) for i in (0, 1)],
        }

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        confidence_percentile: float = 20.0,
        as_mesh: bool = False,
        camera_size: float | None = None,
    ) -> Path:
        """Write the result; the suffix chooses the form. The file appears complete or not at all.

        Args:
            path: `.glb`: coloured points (or a mesh) and both cameras, y up and camera 0 looking along -z.
                `.ply`: coloured points in camera 0's frame, OpenCV axes. `.npz`: everything, see `load`.
                `.json`: `summary()`.
            confidence_percentile: .glb and .ply leave out this share of each map's points, least confident
                first.
            as_mesh: .glb: triangles between neighbouring pixels, visible from both sides, in place of points.
            camera_size: .glb: length of the drawn cameras; default a tenth of the median distance of the
                points.

        Returns:
            The path.

        Raises:
            ValueError: If the suffix is none of these or no point is left to draw.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return write_npz(path, **self._arrays())
        if suffix == ".json":
            text = json.dumps(self.summary(), indent=2)
            with atomic_write(path) as file:
                file.write(text.encode())
            return path
        if suffix not in (".glb", ".ply"):
            raise ValueError(f"A PairResult is saved as .glb, .ply, .npz or .json, got {path.name!r}.")
        surfaces = self.surfaces(confidence_percentile)
        if suffix == ".ply":
            return write_ply(path, surfaces)
        return write_glb(path, surfaces, self.drawn_cameras(), as_mesh=as_mesh, camera_size=camera_size)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PairResult:
        """Read a .npz file that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file.
        """
        arrays = read_npz(path)
        try:
            return _from_arrays(arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a .npz file written by PairResult.save ({error}).") from error

    def plot(self, *, height: int = 300, limit: int = 200) -> PIL.Image.Image:
        """Colours, depth and confidence of both images, and their matches (see `plots.pair_figure`)."""
        return pair_figure(self, height=height, limit=limit)

    def _names(self) -> tuple[str, str]:
        name0, name1 = (image.path.name if image.path else f"image{i}" for i, image in enumerate(self.images))
        if name0 != name1:
            return name0, name1
        # One folder's name more tells a/x.jpg from b/x.jpg; the same file twice needs a number.
        long0, long1 = ("/".join(image.path.parts[-2:]) if image.path else "" for image in self.images)
        return (long0, long1) if long0 != long1 else (f"0/{name0}", f"1/{name1}")

    def _reconstructed(self, i: int, name: str) -> ReconstructedImage:
        image, pose = self.images[i], self.poses[i]
        if pose is None:
            reason = "Its pose relative to the other image could not be estimated from the matches."
            return ReconstructedImage(name, image.size, "failed", reason, image.path)
        return ReconstructedImage(
            name,
            image.size,
            "registered",
            path=image.path,
            camera=self.cameras[i],
            pose=pose,
            pointmap=self.pointmaps[i],
            transform=self.transforms[i],
            colors=self.colors(i),
        )

    def _view_summary(self, i: int) -> dict[str, Any]:
        image, camera = self.images[i], self.cameras[i]
        return {
            "path": str(image.path) if image.path else None,
            "size": list(image.size),
            "model_size": list(self.transforms[i].size_to),
            "model_from_original": self.transforms[i].matrix.tolist(),
            "K": camera.K.tolist(),
            "camera_model": camera.model,
            "distortion": list(camera.distortion),
            "frame": self.pointmaps[i].frame,
        }

    def _arrays(self) -> dict[str, Any]:
        """The content of the .npz form."""
        arrays: dict[str, Any] = {"summary": json.dumps(self.summary())}
        for i in (0, 1):
            arrays[f"image{i}"] = self.images[i].pixels
            arrays[f"points{i}"] = self.pointmaps[i].points
            arrays[f"confidence{i}"] = self.pointmaps[i].confidence
            arrays[f"xy{i}"] = getattr(self.matches, f"xy{i}")
        arrays["match_confidence"] = self.matches.confidence
        if self.own_pointmap1 is not None:
            arrays["own_points1"] = self.own_pointmap1.points
            arrays["own_confidence1"] = self.own_pointmap1.confidence
        return arrays

    def _repr_html_(self) -> str:
        return pair_html(self)

    def __repr__(self) -> str:
        (w0, h0), (w1, h1) = (image.size for image in self.images)
        unit = "" if self.scale_status == "arbitrary" else " m"
        pose = "no pose"
        if self.pose1 is not None:
            pose = f"baseline {self.baseline:.3g}{unit}, rotation {self.pose1.angle_deg:.1f} deg"
        focals = ", ".join(f"{camera.focal[0]:.0f}" for camera in self.cameras)
        model = " and ".join(f"{width}x{height}" for width, height in (m.size for m in self.pointmaps))
        return (
            f"PairResult(images {w0}x{h0} and {w1}x{h1}, pointmaps {model}, {len(self.matches)} matches, "
            f"{self.num_inliers} inliers, {pose}, focals {focals} px, scale {self.scale_status}, "
            f"{sum(self.timings.values()):.2f} s)"
        )


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> PairResult:
    """Inverse of `PairResult._arrays`."""
    summary = json.loads(str(arrays["summary"]))
    if summary["format"] != _FORMAT:
        raise ValueError(f"format {summary['format']!r}, expected {_FORMAT!r}")
    views = summary["views"]
    (size0, size1), (model_size0, model_size1) = ([tuple(view[k]) for view in views] for k in ("size", "model_size"))
    images = [Image(arrays[f"image{i}"], Path(view["path"]) if view["path"] else None) for i, view in enumerate(views)]
    cameras = [
        Camera(np.array(v["K"]), v["size"][0], v["size"][1], v["camera_model"], tuple(v["distortion"])) for v in views
    ]
    transforms = [
        ImageTransform(np.array(view["model_from_original"]), size, model_size)
        for view, size, model_size in zip(views, (size0, size1), (model_size0, model_size1))
    ]
    maps = [Pointmap(arrays[f"points{i}"], arrays[f"confidence{i}"], view["frame"]) for i, view in enumerate(views)]
    own = None
    if "own_points1" in arrays:
        own = Pointmap(arrays["own_points1"], arrays["own_confidence1"], "camera 1")
    pose = summary["pose1_world_from_cam"]
    return PairResult(
        images=(images[0], images[1]),
        transforms=(transforms[0], transforms[1]),
        pointmaps=(maps[0], maps[1]),
        matches=Matches(
            arrays["xy0"], arrays["xy1"], arrays["match_confidence"], size0, size1, model_size0, model_size1
        ),
        cameras=(cameras[0], cameras[1]),
        pose1=None if pose is None else Pose(np.array(pose)),
        num_inliers=summary["num_inliers"],
        scale_status=summary["scale_status"],
        own_pointmap1=own,
        timings=summary["timings"],
    )
