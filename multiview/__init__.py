"""The vocabulary of multi-view geometry.

Images, cameras, poses, pointmaps, matches, results, reconstructions, robust estimators, metrics, exporters and
plots. It knows no networks. Heavy packages (trimesh, matplotlib, poselib, pycolmap, h5py) are imported when a
function needs them.
"""

from __future__ import annotations

from multiview.cameras import Camera
from multiview.images import Image, ImageError, ImageTransform, as_image, read_image
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction, Tracks
from multiview.results import PairResult

__all__ = [
    "Camera",
    "Image",
    "ImageError",
    "ImageTransform",
    "Matches",
    "PairResult",
    "Pointmap",
    "Pose",
    "ReconstructedImage",
    "Reconstruction",
    "Tracks",
    "as_image",
    "read_image",
]
