"""A MASt3R network as the matcher of tiles that `mast3r.tiling.matching` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import MapMatches, match_keypoints, match_pairs
from mast3r.pairs.two_view import Described, ModelInput, Shape, Tokens, describe, encode, input_side
from mast3r.tiling.matching import Keypoints, TileMatches
from multiview.images import ImageTransform

_SHORT_SIDES = (384, 336, 288, 256, 160)
"""Short sides of the shapes that models of 512 px were trained with."""

_SQUARE_UP_TO = 224
"""Models of at most this side were trained with squares."""


@dataclass(frozen=True, eq=False)
class EncodedTile:
    """A tile that the encoder has seen."""

    tokens: Tokens
    shape: Shape


class NetworkTiles:
    """`KeypointTileMatcher` by a MASt3R network.

    Each pair of tiles is decoded in one order, as in the published evaluation.

    Args:
        model: What `mast3r.load` returned.
        config: How tiles are matched; `image_size` is the longer side of a tile.
    """

    def __init__(self, model: AsymmetricMASt3R, config: PairConfig | None = None) -> None:
        self.model = model
        self.config = config or PairConfig()
        self.side = self.config.image_size or input_side(model)

    def tile_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the shape the network was trained with that is most like an image's."""
        if self.side <= _SQUARE_UP_TO:
            return self.side, self.side
        patch = self.model.patch_size
        shorts = [max(1, round(self.side * short / 512 / patch)) * patch for short in _SHORT_SIDES]
        width, height = image_size
        aspect = min(image_size) / max(image_size)
        short = min(shorts, key=lambda side: abs(side / self.side - aspect))
        return (self.side, short) if width >= height else (short, self.side)

    def encode(self, tiles: Sequence[np.ndarray]) -> list[EncodedTile]:
        """See `TileMatcher.encode`."""
        inputs = [ModelInput(tile, ImageTransform.identity((tile.shape[1], tile.shape[0]))) for tile in tiles]
        tokens = encode(self.model, inputs, batch_size=self.config.batch_size)
        return [EncodedTile(t, x.shape) for t, x in zip(tokens, inputs)]

    @torch.inference_mode()
    def match(self, pairs: Sequence[tuple[EncodedTile, EncodedTile]]) -> list[TileMatches]:
        """See `TileMatcher.match`."""
        return [_as_tile_matches(found) for found in match_pairs([[seen] for seen in self._decode(pairs)], self.config)]

    @torch.inference_mode()
    def match_keypoints(
        self, pairs: Sequence[tuple[EncodedTile, EncodedTile]], keypoints: Sequence[Keypoints]
    ) -> list[TileMatches]:
        """See `KeypointTileMatcher.match_keypoints`."""
        return [
            _as_tile_matches(match_keypoints(*seen, *given, self.config))
            for seen, given in zip(self._decode(pairs), keypoints)
        ]

    def _decode(self, pairs: Sequence[tuple[EncodedTile, EncodedTile]]) -> list[tuple[Described, Described]]:
        tiles = list(dict.fromkeys(tile for pair in pairs for tile in pair))
        place = {tile: i for i, tile in enumerate(tiles)}
        orders = [(place[a], place[b]) for a, b in pairs]
        tokens, shapes = [tile.tokens for tile in tiles], [tile.shape for tile in tiles]
        return describe(self.model, tokens, shapes, orders, batch_size=self.config.batch_size)


def _as_tile_matches(found: MapMatches) -> TileMatches:
    return TileMatches(found.xy0, found.xy1, found.confidence, found.index0, found.index1)
