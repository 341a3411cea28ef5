"""A backbone for reference runs whose inputs are features."""

import torch
from dtrap.lightning_modules.backbones.base import Backbone
from torch import nn
from torch.utils.data import Dataset


class FeatureBackbone(Backbone):
    """Return the images as features, and row i of the given text features for prompt i."""

    identifier, image_size, context_length, logit_bias = "features", 1, 1, None
    image_mean = image_std = (0.0, 0.0, 0.0)
    attention_layers = tower_parameters = token_embedding = blocks = None
    image_entrance = last_norms = stages = project_image = None

    def __init__(self, texts):
        super().__init__()
        self.feature_dim = texts.shape[1]
        self.texts = nn.Parameter(texts.float())

    def encode_image(self, images):
        return images.flatten(1)

    def encode_text(self, tokens):
        return self.texts[tokens[:, 0]]

    def tokenize(self, prompts):
        return torch.arange(len(prompts))[:, None]


class EpochBatches(Dataset):
    """The batches of the current epoch, of features [E, rows, D] in the order of the file. The caller sets `epoch`."""

    def __init__(self, features, labels, size, *, drop_last):
        self.features, self.labels, self.size, self.epoch = features, labels, size, 0
        whole, rest = divmod(features.shape[1], size)
        self.count = whole + (rest > 0 and not drop_last)

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        rows = slice(number * self.size, (number + 1) * self.size)
        return {"images": self.features[self.epoch, rows], "labels": self.labels[self.epoch, rows]}
