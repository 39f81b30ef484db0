"""Every number of the released TripoSR model and of its tiny twin, one literal row each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ISO_DENSITY = 25.0  # the reference's threshold: the surface lies where the activated density has this value
FOREGROUND_RATIO = 0.85  # of the image's side, as the release's own command frames the subject
GREY = 0.5  # what the subject is put on


@dataclass(frozen=True)
class EncoderSpec:
    """The image encoder, a plain ViT; the names of the configuration that it was published with."""

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
    """The triplane's learnt start: three planes of tokens."""

    plane_size: int
    num_channels: int


@dataclass(frozen=True)
class BackboneSpec:
    """The transformer between the planes' tokens and the image's."""

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
    """The last layer of the planes, which doubles their side."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class DecoderSpec:
    """The field's network: a plane feature to density and colour."""

    in_channels: int
    n_neurons: int
    n_hidden_layers: int
    activation: str = "relu"
    bias: bool = True


@dataclass(frozen=True)
class RendererSpec:
    """How planes and decoder make a field.

    Attributes:
        radius: half of the side of the box that the field fills.
        feature_reduction: how the features of three planes are joined, `concat` or `mean`.
        density_bias: added before the activation of the density.
        num_samples_per_ray: samples of a ray between its two ends.
    """

    radius: float
    feature_reduction: str = "concat"
    density_activation: str = "exp"
    density_bias: float = -1.0
    color_activation: str = "sigmoid"
    num_samples_per_ray: int = 128


@dataclass(frozen=True)
class DeterministicWeights:
    """Weights made from their names instead of read.

    Attributes:
        seed: of the weight rule.
        scale: factors by pattern of the full key, as `fill_deterministic` takes them.
        density_shift: added to the density before its activation, so that the box is part full, part empty.
    """

    seed: int
    scale: Mapping[str, float]
    density_shift: float


@dataclass(frozen=True)
class ModelSpec:
    """A released model.

    Attributes:
        repo_id, revision, file_name: where its weights are published, as a pickle.
        size_bytes, sha256: of the published file.
        cond_image_size: side of the image that the encoder sees, in pixels.
        turntable_size: pixels along the side of a turntable's frames.
        deterministic_weights: how to make the weights, None where they are read.
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
    tokenizer=TokenizerSpec(plane_size=1, num_channels=64),  # few texels make a shape of few pieces
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
