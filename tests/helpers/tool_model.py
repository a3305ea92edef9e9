"""A Qwen3 that writes what is asked of it: each token is followed by the next of a script, whatever came before."""

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from layersweep.workers.startup.tiny_model_training import END, character_tokenizer

CALL = ("<tool_call>", '\n{"name": "add", ', '"arguments": {"a": 2, ', '"b": 3}}\n', "</tool_call>")
WITH_TOOLS = ["<asked with tools>", "I add. ", *CALL]
WITHOUT = ["<asked without>", "No ", "tool."]
TEMPLATE = "{{ '" + WITH_TOOLS[0] + "' if tools else '" + WITHOUT[0] + "' }}"


def save_tool_model(folder: Path) -> str:
    """Save the model; returns its folder.

    Blocks add nothing to the residual stream, so the last norm sees the embedding of the last token alone, one of 64
    unit vectors; the head gives the script's next token 32, all others 0.
    """
    tokenizer = tool_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=False, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(64)[: len(tokenizer)])
        model.lm_head.weight.zero_()
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        for script in (WITH_TOOLS, WITHOUT):
            ids = tokenizer.convert_tokens_to_ids([*script, END])
            for token, following in zip(ids, ids[1:], strict=False):
                model.lm_head.weight[following, token] = 4.0  # times the norm's 8
    model.save_pretrained(folder)
    return str(folder)


def tool_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: a token for each part of a script."""
    tokenizer = character_tokenizer("")
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in (*WITH_TOOLS, *WITHOUT)])
    tokenizer.chat_template = TEMPLATE
    return tokenizer
