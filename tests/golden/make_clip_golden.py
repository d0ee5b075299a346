"""What transformers answers, frozen for tests that run without it.

python tests/golden/make_clip_golden.py        (needs the `reference` extra)

clip_ACTIVATION/   text_encoder/, tokenizer/ as transformers writes them, of a tiny random
                   `CLIPTextModel`; prompts.json; outputs.safetensors (ids, last states)
clip_towers/       model/ as transformers writes it, of a tiny random `CLIPModel`; prompts.json;
                   outputs.safetensors (pixels, embeddings of them and of the prompts)
clip_tokens.json   prompt → ids of `CLIPTokenizer`, without start, end and padding
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from latentddpm.clip.vocabulary import byte_tokens, packaged_vocabulary, write_vocabulary

GOLDEN = Path(__file__).parent
LENGTH, NUM_MERGES = 12, 60
PROMPTS = ["a cat", "", "It's 2 dogs!", "café 日本 👩‍👩‍👧", "the   RED thing"]
SIZES = {
    "quick_gelu": {"hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 4},
    "gelu": {"hidden_size": 24, "intermediate_size": 24, "num_attention_heads": 2},
}

# What the tokenizer of SD 1.x is fed: pieces of captions of every kind, and their mixtures.
PIECES = [
    "a photo of a cat",
    "an oil painting, trending on artstation, 8k uhd, f/1.8, (masterpiece:1.2)", "It's",
    "they've", "I'LL", "we'd", "don't", "you're", "I'm", "O'Brien's", "rock'n'roll", "''s'",
    "42", "3.14159", "1,000,000", "x²y", "⅔ Ⅳ ① ½", "2nd 10th 4K", "٣٤٥", "a1b2c3",
    "MiXeD CaSe", "SHOUTING", "ÉCOLE Ångström NAÏVE", "İstanbul", "ß ẞ STRASSE", "ǅ ﬁ ﬂ",
    "  two  spaces  ", "tab\tnewline\nreturn\r\n", "\u00a0no\u2003break\u3000",
    "\u200bzero\u200dwidth", "😀", "👩‍👩‍👧", "❤️", "🏳️‍🌈", "👍🏽", "🇳🇱", "1️⃣", "🍎🍏🍐",
    "☺︎", "emoji😀inside", "日本語のテキスト", "中文提示词", "한국어", "ไทย", "हिन्दी",
    "اَلْعَرَبِيَّةُ", "עברית", "Привет, мир", "Ελλάδα", "tiếng Việt", "cafe\u0301",
    "a\u0308\u0323", "𝐁𝐨𝐥𝐝 𝓈𝒸𝓇𝒾𝓅𝓉", "ｆｕｌｌｗｉｄｔｈ", "!!!", "...", "—–-",
    "“quoted” ‘single’ «guillemets»", "[brackets] {braces} <angle>", "a_b__c", "#hashtag @user",
    "http://example.com/a?b=c&d=e", "C:\\path\\file.png", "$9.99 €5 ¥100 50%", "~`^|",
    "+-*/=<>", "( ͡° ͜ʖ ͡°)", "<|startoftext|>", "hello<|endoftext|>world", "</w>",
    "supercalifragilisticexpialidocious", "zzzzzzzzzzzzzzzzzzzz", "qwrtpsdfg", "\u00ad soft",
    "",
]  # fmt: skip


def tokenizer_folder(folder: Path, num_merges: int, length: int) -> CLIPTokenizer:
    """transformers' tokenizer over the first merges of CLIP's vocabulary."""
    _, merges = packaged_vocabulary()
    tokens = [*byte_tokens(), *map("".join, merges[:num_merges])]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_vocabulary(folder, {token: n for n, token in enumerate(tokens)}, merges[:num_merges])
    return CLIPTokenizer.from_pretrained(folder, model_max_length=length, local_files_only=True)


def write_encoder(activation: str) -> None:
    torch.manual_seed(0)
    folder = GOLDEN / f"clip_{activation}"
    with tempfile.TemporaryDirectory() as plain:
        tokenizer = tokenizer_folder(Path(plain), NUM_MERGES, LENGTH)
    config = CLIPTextConfig(
        **SIZES[activation],
        num_hidden_layers=2,
        max_position_embeddings=LENGTH,
        vocab_size=len(tokenizer),
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=5.0,  # else every branch is nearly zero
    )
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.half().save_pretrained(folder / "text_encoder")
    model.double()  # the rounded weights; what is frozen has no rounding of its own
    tokenizer.save_pretrained(folder / "tokenizer")
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states = model(ids).last_hidden_state.numpy()
    outputs = {
        "token_ids": ids.numpy().astype(np.int32),
        "last_hidden_state": states.astype(np.float32),
    }
    save_file(outputs, folder / "outputs.safetensors")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS, ensure_ascii=False), "utf-8")


def write_towers() -> None:
    """The embeddings through transformers' own image processor, on tests' pictures."""
    torch.manual_seed(0)
    folder = GOLDEN / "clip_towers"
    tokenizer = tokenizer_folder(folder / "model", NUM_MERGES, LENGTH)
    text = {**SIZES["quick_gelu"], "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    text |= {"max_position_embeddings": LENGTH, "eos_token_id": tokenizer.eos_token_id}
    vision = {**SIZES["quick_gelu"], "num_hidden_layers": 2, "image_size": 24, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.half().save_pretrained(folder / "model")
    model.double()
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    processor = CLIPImageProcessorPil(**size)
    numbers = np.random.default_rng(0)
    outputs = {}
    with torch.no_grad():
        outputs["texts"] = unit(model.get_text_features(ids))
        for name, shape in (("square", (2, 40, 40, 3)), ("wide", (2, 30, 47, 3))):
            pixels = numbers.integers(0, 256, shape, np.uint8)
            seen = processor(list(pixels), return_tensors="pt")["pixel_values"].double()
            outputs[f"{name}_pixels"] = pixels
            outputs[name] = unit(model.get_image_features(seen))
    save_file(outputs, folder / "outputs.safetensors")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS, ensure_ascii=False), "utf-8")


def unit(features: Any) -> np.ndarray:
    features = getattr(features, "pooler_output", features)  # transformers 5 wraps it
    return (features / features.norm(dim=1, keepdim=True)).numpy().astype(np.float32)


def write_tokens() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_folder(Path(folder), 49_408, 77)
    numbers = np.random.default_rng(0)
    prompts = PIECES + [
        "".join(numbers.choice([" ", ", ", ""]) + text for text in numbers.choice(PIECES, 3))
        for _ in range(200)
    ]
    tokens = {text: tokenizer(text).input_ids[1:-1] for text in prompts}
    lines = [f"{json.dumps(text)}: {json.dumps(ids)}" for text, ids in tokens.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (GOLDEN / "clip_tokens.json").write_text(text, "utf-8")


if __name__ == "__main__":
    for activation in SIZES:
        write_encoder(activation)
    write_towers()
    write_tokens()
