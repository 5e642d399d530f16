"""The official entry point of image retrieval: files in, a matrix of similarities out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dust3r.checkpoint import CheckpointError
from dust3r.utils.image import HEIF_SUFFIXES, IMAGE_SUFFIXES
from mast3r.model import AsymmetricMASt3R
from mast3r.retrieval.asmk import AsmkConfig, asmk_similarity
from mast3r.retrieval.codebook import Codebook, codebook_path
from mast3r.retrieval.model import extract_local_features, load_retrieval_model, read_retrieval_config
from multiview.images import ImageError, ImageSource

ImageList = str | os.PathLike[str] | Sequence[ImageSource]


class Retriever:
    """Similarity of images by the official retrieval network and its codebook.

    Args:
        modelname: Retrieval checkpoint `<prefix>_<name>.pth`; the codebook `<prefix>_codebook.pkl` lies beside it.
        backbone: The MASt3R network it was trained on; None loads the one the checkpoint names.
        device: Where to run; None for the device of `backbone`.

    Raises:
        CheckpointError: If a file is missing, damaged, unsafe, or the parts do not fit together.
    """

    def __init__(
        self,
        modelname: str | os.PathLike[str],
        backbone: AsymmetricMASt3R | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        path = Path(modelname)
        if backbone is None:
            backbone = AsymmetricMASt3R.from_pretrained(_backbone_name(path))
        if device is not None:
            backbone = backbone.to(device)
        self.model, self.config = load_retrieval_model(path, backbone)
        self.codebook = Codebook.load(codebook_path(path)).to(next(backbone.parameters()).device)
        width = self.model.out_dim
        if self.codebook.dim != width:
            raise CheckpointError(
                f"the codebook {codebook_path(path)} has {self.codebook.dim} channels, {path} makes {width}; "
                "download both again."
            )
        self.asmk = AsmkConfig()

    def __call__(
        self, input_imdir_or_imlistfile: ImageList, outfile: str | os.PathLike[str] | None = None
    ) -> np.ndarray:
        """Compare every image with every other one.

        Args:
            input_imdir_or_imlistfile: A folder (its images in name order), a text file with one path per line
                (relative to it or absolute), or a list of images.
            outfile: Also write the matrix to this `.npy` file.

        Returns:
            (n, n) float64, row = query; larger is more alike. Not symmetric, and the diagonal is not 1.

        Raises:
            ImageError: If there is no image or one cannot be read.
        """
        images = image_list(input_imdir_or_imlistfile)
        features, owners = extract_local_features(self.model, images, self.config.imsize)
        per_image = [features[owners == position] for position in range(len(images))]
        scores = asmk_similarity(per_image, self.codebook, self.asmk)
        if outfile is not None:
            np.save(outfile, scores)
        return scores


def image_list(source: ImageList) -> list[ImageSource]:
    """The images of a folder in name order, of a text file with one path per line, or of a list.

    Raises:
        ImageError: If there is none.
    """
    if not isinstance(source, (str, os.PathLike)):
        images: list[ImageSource] = list(source)
    else:
        path = Path(source)
        images = list(_folder(path) if path.is_dir() else _listed(path))
    if not images:
        raise ImageError(f"{source} holds no image; expected a folder, a list of images or a text file of paths.")
    return images


def _folder(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES + HEIF_SUFFIXES)


def _listed(path: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{path} is neither a folder nor a text file of image paths ({error}).") from error
    return [path.parent / line for line in lines if line]


def _backbone_name(path: Path) -> str:
    """The backbone a retrieval checkpoint names: a file that exists, or the official name in it."""
    stored = read_retrieval_config(path).pretrained
    if stored is None:
        raise CheckpointError(f"{path} does not name its backbone; pass backbone=, the MASt3R model it belongs to.")
    return stored if Path(stored).exists() else Path(stored).stem
