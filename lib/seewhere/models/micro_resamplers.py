"""The other micro resamplers: an instruction-aware Q-Former, and a Perceiver resampler that sees no text.

Both stand between the frozen micro-CLIP and a causal language model, as in InstructBLIP (Dai et al. 2023) and in
Flamingo (Alayrac et al. 2022), and are trained through it: the language model reads their tokens, projected to its
width, then an instruction, and its loss on the answer is all there is. The classes are transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Idefics2PerceiverConfig, InstructBlipQFormerConfig, InstructBlipQFormerModel, PreTrainedModel
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings, qformer_config

IGNORED = -100


class MicroInstruct(nn.Module):
    """A Q-Former that reads the instruction beside its queries (`InstructBlipQFormerModel`)."""

    def __init__(self, settings: QFormerSettings) -> None:
        super().__init__()
        self.settings = settings
        shared = qformer_config(settings).to_dict()
        names = InstructBlipQFormerConfig().to_dict().keys() & shared.keys()
        config = InstructBlipQFormerConfig(**{n: shared[n] for n in names - {"model_type", "architectures"}})
        self.query_tokens = nn.Parameter(torch.randn(1, settings.queries, settings.width) * 0.02)
        self.qformer = InstructBlipQFormerModel._from_config(config, attn_implementation="eager")

    def start_from(self, blip2: MicroBlip2) -> None:
        """Take over the Q-Former, queries and text embeddings of stage 1, as InstructBLIP starts from BLIP-2.

        Raises:
            ValueError: the two have different shapes.
        """
        if blip2.settings != self.settings:
            raise ValueError(f"expected a Q-Former of {self.settings}; got one of {blip2.settings}")
        state = {f"embeddings.{n}": v for n, v in blip2.embeddings.state_dict().items()}
        for name, value in blip2.qformer.state_dict().items():
            state[f"embeddings.{name}" if name.startswith("layernorm") else name] = value
        self.qformer.load_state_dict(state)
        self.query_tokens.data.copy_(blip2.query_tokens.data)

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.settings.width

    def resample(self, image_tokens: Tensor, ids: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Return the query tokens (B, queries, width) before and after every layer; the text follows the queries."""
        queries = self.query_tokens.expand(len(ids), -1, -1)
        seen = torch.ones(queries.shape[:2], dtype=text_mask.dtype, device=text_mask.device)
        output = self.qformer(
            input_ids=ids,
            attention_mask=torch.cat([seen, text_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=image_tokens,
            output_hidden_states=True,
        )
        return tuple(states[:, : self.settings.queries] for states in output.hidden_states)


class MicroPerceiver(nn.Module):
    """A Perceiver resampler (`Idefics2PerceiverResampler`): latents that attend to the image tokens and themselves."""

    def __init__(self, settings: QFormerSettings) -> None:
        super().__init__()
        self.settings = settings
        config = Idefics2PerceiverConfig(
            hidden_size=settings.width,
            resampler_n_latents=settings.queries,
            resampler_depth=settings.layers,
            resampler_n_heads=settings.heads,
            resampler_head_dim=settings.width // settings.heads,
            num_key_value_heads=settings.heads,
        )
        self.connector = nn.Identity() if settings.sees == settings.width else nn.Linear(settings.sees, settings.width)
        self.perceiver = Idefics2PerceiverResampler._from_config(config, attn_implementation="eager")
        # transformers starts all latents at one, where they would stay alike for ever.
        nn.init.normal_(self.perceiver.latents)

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.settings.width

    def resample(
        self, image_tokens: Tensor, ids: Tensor | None = None, text_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the latents (B, queries, width) before and after every layer, the last ones normed; text is unused."""
        found: list[Tensor] = [self.perceiver.latents[None].expand(len(image_tokens), -1, -1)]
        hooks = [layer.register_forward_hook(lambda *call: found.append(call[2])) for layer in self.perceiver.layers]
        try:
            context = self.connector(image_tokens)
            last = self.perceiver(context, torch.ones(context.shape[:2], dtype=torch.long, device=context.device))
        finally:
            for hook in hooks:
                hook.remove()
        return (*found[:-1], last)


@dataclass(frozen=True, slots=True)
class Instructions:
    """A batch of instructions and answers for the language model: ids, mask and labels (B, L), right-padded.

    Labels are `IGNORED` but on the answer and its end.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Instructions:
        """Return the same batch on a device."""
        return Instructions(self.ids.to(device), self.mask.to(device), self.labels.to(device))


def instruction_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int) -> Instructions:
    """Return a batch of token rows: each prompt followed by its answer (which ends with the end-of-text token)."""
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    length = max(map(len, rows))
    ids = torch.tensor([[*r, *[pad] * (length - len(r))] for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
    labels = ids.clone()
    for row, (prompt, whole) in enumerate(zip(prompts, rows, strict=True)):
        labels[row, : len(prompt)] = IGNORED
        labels[row, len(whole) :] = IGNORED
    return Instructions(ids, mask, labels)


class ThroughLanguage(nn.Module):
    """A resampler, a projection, and the causal language model that both are trained through.

    Args:
        resampler: gives tokens (B, queries, width).
        language: any causal language model.
        frozen: keep the language model as it is (InstructBLIP does); a fresh one has to learn.
    """

    def __init__(self, resampler: MicroInstruct | MicroPerceiver, language: PreTrainedModel, frozen: bool) -> None:
        super().__init__()
        self.resampler, self.language = resampler, language
        self.projection = nn.Linear(resampler.width, language.config.get_text_config().hidden_size)
        language.requires_grad_(not frozen)

    def answer_losses(
        self, image_tokens: Tensor, ids: Tensor, text_mask: Tensor, instructions: Instructions
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss of each answer (B,), and whether every word of it was the likeliest (B,) bool.

        Args:
            image_tokens: (B, P, sees).
            ids, text_mask: (B, T), the instruction as the resampler reads it.
            instructions: instruction and answer as the language model reads them.
        """
        tokens = self.projection(self.resampler.resample(image_tokens, ids, text_mask)[-1])
        words = self.language.get_input_embeddings()(instructions.ids)
        seen = torch.ones(tokens.shape[:2], dtype=instructions.mask.dtype, device=tokens.device)
        logits = self.language(
            inputs_embeds=torch.cat([tokens.to(words.dtype), words], dim=1),
            attention_mask=torch.cat([seen, instructions.mask], dim=1),
            use_cache=False,
        ).logits[:, tokens.shape[1] : -1]
        labels = instructions.labels[:, 1:]
        losses = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(labels)
        wrong = (logits.argmax(dim=-1) != labels) & (labels != IGNORED)
        return losses.sum(dim=1), ~wrong.any(dim=1)
