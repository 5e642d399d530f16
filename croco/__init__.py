"""CroCo: the transformer backbone of the family and its pre-training by cross-view completion."""

from __future__ import annotations

from croco.checkpoint import CheckpointError, save_safetensors
from croco.models.blocks import Attention, Block, CrossAttention, DecoderBlock, Mlp, PatchEmbed
from croco.models.criterion import MaskedMSE
from croco.models.croco import CroCoNet, CrossViewBackbone
from croco.models.dpt_block import DPTOutputAdapter
from croco.models.masking import RandomMask
from croco.models.pos_embed import RoPE2D

__all__ = [
    "Attention",
    "Block",
    "CheckpointError",
    "CroCoNet",
    "CrossAttention",
    "CrossViewBackbone",
    "DPTOutputAdapter",
    "DecoderBlock",
    "MaskedMSE",
    "Mlp",
    "PatchEmbed",
    "RandomMask",
    "RoPE2D",
    "save_safetensors",
]
