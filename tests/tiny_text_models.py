"""Random text encoders of real architectures, small, with a tokenizer of a few words, as folders on disk."""

import tokenizers
import torch
import transformers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bell", "dog", "rings", "barks", "the", "then"]


def save_tiny_text(folder, family="bert", whole=False):
    """Write a tiny model; ``whole`` is a checkpoint with another head, without the pooler."""
    torch.manual_seed(0)
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=12
    )
    if family == "bert":
        config = transformers.BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
        model = (transformers.BertForMaskedLM if whole else transformers.BertModel)(config)
    else:
        config = transformers.T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
        model = transformers.T5ForConditionalGeneration(config) if whole else transformers.T5Model(config)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model, tokenizer
