"""The layout of MiniGPT-v2: strips of four tokens, storing, and the released checkpoint's names at tiny size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_language import build_tokenizer
from seewhere.models.minigpt import MiniGPT, MiniGPTSettings, micro_minigpt
from seewhere.models.minigpt_released import LORA, eva_weights, load_released, resized_positions
from seewhere.training import add_lora
from torch import nn
from torch.nn import functional
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIDE, PATCH, WIDTH, HEADS = 56, 7, 24, 4  # 8 x 8 patches


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["<Img></Img> [reconstruct] loc: [1,2] rgb: [0,1,2]"] * 3, 600)


def tiny_llama(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocabulary, **sizes, initializer_range=0.3, eos_token_id=3, pad_token_id=0)
    return LlamaForCausalLM(config).eval()


def tiny_vision(layers: int = 2) -> Blip2VisionConfig:
    return Blip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=0.2,
    )


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_an_image_token_is_a_strip_of_four_patches(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = MiniGPT(Blip2VisionModel(tiny_vision()), tiny_llama(len(tokenizer)), tokenizer)
    assert model.tokens == 16 and model.connector.in_features == 4 * WIDTH
    patches = torch.randn(1, 64, WIDTH)
    tokens = model.connect(patches)
    strip = patches[0, 20:24].flatten()  # row 2, columns 4..7: the sixth strip
    torch.testing.assert_close(tokens[0, 5], model.connector(strip))
    assert model.image_tokens(model.pixels([picture(), picture(1)])).shape == (2, 16, 32)


def test_patches_that_do_not_split_into_strips_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="a row of 8 patches"):
        MiniGPT(Blip2VisionModel(tiny_vision()), tiny_llama(len(tokenizer)), tokenizer, MiniGPTSettings(merge=3))


def test_prompts_are_split_at_the_image(tokenizer: PreTrainedTokenizerFast) -> None:
    model = MiniGPT(Blip2VisionModel(tiny_vision()), tiny_llama(len(tokenizer)), tokenizer)
    before, after = model.split_prompts(["<Img><ImageHere></Img> one", "<Img><ImageHere></Img> two"])
    assert tokenizer.decode(before) == "<Img>"
    assert [tokenizer.decode(ids) for ids in after] == ["</Img> one", "</Img> two"]
    for broken in (["no image"], ["<ImageHere>"], ["<ImageHere> a", "b <ImageHere> c"], []):
        with pytest.raises(ValueError, match="prompts"):
            model.split_prompts(broken)
    prefix = model.prefix(torch.zeros(2, 16, 32), before)
    assert prefix.shape == (2, len(before) + 16, 32)


def test_micro_reads_what_micro_clip_reads(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = MicroClip(build_model(64, side=64, patch=8, width=64, layers=3, text_layers=1, projection=16), tokenizer)
    model = micro_minigpt(clip.eval(), tiny_llama(len(tokenizer)), tokenizer).eval()
    pixels = model.pixels([picture()])
    torch.testing.assert_close(pixels, clip.pixels([picture()]), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model.patch_tokens(pixels), clip.patch_contents(pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_written_is_read_back(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, adapted: bool) -> None:
    language: Any = tiny_llama(len(tokenizer))
    if adapted:
        language = add_lora(language, rank=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj"))
        for name, parameter in language.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    model = MiniGPT(Blip2VisionModel(tiny_vision()), language, tokenizer, name="a name").eval()
    folder = model.write(tmp_path / "model", dtype=torch.float32)
    again = MiniGPT.load(folder)
    assert again.name == "a name" and again.settings == model.settings
    pixels = model.pixels([picture()])
    with torch.no_grad():
        first, second = (
            m.language(inputs_embeds=m.prefix(m.image_tokens(pixels), [5, 6])).logits for m in (model, again)
        )
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    with pytest.raises(FileNotFoundError, match=r"minigpt\.json"):
        MiniGPT.load(tmp_path)


# ---------------------------------------------------------------------------------------- the released checkpoint


class Eva(nn.Module):
    """EVA ViT under its published names, written down from its description: biases of queries and values only."""

    def __init__(self, grid: int, layers: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid**2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList([self.block() for _ in range(layers)])

    @staticmethod
    def block() -> nn.Module:
        attention = nn.Module()
        attention.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        attention.q_bias = nn.Parameter(torch.randn(WIDTH))
        attention.v_bias = nn.Parameter(torch.randn(WIDTH))
        attention.proj = nn.Linear(WIDTH, WIDTH)
        mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 40), "fc2": nn.Linear(40, WIDTH)})
        norms = {f"norm{i}": nn.LayerNorm(WIDTH, eps=1e-6) for i in (1, 2)}
        return nn.ModuleDict({"attn": attention, "mlp": mlp, **norms})

    def forward(self, pixels: torch.Tensor, layers: int, positions: torch.Tensor) -> torch.Tensor:
        states = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.cls_token.expand(len(states), -1, -1), states], dim=1) + positions
        for block in self.blocks[:layers]:
            attention = block["attn"]
            given = block["norm1"](states)
            bias = torch.cat([attention.q_bias, torch.zeros(WIDTH), attention.v_bias])
            split = functional.linear(given, attention.qkv.weight, bias).unflatten(-1, (3, HEADS, WIDTH // HEADS))
            query, key, value = split.permute(2, 0, 3, 1, 4)
            weights = (query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
            states = states + attention.proj((weights @ value).transpose(1, 2).flatten(2))
            states = states + block["mlp"]["fc2"](functional.gelu(block["mlp"]["fc1"](block["norm2"](states))))
        return states


def released(folder: Path, tokenizer: PreTrainedTokenizerFast, grid: int = 4) -> tuple[Eva, dict[str, Any], Any]:
    """A tiny copy of the released files: EVA with one layer too many and a coarser grid, Llama, the checkpoint."""
    torch.manual_seed(2)
    eva = Eva(grid, layers=3).eval()
    torch.save(
        {**eva.state_dict(), "norm.weight": torch.ones(WIDTH), "head.weight": torch.ones(2)}, folder / "eva_vit_g.pth"
    )
    llama = tiny_llama(len(tokenizer))
    llama.save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    adapted = add_lora(llama, **{**LORA, "dropout": 0.0}).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    trained = {f"llama_model.{n}": p.detach() for n, p in adapted.named_parameters() if "lora_" in n}
    trained |= {"llama_proj.weight": torch.randn(32, 4 * WIDTH), "llama_proj.bias": torch.randn(32)}
    torch.save({"model": trained, "epoch": 3}, folder / "minigptv2_checkpoint.pth")
    return eva, trained, adapted


def test_released_files_give_the_same_tokens_and_logits(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    eva, trained, adapted = released(tmp_path, tokenizer)
    model = load_released(tmp_path, vision_config=tiny_vision(), dtype=torch.float32, device="cpu")
    pixels = model.pixels([picture()])
    with torch.no_grad():
        states = eva(pixels, layers=2, positions=resized_positions(eva.pos_embed, 8))
        states = functional.layer_norm(states, (WIDTH,), eps=1e-5)[:, 1:]
        expected = functional.linear(
            states.reshape(1, 16, 4 * WIDTH), trained["llama_proj.weight"], trained["llama_proj.bias"]
        )
        found = model.image_tokens(pixels)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        logits = model.language(inputs_embeds=found).logits
        torch.testing.assert_close(logits, adapted(inputs_embeds=expected).logits, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_with_an_adapted_encoder_and_old_names(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    _, trained, _ = released(tmp_path, tokenizer)
    other = Eva(8, layers=2).eval()
    more = {f"visual_encoder.{k}": v for k, v in other.state_dict().items()}
    more |= {"ln_vision.weight": torch.full((WIDTH,), 2.0), "ln_vision.bias": torch.ones(WIDTH)}
    old = {k.replace(".default", ""): v for k, v in trained.items()}
    torch.save({"model": {**old, **more}}, tmp_path / "stage_2.pth")
    with pytest.raises(FileNotFoundError, match="expected one checkpoint"):
        load_released(tmp_path, vision_config=tiny_vision(), device="cpu")
    model = load_released(tmp_path, "stage_2.pth", tiny_vision(), torch.float32, "cpu")
    pixels = model.pixels([picture()])
    with torch.no_grad():
        states = functional.layer_norm(other(pixels, 2, other.pos_embed), (WIDTH,), eps=1e-5) * 2 + 1
        torch.testing.assert_close(model.patch_tokens(pixels), states[:, 1:], atol=1e-4, rtol=1e-4)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    _, trained, _ = released(tmp_path, tokenizer)
    del trained["llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    torch.save({"model": trained}, tmp_path / "minigptv2_checkpoint.pth")
    with pytest.raises(ValueError, match=r"1 of 8 weights do not fit, first .*lora_A"):
        load_released(tmp_path, vision_config=tiny_vision(), dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="not a part of EVA"):
        eva_weights({"layers.0.weight": torch.zeros(1)}, tiny_vision())
    (tmp_path / "eva_vit_g.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"eva_vit_g\.pth is missing"):
        load_released(tmp_path, vision_config=tiny_vision(), device="cpu")


def test_the_real_configuration_has_256_tokens_of_5632() -> None:
    config = Blip2VisionConfig(image_size=448)
    with torch.device("meta"):
        vision = Blip2VisionModel(config)
        language = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1))
        model = MiniGPT(vision, language, None)
    assert model.tokens == 256
    assert tuple(model.connector.weight.shape) == (4096, 5632)
