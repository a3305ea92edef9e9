"""Tokens of prompts: the one place that renders messages with a chat template and calls the tokenizer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from layersweep.policies.model.config_fields import end_tokens
from layersweep.rollout.types import Prompt

BATCH = 1000
"""Prompts that are tokenized in one call."""


class PromptEncoder:
    """A model's tokenizer and chat template.

    Args:
        folder: of the model.
        trust_remote_code: whether code that the folder brings may run.
        chat_template: Jinja text in place of the model's own template.
        template_arguments: further variables of the template, such as `enable_thinking`.
    """

    def __init__(
        self,
        folder: str,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ):
        self.tokenizer, self.stop_token_ids = load_tokenizer(folder, trust_remote_code)
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        self._template_arguments = template_arguments or {}

    @property
    def chat_template(self) -> str | None:
        """Jinja text that messages are rendered with; None where the model has no template."""
        templates = self.tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates or None

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the tokens that the model is shown."""
        return next(self.encode_all([prompt]))

    def encode_all(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """The tokens of each prompt, many at a time. Either all are texts, or all are messages."""
        for at in range(0, len(prompts), BATCH):
            part = prompts[at : at + BATCH]
            messages = part[0].messages is not None
            texts = [self.render(prompt) if messages else prompt.text for prompt in part]
            # A chat template writes the special tokens itself.
            yield from self.tokenizer(texts, add_special_tokens=not messages)["input_ids"]

    def render(self, prompt: Prompt) -> str:
        """Return messages as the chat template writes them."""
        return self.tokenizer.apply_chat_template(
            list(prompt.messages),
            tools=list(prompt.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
            **self._template_arguments,
        )


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> tuple[Any, tuple[int, ...]]:
    """Load a folder's tokenizer, and the tokens that end a response: the generation config's and the tokenizer's own.

    Args:
        trust_remote_code: whether code that the folder brings may run.

    Raises:
        Exception: what transformers raises of files that are no tokenizer.
        ValueError: a config names something else than a token as the end.
    """
    if (Path(folder) / "tokenizer.json").is_file():
        # The generic class reads tokenizer.json whole, and imports in a fifth of AutoTokenizer's time.
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    tokenizer = Loader.from_pretrained(folder, trust_remote_code=trust_remote_code)
    stops = {tokenizer.eos_token_id} - {None}
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        if path.is_file():
            try:
                stops.update(end_tokens(json.loads(path.read_text(encoding="utf-8"))))
            except (ValueError, AttributeError) as error:  # AttributeError: no object
                raise ValueError(f"{name}: eos_token_id cannot be read: {error}") from error
    return tokenizer, tuple(sorted(stops))
