"""All numbers of the released TripoSR model and of the tiny test model, one literal row each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ISO_DENSITY = 25.0  # threshold of the release: the surface is where the activated density has this value
FOREGROUND_RATIO = 0.85  # longer side of the subject over side of the image, as in the release's command line
GREY = 0.5  # background of the framed subject


@dataclass(frozen=True)
class EncoderSpec:
    """The image encoder, a plain ViT; field names of its published configuration."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    hidden_act: str = "gelu"


@dataclass(frozen=True)
class TokenizerSpec:
    """The learnt triplane tokens: three planes of `plane_size` x `plane_size`."""

    plane_size: int
    num_channels: int


@dataclass(frozen=True)
class BackboneSpec:
    """The transformer over the triplane tokens with cross-attention to the image tokens."""

    in_channels: int
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    cross_attention_dim: int
    norm_num_groups: int = 32
    attention_bias: bool = False
    activation_fn: str = "geglu"


@dataclass(frozen=True)
class UpsamplerSpec:
    """The transposed convolution that doubles the side of the planes."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class DecoderSpec:
    """The network from triplane features to density and colour."""

    in_channels: int
    n_neurons: int
    n_hidden_layers: int
    activation: str = "relu"
    bias: bool = True


@dataclass(frozen=True)
class RendererSpec:
    """How planes and decoder combine into a field.

    Attributes:
        radius: half the side of the box that the field fills.
        feature_reduction: how the features of the three planes are combined, `concat` or `mean`.
        density_activation: name of the activation of the density.
        density_bias: added before the activation of the density.
        color_activation: name of the activation of the colour.
        num_samples_per_ray: samples of a ray inside the box.
    """

    radius: float
    feature_reduction: str = "concat"
    density_activation: str = "exp"
    density_bias: float = -1.0
    color_activation: str = "sigmoid"
    num_samples_per_ray: int = 128


@dataclass(frozen=True)
class DeterministicWeights:
    """Parameters of the deterministic test weights.

    Attributes:
        seed: seed of the whole set.
        scale: factors by pattern of the full key, see `fill_deterministic`.
        density_shift: added to the density before its activation, so that the box is partly full and partly empty.
    """

    seed: int
    scale: Mapping[str, float]
    density_shift: float


@dataclass(frozen=True)
class ModelSpec:
    """A model: its architecture and where its weights are published.

    Attributes:
        repo_id: repository of the weights on the model hub.
        revision: full commit hash there.
        file_name: file there, a pickle.
        size_bytes: size of the published file.
        sha256: of the published file.
        cond_image_size: side of the encoder's input in pixels.
        turntable_size: side of a turntable frame in pixels.
        deterministic_weights: parameters of the test weights; None for a model whose weights are read from a file.
    """

    name: str
    repo_id: str
    revision: str
    file_name: str
    size_bytes: int
    sha256: str
    cond_image_size: int
    encoder: EncoderSpec
    tokenizer: TokenizerSpec
    backbone: BackboneSpec
    post_processor: UpsamplerSpec
    decoder: DecoderSpec
    renderer: RendererSpec
    turntable_size: int
    turntable_frames: int
    turntable_fps: int
    deterministic_weights: DeterministicWeights | None = field(default=None)


RELEASED = ModelSpec(
    name="TripoSR",
    repo_id="stabilityai/TripoSR",
    revision="5b521936b01fbe1890f6f9baed0254ab6351c04a",
    file_name="model.ckpt",
    size_bytes=1677246742,
    sha256="429e2c6b22a0923967459de24d67f05962b235f79cde6b032aa7ed2ffcd970ee",
    cond_image_size=512,
    encoder=EncoderSpec(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    tokenizer=TokenizerSpec(plane_size=32, num_channels=1024),
    backbone=BackboneSpec(
        in_channels=1024, num_attention_heads=16, attention_head_dim=64, num_layers=16, cross_attention_dim=768
    ),
    post_processor=UpsamplerSpec(in_channels=1024, out_channels=40),
    decoder=DecoderSpec(in_channels=120, n_neurons=64, n_hidden_layers=9, activation="silu"),
    renderer=RendererSpec(radius=0.87),
    turntable_size=256,
    turntable_frames=120,
    turntable_fps=30,
)

TINY = ModelSpec(
    name="TripoSR-tiny",
    repo_id="",
    revision="",
    file_name="",
    size_bytes=0,
    sha256="",
    cond_image_size=64,
    encoder=EncoderSpec(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=32
    ),
    tokenizer=TokenizerSpec(plane_size=1, num_channels=64),  # few texels, so that the surface has few components
    backbone=BackboneSpec(
        in_channels=64,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=48,
        norm_num_groups=8,
    ),
    post_processor=UpsamplerSpec(in_channels=64, out_channels=10),
    decoder=DecoderSpec(in_channels=30, n_neurons=16, n_hidden_layers=2, activation="silu"),
    renderer=RendererSpec(radius=0.87),
    turntable_size=64,
    turntable_frames=24,
    turntable_fps=12,
    deterministic_weights=DeterministicWeights(
        seed=17, scale={"tokenizer.embeddings": 4.0, "decoder.layers.*.weight": 1.5}, density_shift=2.85
    ),
)
