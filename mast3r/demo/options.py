"""Settings of the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mast3r.predictor import PairConfig

_EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class PageOptions:
    """How the page is served.

    Attributes:
        config: Settings of the prediction of pairs.
        tmp_dir: Folder for temporary files; None takes the system's.
        server_name: Address to listen on.
        server_port: Port; None takes the first free one from 7860.
        share: Make a public link through Gradio's servers.
        silent: Say nothing but errors.
        keep_seconds: Seconds after which the files of a visitor who does nothing are removed.
        samples: The two sample photos; without them there is no button for them.
        scene_samples: Folder of the sample photos of a scene; without it there is no button for them.
        max_photos: A scene of more photos is refused.
    """

    config: PairConfig = field(default_factory=PairConfig)
    tmp_dir: Path | None = None
    server_name: str = "127.0.0.1"
    server_port: int | None = None
    share: bool = False
    silent: bool = False
    keep_seconds: int = 3600
    samples: tuple[Path, Path] = (_EXAMPLES / "scene" / "photo3.jpg", _EXAMPLES / "scene" / "photo4.jpg")
    scene_samples: Path = _EXAMPLES / "scene"
    max_photos: int = 60
