# The names that the product uses. Without this stub pyright binds the whole package, which takes it half a minute.
from typing import Any, Self

import torch
from torch import Tensor, nn

class Dinov2WithRegistersConfig:
    image_size: int
    def __init__(self, **values: Any) -> None: ...

class BaseModelOutput:
    hidden_states: tuple[Tensor, ...]
    last_hidden_state: Tensor

class Dinov2WithRegistersModel(nn.Module):
    config: Dinov2WithRegistersConfig
    def __init__(self, config: Dinov2WithRegistersConfig) -> None: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Self: ...
    def __call__(self, pixel_values: Tensor, *, output_hidden_states: bool = ...) -> BaseModelOutput: ...

class CLIPTextConfig:
    def __init__(self, **values: Any) -> None: ...

class CLIPTextModel(nn.Module):
    config: CLIPTextConfig
    def __init__(self, config: CLIPTextConfig) -> None: ...
    def __call__(self, *, input_ids: Tensor) -> BaseModelOutput: ...

class CLIPTokenizer:
    def __init__(
        self, *, vocab: dict[str, int], merges: list[tuple[str, str]], **special_tokens: AddedToken
    ) -> None: ...
    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]: ...
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...

class AddedToken:
    def __init__(self, content: str, *, normalized: bool, special: bool) -> None: ...
