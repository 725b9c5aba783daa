"""A small resampler that really looks, examples that it looks at, and features in which the answer is planted."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from seewhere.probing.tasks import Example, Task
from torch import nn

WIDTH, QUERIES, GRID = 16, 4, 8


class TinyResampler(nn.Module):
    """Queries that attend to patches and words: layers "early" and "late". The patch encoder is frozen."""

    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.patch = nn.Linear(5, WIDTH)
        self.patch.requires_grad_(False)
        self.words = nn.Embedding(64, WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.blocks = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, dropout, batch_first=True) for _ in range(2))
        self.unused = nn.Linear(WIDTH, 1)  # as the heads of a pre-training are

    def run(self, patches, texts):
        rows = [[zlib.crc32(w.encode()) % 64 for w in text.split()[:8]] for text in texts]
        words = torch.stack([self.words(torch.tensor(row or [0])).mean(0) for row in rows])
        found, states = self.queries + words[:, None], []
        for block in self.blocks:
            found = found + block(found, patches, patches, need_weights=False)[0]
            states.append(found)
        return states


class Tiny:
    layers = ("early", "late")

    def __init__(self, seed=0, dropout=0.0, name="tiny"):
        self.name, self.module = name, TinyResampler(seed, dropout)
        self.module.eval()
        digest = hashlib.sha256()
        for value in self.module.state_dict().values():
            digest.update(value.numpy().tobytes())
        self.weights_hash = digest.hexdigest()
        self.looks = 0

    def _patches(self, images):
        self.looks += len(images)
        pixels = (
            np.stack([np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX)) for image in images]) / 64 - 3.2
        )  # strong contrasts: it has few steps to learn in
        places = np.stack(np.meshgrid(np.linspace(-2, 2, GRID), np.linspace(-2, 2, GRID)), -1)
        both = np.concatenate([pixels, np.broadcast_to(places, (len(images), GRID, GRID, 2))], -1)
        return self.module.patch(torch.from_numpy(both.astype(np.float32)).flatten(1, 2))

    @torch.no_grad()
    def features(self, images, texts, layers=None):
        states = dict(zip(self.layers, self.module.run(self._patches(images), texts), strict=True))
        return {layer: states[layer].numpy() for layer in layers or self.layers[-1:]}

    def forward(self, images, texts):
        return self.module.run(self._patches(images), texts)[-1]


class TinyEncoded(Tiny):
    """The same, with its frozen encoder's tokens apart."""

    @torch.no_grad()
    def encode(self, images):
        return self._patches(images).numpy()

    def forward_encoded(self, encoded, texts):
        return self.module.run(encoded, texts)[-1]

    @torch.no_grad()
    def features_encoded(self, encoded, texts, layers=None):
        found = self.module.run(torch.from_numpy(np.asarray(encoded, dtype=np.float32)), texts)
        states = dict(zip(self.layers, found, strict=True))
        return {layer: states[layer].numpy() for layer in layers or self.layers[-1:]}


class Drawn:
    """A picture file."""

    def __init__(self, path):
        self.path = Path(path)

    def open(self):
        return Image.open(self.path).convert("RGB")


SUPERS = ("animal", "vehicle", "food", "person")


def write_picture(path, x, y, side=10, colour=(220, 30, 30), size=(48, 48)):
    picture = Image.new("RGB", size, (200, 210, 200))
    picture.paste(colour, (x, y, x + side, y + side))
    picture.save(path)
    return Drawn(path)


def make_task(folder, kind="binary", counts=(48, 16, 24), seed=0):
    """Is the red square on the left (binary), or where is it (box)?"""
    random = np.random.default_rng(seed)
    splits, number = {}, 0
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in zip(("train", "validation", "test"), counts, strict=True):
        examples = []
        for _ in range(count):
            x, y = (int(v) for v in random.integers(0, 38, 2))
            picture = write_picture(folder / f"{number}.png", x, y)
            left = x + 5 < 24
            says = bool(random.integers(2))
            text = f"the red square is on the {'left' if says else 'right'}"
            box = ((x + 5) / 48, (y + 5) / 48, 10 / 48, 10 / 48)
            meta = {
                "super_category": SUPERS[number % 4], "category": ("Topological", "Directional")[number % 2],
                "area": 0.01 * (1 + number % 4), "distance": abs(x - 19) / 19, "label": "square",
            }  # fmt: skip
            target = box if kind == "box" else (float(left == says),)
            examples.append(Example(number, picture, str(number), text if kind == "binary" else "red", target, meta))
            number += 1
        splits[split] = examples
    return Task("rec" if kind == "box" else "vsr", kind, "drawn", splits)


def planted_boxes(count, tokens=4, width=8, noise=0.0, seed=0):
    """Features (count, tokens, width) in which four directions hold the box in logits; targets (count, 4)."""
    random = np.random.default_rng(seed)
    sides = random.uniform(0.1, 0.4, (count, 2))
    middles = random.uniform(0.2, 0.8, (count, 2))
    target = np.concatenate([middles, sides], 1)
    code = np.linalg.qr(np.random.default_rng(99).normal(size=(tokens * width, tokens * width)))[0][:4]
    values = np.log(target / (1 - target))
    features = random.normal(size=(count, tokens * width))
    features -= features @ code.T @ code  # nothing else lies in these four directions
    features += values @ code + noise * random.normal(size=features.shape)
    return features.reshape(count, tokens, width).astype(np.float32), target.astype(np.float32), code


def remove(features, code):
    """The same features without the planted directions."""
    flat = features.reshape(len(features), -1)
    return (flat - flat @ code.T @ code).reshape(features.shape).astype(np.float32)
