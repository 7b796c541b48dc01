"""Requests -> what the chat model answers them, greedily."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.demo_pair.chats import Chat

LONGEST = 64
"""Tokens of an answer."""
TOGETHER = 50


@torch.no_grad()
def with_rollouts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Chat]) -> list[dict[str, str]]:
    """Each request with the model's own answer, cut at its end token; answers of fewer than two tokens are left out."""
    found = []
    for start in range(0, len(asked), TOGETHER):
        some = asked[start : start + TOGETHER]
        messages = [[{"role": "user", "content": chat.instruction}] for chat in some]
        prompts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        longest = given.input_ids.shape[1]
        how = {"max_new_tokens": LONGEST, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        ids = model.generate(input_ids=given.input_ids, attention_mask=given.attention_mask, **how)
        answers = tokenizer.batch_decode(ids[:, longest:], skip_special_tokens=True)
        found += [
            {"instruction": chat.instruction, "completion": answer.strip()} for chat, answer in zip(some, answers, strict=True)
        ]
    return [chat for chat in found if chat["completion"]]
