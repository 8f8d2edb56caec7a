"""A sentence-transformers model: texts to tokens, tokens to embeddings. Knows no requests."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from core.errors import ModelFailure
from core.prompts import PromptCodec
from engine.gpu.allocator import allocator

Embeddings = npt.NDArray[np.float32]


class Encoder:
    """Raises ModelFailure where the model has no fast tokenizer or gives no sentence embeddings."""

    def __init__(self, name: str, model: SentenceTransformer) -> None:
        self._model = model
        self._tokenizer = _own_tokenizer(name, model)
        self._codec = PromptCodec(self._tokenizer, None)
        self._prompt = (model.prompts.get(model.default_prompt_name) or "") if model.default_prompt_name else ""
        self._prompt_tokens = self._num_prompt_tokens()
        self._pad_id = int(model.tokenizer.pad_token_id or 0)
        self._pads_left = model.tokenizer.padding_side == "left"
        self.vocabulary_size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        self.max_tokens = int(min(model.max_seq_length or 2**31, model.tokenizer.model_max_length, 2**31 - 1))
        probe = self.embed([tuple(self.tokenize("a"))])
        if not np.isfinite(probe).all():
            raise ModelFailure(f"{name} gives embeddings that are not finite; its weights may be damaged")
        self.dimensions = int(probe.shape[1])

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._model.parameters())

    def tokenize(self, text: str) -> list[int]:
        """With the model's default prompt and its special tokens, not truncated. Raises ContextLengthExceeded where the
        text is so long that it cannot fit."""
        return self._codec.encode_text(self._prompt + text, self.max_tokens)

    @torch.inference_mode()
    def embed(self, inputs: Sequence[tuple[int, ...]]) -> Embeddings:
        """One row of float32 per input, as the model's own modules make it: (inputs, dimensions)."""
        features = self._features(inputs)
        if self._prompt_tokens:
            features["prompt_length"] = self._prompt_tokens
        output: torch.Tensor = self._model(features)["sentence_embedding"]
        return output.float().cpu().numpy()

    def is_device_alive(self) -> bool:
        """False after an error that poisons the whole CUDA context, from which only a new process recovers."""
        try:
            return bool((torch.zeros(1, device=self._model.device) + 1).item() == 1)
        except RuntimeError:
            return False

    def close(self) -> None:
        device = self._model.device
        del self._model
        if device.type == "cuda":
            allocator.release()

    def _features(self, inputs: Sequence[tuple[int, ...]]) -> dict[str, object]:
        longest = max(map(len, inputs))
        ids = np.full((len(inputs), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(inputs), longest), dtype=np.int64)
        for row, token_ids in enumerate(inputs):
            place = slice(longest - len(token_ids), longest) if self._pads_left else slice(0, len(token_ids))
            ids[row, place] = token_ids
            mask[row, place] = 1
        device = self._model.device
        return {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(mask).to(device),
            "modality": "text",
        }

    def _num_prompt_tokens(self) -> int:
        """How many tokens the prompt takes, its closing special token left out, as pooling expects it."""
        if not self._prompt:
            return 0
        ids = self._tokenizer.encode(self._prompt, add_special_tokens=True).ids
        return len(ids) - 1 if ids and ids[-1] in self._model.tokenizer.all_special_ids else len(ids)


def _own_tokenizer(name: str, model: SentenceTransformer) -> Tokenizer:
    """A copy, so that its truncation and padding can be switched off."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelFailure(f"{name}: expected a fast tokenizer (tokenizer.json), got {type(model.tokenizer).__name__}")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
