"""Backbones: plain modules called as `backbone(x, c_noise, y=None, s=None)`."""

from genflow.nn.attention import FusedSelfAttention as FusedSelfAttention
from genflow.nn.attention import SelfAttention as SelfAttention
from genflow.nn.blocks import AdaptiveBlock as AdaptiveBlock
from genflow.nn.blocks import ResidualBlock as ResidualBlock
from genflow.nn.dit import DiT as DiT
from genflow.nn.dit import DiTBlock as DiTBlock
from genflow.nn.dit import dit_preset as dit_preset
from genflow.nn.embeddings import ddpm_embedding as ddpm_embedding
from genflow.nn.embeddings import dit_embedding as dit_embedding
from genflow.nn.embeddings import grid_embedding as grid_embedding
from genflow.nn.unet import UNet as UNet
from genflow.nn.unet import unet_preset as unet_preset
