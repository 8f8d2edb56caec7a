"""An embedding model of MiniLM-L6's shape (22 M parameters) with random weights, where no trained one can be had."""

import json
from pathlib import Path

MAX_TOKENS = 256
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = 30_522
NUM_WORDS = VOCABULARY - len(_SPECIAL)  # w0, w1, …


def save_random_embedder(directory: Path, seed: int = 0) -> Path:
    """A sentence-transformers directory: BERT, mean pooling, normalisation."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(directory)
    _save_tokenizer(directory)
    modules = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    _write(
        directory / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(modules)
        ],
    )
    _write(directory / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS})
    (directory / "1_Pooling").mkdir()
    _write(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True})
    return directory


def _save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*_SPECIAL, *(f"w{number}" for number in range(NUM_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pad, unknown, begin, end = _SPECIAL
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=begin,
        sep_token=end,
        model_max_length=MAX_TOKENS,
    ).save_pretrained(str(directory))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
