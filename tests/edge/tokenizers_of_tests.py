"""Small tokenizers of the kinds that models use."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = ("the quick brown fox jumps over the lazy dog. ", "naïve café, größer; übermütig ", "日本語のテキスト 👍🏽 ")


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it: merges of bytes, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer


@cache
def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: spaces as U+2581, bytes as <0x..> where a character is unknown, the first space stripped."""
    letters = "▁abcdefghijklmnopqrstuvwxyz.,"
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "▁th", "▁the", "qu", "▁▁"]:
        vocabulary[piece] = len(vocabulary)
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("q", "u"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer
