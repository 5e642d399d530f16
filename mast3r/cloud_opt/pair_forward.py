"""The network on pairs of views, once per pair and kept on disk: official call forms of the pair stage.

Each image is encoded once, each pair decoded in both orders. An entry's name is made of the images' pixels, the
model's weights and the settings, so another image, a fine-tuned model or other options never meet old results; the
files hold tensors only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dust3r.inference import FeatureCache
from mast3r.fast_nn import extract_correspondences
from mast3r.scenes.pair_cache import CacheMiss, PairCache, content_key, weights_key

logger = logging.getLogger(__name__)

View: TypeAlias = "Mapping[str, Any]"
Maps: TypeAlias = "dict[str, Tensor]"
NamePair: TypeAlias = "tuple[str, str]"


@dataclass(frozen=True, eq=False)
class PairPrediction:
    """What the network says about the pair (1, 2). XAB are points of image A in the camera of image B's pass.

    Attributes:
        X11: (H1, W1, 3) points of image 1 in camera 1.
        C11: (H1, W1) their confidence.
        X21: (H2, W2, 3) points of image 2 in camera 1.
        C21: (H2, W2) their confidence.
        X22: (H2, W2, 3) points of image 2 in camera 2.
        C22: (H2, W2) their confidence.
        X12: (H1, W1, 3) points of image 1 in camera 2.
        C12: (H1, W1) their confidence.
        xy1: (M, 2) int64 matched pixels of image 1.
        xy2: (M, 2) int64 matched pixels of image 2.
        conf: (M,) confidence of the matches.
    """

    X11: Tensor
    C11: Tensor
    X21: Tensor
    C21: Tensor
    X22: Tensor
    C22: Tensor
    X12: Tensor
    C12: Tensor
    xy1: Tensor
    xy2: Tensor
    conf: Tensor

    def swapped(self) -> PairPrediction:
        """The same about the pair (2, 1)."""
        own1, seen2, own2, seen1 = (
            (self.X11, self.C11),
            (self.X21, self.C21),
            (self.X22, self.C22),
            (self.X12, self.C12),
        )
        return PairPrediction(*own2, *seen1, *own1, *seen2, self.xy2, self.xy1, self.conf)

    @property
    def score(self) -> tuple[float, float, int]:
        """Geometric mean of the mean confidences of all maps, summed confidence of the matches, their number."""
        means = torch.stack([c.mean() for c in (self.C11, self.C21, self.C22, self.C12)])
        return float(means.log().mean().exp()), float(self.conf.sum()), len(self.conf)


@dataclass(frozen=True)
class CachedPair:
    """A pair whose prediction lies on disk.

    Attributes:
        cache: Where.
        key: Name of the entry.
        is_swapped: Whether the entry holds the reverse pair.
    """

    cache: PairCache
    key: str
    is_swapped: bool = False

    def load(self) -> PairPrediction:
        """Read it.

        Raises:
            CacheMiss: If the file is gone or damaged.
        """
        prediction = PairPrediction(**self.cache.read(self.key))
        return prediction.swapped() if self.is_swapped else prediction


CachedPairs: TypeAlias = "dict[NamePair, CachedPair]"


@torch.inference_mode()
def symmetric_inference(
    model: Any, img1: View, img2: View, device: str | torch.device, *, features: FeatureCache | None = None
) -> tuple[Maps, Maps, Maps, Maps]:
    """Predictions of a pair in both orders, each image encoded once.

    Args:
        model: A MASt3R model.
        img1: View of image 1: `img` (1, 3, H, W) and `true_shape`.
        img2: View of image 2.
        device: Where to compute.
        features: Encodings to share between calls; default none.

    Returns:
        Maps (pts3d, conf, desc, desc_conf, each (1, H, W, ...)) of image 1 and image 2 in camera 1, then of image
        2 and image 1 in camera 2.
    """
    features = features or FeatureCache(model, torch.device(device))
    tokens1, tokens2 = features.encode([img1, img2])
    shape1, shape2 = (torch.as_tensor(np.asarray(view["true_shape"])).reshape(-1, 2) for view in (img1, img2))

    def decode(first: Any, second: Any, first_shape: Tensor, second_shape: Tensor) -> tuple[Maps, Maps]:
        decoded1, decoded2 = model._decoder(*first, *second)
        return (
            model._downstream_head(1, decoded1, first_shape),
            model._downstream_head(2, decoded2, second_shape),
        )

    return (*decode(tokens1, tokens2, shape1, shape2), *decode(tokens2, tokens1, shape2, shape1))


def forward_mast3r(
    pairs: Sequence[tuple[View, View]],
    model: Any,
    cache_path: str | Path,
    desc_conf: str = "desc_conf",
    device: str | torch.device = "cpu",
    subsample: int = 8,
    **matching_kw: Any,
) -> tuple[CachedPairs, str]:
    """Predict and match pairs that the cache does not hold yet.

    Args:
        pairs: Pairs of views whose `instance` is their name; a pair and its reverse are one.
        model: A MASt3R model.
        cache_path: Folder of the results; made if needed.
        desc_conf: Which map tells the confidence of descriptors.
        device: Where to compute.
        subsample: Spacing in pixels of the grid from which matches are searched.
        **matching_kw: Further options of `extract_correspondences`.

    Returns:
        The entry of each ordered pair of names, and the folder.

    Raises:
        ValueError: If the model has no descriptors or no such confidence.
    """
    cache = PairCache(cache_path)
    features = FeatureCache(model, torch.device(device))
    settings = content_key(weights_key(model), desc_conf, str(subsample), repr(sorted(matching_kw.items())))
    contents: dict[int, str] = {}
    entries: CachedPairs = {}
    for view1, view2 in tqdm(pairs, desc="pairs", leave=False):
        names = (view1["instance"], view2["instance"])
        if names in entries:
            continue
        key = content_key(settings, *(_content(view, contents) for view in (view1, view2)))
        if names[::-1] in entries:
            entries[names] = CachedPair(cache, entries[names[::-1]].key, is_swapped=True)
            continue
        entries[names] = CachedPair(cache, key)
        if not _holds(entries[names]):
            maps = symmetric_inference(model, view1, view2, device, features=features)
            cache.write(key, _prediction_tensors(maps, desc_conf, subsample, matching_kw))
    return entries, str(cache_path)


def _content(view: View, known: dict[int, str]) -> str:
    """Text that stands for a view's pixels; looked up per tensor object, which the pair keeps alive."""
    image = view["img"]
    if id(image) not in known:
        pixels = image.detach().cpu().contiguous().numpy()
        known[id(image)] = hashlib.sha256(pixels.tobytes()).hexdigest() + repr((pixels.shape, str(pixels.dtype)))
    return known[id(image)] + repr(np.asarray(view["true_shape"]).ravel().tolist())


def _holds(entry: CachedPair) -> bool:
    try:
        entry.load()
    except (CacheMiss, TypeError):
        return False
    return True


def _prediction_tensors(
    maps: tuple[Maps, Maps, Maps, Maps], desc_conf: str, subsample: int, matching_kw: Mapping[str, Any]
) -> Maps:
    missing = {"desc", desc_conf} - set(maps[0])
    if missing:
        raise ValueError(f"This model predicts {', '.join(maps[0])}, but matching needs {', '.join(sorted(missing))}.")
    # `maps` are of images 1, 2 in camera 1 and 2, 1 in camera 2.
    descriptors = [m["desc"][0] for m in maps]
    confidences = [m[desc_conf][0] for m in maps]
    xy1, xy2, conf = extract_correspondences(
        descriptors, confidences, subsample=subsample, device=descriptors[0].device, **matching_kw
    )
    tensors: Maps = {"xy1": xy1, "xy2": xy2, "conf": conf}
    for name, m in zip(("11", "21", "22", "12"), maps):
        tensors |= {f"X{name}": m["pts3d"][0].float(), f"C{name}": m["conf"][0].float()}
    return tensors


def named_pairs(imgs: Sequence[str], pairs: Iterable[tuple[View, View]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs whose views carry their image's name as `instance`.

    Args:
        imgs: Name of each image, all different.
        pairs: Pairs of views; `idx` is the position of the image in `imgs`.

    Raises:
        ValueError: If names repeat or an index is out of range.
    """
    if len(set(imgs)) != len(imgs):
        raise ValueError("The names of the images must all be different; give each image its own path or name.")
    result = []
    for pair in pairs:
        views = []
        for view in pair:
            index = int(np.asarray(view["idx"]).ravel()[0])
            if not 0 <= index < len(imgs):
                raise ValueError(f"A view has idx {index}, but {len(imgs)} image names are given.")
            views.append({**view, "instance": imgs[index]})
        result.append((views[0], views[1]))
    return result
