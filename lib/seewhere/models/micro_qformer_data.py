"""What the micro resamplers are trained on: the frozen eye's tokens kept on disk, and the batches of each step."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from seewhere.models.micro_clip import MicroClip
from seewhere.models.micro_qformer import TEXT_LENGTH, TextBatch
from seewhere.models.micro_resamplers import Instructions, instruction_batch
from seewhere.models.micro_text import PLACES, RELATIONS, SEP_ID, read_texts
from seewhere.models.resampling import fingerprint_of
from seewhere.models.world_pairs import Twist, WorldPairs, load_pairs, pixels_of, some_caption, twist
from seewhere.models.world_questions import question
from seewhere.storage import atomic_directory, cache_home
from seewhere.world.language import expressions
from seewhere.world.scenes import WORLD_VERSION, Scene

FULL_CAPTIONS = 0.4  # share of captions that say everything; shorter ones leave more work to each word


def frozen_tokens(
    clip: MicroClip, pairs: WorldPairs, first: int, split: str, progress: bool = True, batch_size: int = 200
) -> np.ndarray:
    """Return the eye's tokens (N, patches, width) fp16 of scenes, memory-mapped from the cache folder.

    The folder's name holds a hash of the weights, so tokens of another eye are never read.

    Args:
        clip: the frozen eye.
        pairs: the scenes; ``first`` and ``split`` say which ones they are.
        first: number of the first scene.
        split: their split.
        progress: show a bar while they are made.
        batch_size: pictures at a time.
    """
    key = f"{WORLD_VERSION}-{fingerprint_of(clip)[:16]}-{split}-{first}-{len(pairs)}-{clip.side}"
    folder = cache_home() / "micro-clip-tokens" / key
    if not folder.exists():
        with atomic_directory(folder) as partial, torch.no_grad():
            shape = (len(pairs), clip.grid**2, clip.width)
            found = np.lib.format.open_memmap(partial / "tokens.npy", mode="w+", dtype=np.float16, shape=shape)
            starts = range(0, len(pairs), batch_size)
            for start in tqdm(starts, desc=f"{split} image tokens", mininterval=2, disable=not progress):
                part = slice(start, start + batch_size)
                found[part] = clip.patch_tokens(torch.from_numpy(pixels_of(pairs.images[part]))).half().cpu().numpy()
            found.flush()
    return np.load(folder / "tokens.npy", mmap_mode="r")


class SeenScenes:
    """Scenes with the eye's tokens.

    Args:
        clip: the frozen eye.
        first, count, split: which scenes.
        progress: show bars while they are composed and looked at.
    """

    def __init__(self, clip: MicroClip, first: int, count: int, split: str = "train", progress: bool = True) -> None:
        pairs = load_pairs(first, count, clip.side, split, progress)
        self.scenes, self.tokens = pairs.scenes, frozen_tokens(clip, pairs, first, split, progress)

    def __len__(self) -> int:
        return len(self.scenes)

    def image_tokens(self, rows: np.ndarray | slice) -> Tensor:
        """Return image tokens (B, P, width) float32 of some rows."""
        return torch.from_numpy(np.asarray(self.tokens[rows], dtype=np.float32))


def read(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> TextBatch:
    """Return texts as a resampler reads them."""
    return TextBatch(*read_texts(tokenizer, texts, TEXT_LENGTH))


def stage_one_texts(
    tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene], random: Random, pairs: int = 1
) -> tuple[TextBatch, TextBatch, TextBatch]:
    """Return a caption of each scene, and ``pairs`` true and twisted statements: all scenes in turn, then again."""
    captions = [some_caption(scene, random, FULL_CAPTIONS) for scene in scenes]
    twists: list[Twist] = [twist(scene, random) for _ in range(pairs) for scene in scenes]
    return tuple(read(tokenizer, texts) for texts in (captions, [t.true for t in twists], [t.false for t in twists]))  # type: ignore[return-value]


def mere_language(scene: Scene, random: Random) -> str:
    """Return a sentence of the world's language, place words too, as text alone; it need not be true of any picture.

    It stands for what a large Q-Former knows of language from BERT before it sees its first image.
    """
    index = random.randrange(len(scene.objects))
    phrases = expressions(scene, index, random.choice(("short", "plus", "relational", "relational")), random)
    words = random.choice(phrases).text if phrases else scene.objects[index].category
    draw = random.random()
    if draw < 0.3:
        return f"{words} refers to the {random.choice(PLACES)} part of the image"
    if draw < 0.6:
        other = random.choice(scene.objects).category
        return f"the {scene.objects[index].category} is {random.choice(RELATIONS)} the {other}"
    return words


class LanguageReader:
    """How a causal language model reads an instruction and its answer.

    A tokenizer with a chat template reads the instruction as a user's turn; the world's own tokenizer as
    ``[CLS] instruction [SEP] answer [SEP]``; any other with a line break between the two.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else SEP_ID
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end

    def prompt(self, instruction: str) -> list[int]:
        """Return the tokens of an instruction."""
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": instruction}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        if self.tokenizer.eos_token_id is None:
            return list(self.tokenizer.encode(instruction))
        return list(self.tokenizer.encode(f"{instruction}\n"))

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer and the end of text."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), int(self.end)]

    def batch(self, questions: Sequence[tuple[str, str]]) -> Instructions:
        """Return (instruction, answer) pairs as a batch."""
        return instruction_batch(
            [self.prompt(q) for q, _ in questions], [self.answer(a) for _, a in questions], int(self.pad)
        )


def questions_about(scenes: Sequence[Scene], random: Random) -> list[tuple[str, str]]:
    """Return one (instruction, answer) about each scene."""
    return [question(scene, random) for scene in scenes]
