"""The Q-Former's three masks, its objectives, and its training: who sees what, and that it can learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from seewhere.models import micro_qformer as qformer
from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings, TextBatch
from seewhere.models.micro_resamplers import IGNORED, MicroInstruct, MicroPerceiver, ThroughLanguage, instruction_batch
from seewhere.models.micro_text import CLS_ID, SEP_ID
from seewhere.models.stepwise import optimizers_for
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = QFormerSettings(vocabulary=50, sees=24, width=32, layers=2, heads=2, queries=3, projection=16)


def blip2(**changes: int) -> MicroBlip2:
    torch.manual_seed(0)
    return MicroBlip2(replace(SHAPE, **changes)).eval()


def texts(count: int = 2, length: int = 6, seed: int = 0) -> TextBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 50, (count, length), generator=generator)
    ids[:, 0] = CLS_ID
    return TextBatch(ids, torch.ones_like(ids))


def image_tokens(count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 5, SHAPE.sees, generator=torch.Generator().manual_seed(seed))


# -- who sees what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["contrast", "generate"])
def test_queries_do_not_see_the_text(kind: str) -> None:
    model, image = blip2(), image_tokens()
    first, second = (model.states(image, t.ids, t.mask, kind)[0][:, :3] for t in (texts(seed=0), texts(seed=1)))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_queries_see_the_text_when_matching() -> None:
    model, image = blip2(), image_tokens()
    first, second = (model.states(image, t.ids, t.mask, "match")[0][:, :3] for t in (texts(seed=0), texts(seed=1)))
    assert (first - second).abs().max() > 1e-3


def test_generation_leaks_nothing_from_later_words() -> None:
    model, image, read = blip2(), image_tokens(), texts()
    changed = TextBatch(read.ids.clone(), read.mask)
    changed.ids[:, 4] = (changed.ids[:, 4] + 1 - 6) % 44 + 6
    before = model.states(image, read.ids, read.mask, "generate")[0][:, 3:]
    after = model.states(image, changed.ids, changed.mask, "generate")[0][:, 3:]
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=1e-6, rtol=0)
    assert (before[:, 5] - after[:, 5]).abs().max() > 1e-4, "later words do see it"


def test_generated_words_see_the_image_and_contrasted_ones_do_not() -> None:
    model, read = blip2(), texts()
    for kind, sees in (("generate", True), ("contrast", False)):
        one, other = (model.states(image_tokens(seed=s), read.ids, read.mask, kind)[0][:, 3:] for s in (1, 2))
        assert ((one - other).abs().max() > 1e-4) == sees, kind


@pytest.mark.parametrize("kind", qformer.MASKS)
def test_padding_changes_nothing(kind: str) -> None:
    model, image, read = blip2(), image_tokens(), texts()
    padded = TextBatch(
        torch.nn.functional.pad(read.ids, (0, 4), value=9), torch.nn.functional.pad(read.mask, (0, 4), value=0)
    )
    plain = model.states(image, read.ids, read.mask, kind)[0]
    torch.testing.assert_close(plain, model.states(image, padded.ids, padded.mask, kind)[0][:, :9], atol=1e-5, rtol=0)


def test_one_pass_of_generation_gives_what_the_image_alone_would() -> None:
    model, image, read = blip2(), image_tokens(), texts()
    alone = model.qformer(
        query_embeds=model.query_tokens.expand(2, -1, -1), encoder_hidden_states=image
    ).last_hidden_state
    (joint,) = model.states(image, read.ids, read.mask, "generate")
    torch.testing.assert_close(model.embed_queries(joint), model.embed_queries(alone), atol=1e-5, rtol=0)


def test_matching_is_the_plain_two_sided_mask_of_transformers() -> None:
    model, image, read = blip2(), image_tokens(), texts()
    mask = torch.cat([torch.ones(2, 3, dtype=torch.long), read.mask], dim=1)
    embedded = model.embeddings(input_ids=read.ids, query_embeds=model.query_tokens.expand(2, -1, -1))
    plain = model.qformer(
        query_embeds=embedded, query_length=3, attention_mask=mask, encoder_hidden_states=image
    ).last_hidden_state
    torch.testing.assert_close(model.states(image, read.ids, read.mask, "match")[0], plain, atol=1e-5, rtol=0)


def test_queries_and_latents_are_not_all_alike() -> None:
    tokens = blip2().resample(image_tokens(), texts().ids, texts().mask)[-1]
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-3
    torch.manual_seed(0)
    latents = MicroPerceiver(replace(SHAPE, width=32)).resample(image_tokens())[-1]
    assert (latents[:, 0] - latents[:, 1]).abs().max() > 1e-2


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown mask"):
        qformer.attention_mask("twosided", torch.ones(1, 2), 3)


# -- objectives --------------------------------------------------------------------------------------------------


def test_hard_negatives_are_alike_and_never_the_pair_itself() -> None:
    scores = torch.tensor([[9.0, 5.0, -5.0], [1.0, 9.0, 1.0], [-9.0, 9.0, 9.0]]).repeat(1, 1)
    same = torch.eye(3, dtype=torch.bool)
    drawn = torch.stack([qformer.hard_negatives(scores, same, torch.Generator().manual_seed(s)) for s in range(200)])
    assert (drawn != torch.arange(3)).all()
    assert (drawn[:, 0] == 1).float().mean() > 0.95 and (drawn[:, 2] == 1).all()
    assert 0.3 < (drawn[:, 1] == 0).float().mean() < 0.7
    again = qformer.hard_negatives(scores, same, torch.Generator().manual_seed(7))
    assert torch.equal(again, drawn[7])


def test_similarity_is_the_best_over_queries() -> None:
    queries = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    read = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    expected = torch.stack([torch.stack([(queries[i] @ read[t]).max() for t in range(5)]) for i in range(3)])
    torch.testing.assert_close(qformer.similarities(queries, read), expected)


def test_generation_scores_only_real_words() -> None:
    model, read = blip2(), texts()
    read.mask[:, 4:] = 0
    (states,) = model.states(image_tokens(), qformer.for_generation(read.ids), read.mask, "generate")
    whole = qformer.generation_loss(model, states[:, 3:], read)
    cut = TextBatch(read.ids[:, :4], read.mask[:, :4])
    (states,) = model.states(image_tokens(), qformer.for_generation(cut.ids), cut.mask, "generate")
    torch.testing.assert_close(whole, qformer.generation_loss(model, states[:, 3:], cut))


def test_groups_of_like_length_change_no_loss() -> None:
    model, image = blip2(), image_tokens(5)
    read = texts(5, 9)
    for row, length in enumerate((9, 4, 6, 3, 9)):
        read.mask[row, length:] = 0
        read.ids[row, length:] = 0
    groups = qformer.by_length(read, 3)
    assert [part.ids.shape[1] for _, part in groups] == sorted(part.ids.shape[1] for _, part in groups)
    assert torch.equal(qformer.in_order([r for r, _ in groups], [read.mask[r] for r, _ in groups]), read.mask)
    found, loss = qformer.contrast_and_generate(model, image, read)
    (states,) = model.states(image, qformer.for_generation(read.ids), read.mask, "generate")
    torch.testing.assert_close(loss, qformer.generation_loss(model, states[:, 3:], read))
    expected = qformer.similarities(model.embed_queries(states), model.embed_texts(read.ids, read.mask))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_text_alone_knows_no_image_and_no_later_word() -> None:
    model, read = blip2(), texts()
    first = qformer.language_loss(model, TextBatch(read.ids[:, :4], read.mask[:, :4]))
    states = model.qformer(
        query_embeds=model.embeddings(input_ids=qformer.for_generation(read.ids)),
        query_length=0,
        attention_mask=qformer.attention_mask("generate", read.mask, 0),
    ).last_hidden_state
    cut = TextBatch(read.ids[:, :4], read.mask[:, :4])
    torch.testing.assert_close(first, qformer.generation_loss(model, states[:, :4], cut))


def test_stage_one_learns_a_few_images_by_heart() -> None:
    torch.manual_seed(0)
    model = MicroBlip2(SHAPE)
    image, captions, false = image_tokens(8), texts(8), texts(8, seed=5)
    optimizers = optimizers_for(model, 5e-3, 0.0)
    seen = []
    for step in range(80):
        generator = torch.Generator().manual_seed(step)
        loss, parts = qformer.stage_one_losses(model, image, captions, captions, false, generator)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen.append({name: float(value) for name, value in parts.items()})
    first, last = seen[0], {name: float(np.mean([s[name] for s in seen[-10:]])) for name in seen[0]}
    assert last["itc"] < 0.3 * first["itc"] and last["itg"] < 0.5 * first["itg"]
    assert last["in_batch"] > 0.9 and last["twisted"] > 0.9


def asked_about(image: torch.Tensor) -> dict[str, tuple[TextBatch, torch.Tensor]]:
    rows = torch.arange(len(image))
    kinds = ("true", "caption", "twisted", "hard")
    return {kind: (texts(len(image), seed=i), rows.roll(i)) for i, kind in enumerate(kinds)}


def test_the_classes_of_matching_weigh_the_same_by_default() -> None:
    torch.manual_seed(0)
    model, image = MicroBlip2(SHAPE).eval(), image_tokens(8)
    asked = asked_about(image)
    loss, right = qformer.matching_loss(model, image, asked, qformer.MATCHING_WEIGHTS)
    logits = torch.cat([model.match_logits(image[rows], read.ids, read.mask) for k, (read, rows) in asked.items()
                        if k != "caption"])  # fmt: skip
    labels = torch.tensor([1] * 8 + [0] * 16)
    expected = functional.cross_entropy(logits, labels, weight=torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(loss, expected)
    assert list(right) == ["true", "twisted", "hard"]
    said = logits.argmax(1) == labels
    torch.testing.assert_close(right["hard"], said[16:].float().mean())


def test_what_weighs_nothing_in_matching_leaves_no_gradient() -> None:
    torch.manual_seed(0)
    model, image = MicroBlip2(SHAPE).eval(), image_tokens(8)
    asked = asked_about(image)
    only, _ = qformer.matching_loss(model, image, asked, qformer.MatchingWeights(0, 1, 0, 0))
    read, rows = asked["caption"]
    logits = model.match_logits(image[rows], read.ids, read.mask)
    torch.testing.assert_close(only, functional.cross_entropy(logits, torch.ones(8, dtype=torch.long)))
    heavier, _ = qformer.matching_loss(model, image, asked, qformer.MatchingWeights(1, 3, 1, 1))
    plain, _ = qformer.matching_loss(model, image, asked, qformer.MatchingWeights(1, 1, 1, 1))
    torch.testing.assert_close(heavier * 6, plain * 4 + only * 2)


def test_several_statements_about_an_image_are_the_mean_of_each_alone() -> None:
    torch.manual_seed(0)
    model, image = MicroBlip2(SHAPE).eval(), image_tokens(4)
    for name, value in model.named_parameters():
        if "crossattention" in name and value.ndim == 2:
            value.data.mul_(20)  # a new model hardly looks at all
    true, false = [texts(4, seed=i) for i in (0, 1)], [texts(4, seed=i) for i in (2, 3)]
    weights = qformer.MatchingWeights(1, 0, 1, 0)
    both = qformer.statements(TextBatch.joined(true), TextBatch.joined(false), 4)
    loss, right = qformer.matching_loss(model, image, both, weights)
    pairs = zip(true, false, strict=True)
    apart = [qformer.matching_loss(model, image, qformer.statements(t, f, 4), weights) for t, f in pairs]
    torch.testing.assert_close(loss, (apart[0][0] + apart[1][0]) / 2)
    torch.testing.assert_close(right["true"], (apart[0][1]["true"] + apart[1][1]["true"]) / 2)
    # The images' rows matter: the same statements about other images are another loss.
    turned, _ = qformer.matching_loss(model, image.roll(1, 0), both, weights)
    assert abs((turned - loss).item()) > 1e-4


# -- through a language model ------------------------------------------------------------------------------------


def through(kind: str = "instruct", frozen: bool = False) -> ThroughLanguage:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    language = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    resampler = MicroInstruct(SHAPE) if kind == "instruct" else MicroPerceiver(SHAPE)
    return ThroughLanguage(resampler, language, frozen).eval()


def test_the_answer_s_loss_is_that_of_the_answer_s_words() -> None:
    model, image, read = through(), image_tokens(), texts()
    batch = instruction_batch([[7, 8], [9, 10, 11]], [[20, 21, SEP_ID], [22, SEP_ID]], pad=0)
    losses, _ = model.answer_losses(image, read.ids, read.mask, batch)
    tokens = model.projection(model.resampler.resample(image, read.ids, read.mask)[-1])
    words = model.language.get_input_embeddings()
    for row, (prompt, answer) in enumerate((([7, 8], [20, 21, SEP_ID]), ([9, 10, 11], [22, SEP_ID]))):
        ids = torch.tensor([prompt + answer])
        logits = model.language(inputs_embeds=torch.cat([tokens[row : row + 1], words(ids)], dim=1)).logits[0]
        start = tokens.shape[1] + len(prompt) - 1
        scores = logits[start : start + len(answer)].log_softmax(-1)
        expected = -sum(scores[k, word] for k, word in enumerate(answer))
        torch.testing.assert_close(losses[row], expected, atol=1e-4, rtol=1e-4)
    assert (batch.labels != IGNORED).sum() == 5


def test_instruct_starts_as_the_q_former_of_stage_one() -> None:
    first, instruct, image, read = blip2(), MicroInstruct(SHAPE).eval(), image_tokens(), texts()
    instruct.start_from(first)
    for ours, theirs in zip(
        instruct.resample(image, read.ids, read.mask), first.resample(image, read.ids, read.mask), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="expected a Q-Former of"):
        MicroInstruct(replace(SHAPE, queries=5)).start_from(first)
