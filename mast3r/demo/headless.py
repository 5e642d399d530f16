"""Two photos to files, without a page."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mast3r.demo.pictures import maps_picture, matches_picture
from mast3r.demo.text import summary_json
from mast3r.loading import WeightsCard, card_of
from mast3r.model import AsymmetricMASt3R
from mast3r.predictor import PairConfig, predict_pair
from multiview.images import ImageSource, as_image
from multiview.results import PairResult

SUFFIXES = (".glb", ".ply", ".npz")


@dataclass(frozen=True, eq=False)
class Written:
    """What `run_headless` made.

    Attributes:
        result: The pair.
        files: The files that were written, the scene first.
    """

    result: PairResult
    files: tuple[Path, ...]


def run_headless(
    load_model: Callable[[], AsymmetricMASt3R],
    a: ImageSource,
    b: ImageSource,
    out: str | Path,
    *,
    config: PairConfig | None = None,
    drop_percent: float = 20.0,
    as_mesh: bool = False,
) -> Written:
    """Predict a pair and write it as `out`, `<name>_matches.png`, `<name>_depth.png` and `<name>.json`.

    Args:
        load_model: Gives the model; called after the photos were found to be readable.
        a: Photo 0.
        b: Photo 1.
        out: `.glb`, `.ply` or `.npz` file.
        config: Settings of the prediction.
        drop_percent: Share of the points left out of .glb and .ply, least confident first.
        as_mesh: Write a surface to the .glb in place of points.

    Returns:
        The result and the files. On an error no file is written.

    Raises:
        ValueError: If a photo, the weights or an option cannot be used.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out must end in {', '.join(SUFFIXES)}, got {out.name!r}.")
    if not 0 <= drop_percent < 100:
        raise ValueError(f"--drop must be at least 0 and below 100 percent, got {drop_percent:g}.")
    images = as_image(a), as_image(b)
    model = load_model()
    result = predict_pair(model, *images, config=config)
    files = _write_all(result, card_of(model), out, drop_percent=drop_percent, as_mesh=as_mesh)
    return Written(result, files)


def _write_all(
    result: PairResult, card: WeightsCard, out: Path, *, drop_percent: float, as_mesh: bool
) -> tuple[Path, ...]:
    """Write every file aside first, so that a failure leaves none of them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=out.parent) as aside:
        scene = Path(aside, out.name)
        result.save(scene, confidence_percentile=drop_percent, as_mesh=as_mesh)
        matches = scene.with_name(f"{out.stem}_matches.png")
        matches_picture(result, height=640).save(matches)
        maps = scene.with_name(f"{out.stem}_depth.png")
        maps_picture(result).save(maps)
        summary = scene.with_name(f"{out.stem}.json")
        summary.write_text(json.dumps(summary_json(result, card), indent=2))
        parts = (scene, matches, maps, summary)
        return tuple(_moved(part, out.parent) for part in parts)


def _moved(part: Path, folder: Path) -> Path:
    target = folder / part.name
    os.replace(part, target)
    return target
