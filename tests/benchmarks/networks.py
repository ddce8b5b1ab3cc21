"""The networks that are measured, in plain torch: ResNets, a deep MLP, a transformer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["MLP", "ResNet", "Transformer", "resnet18", "resnet50"]


def resnet18(width: int = 64, classes: int = 10) -> ResNet:
    """With a stem for images of 32 x 32."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return ResNet(stem, BasicBlock, (2, 2, 2, 2), width, classes)


def resnet50(width: int = 64, classes: int = 1000) -> ResNet:
    """With the stem for images of 224 x 224."""
    stem = nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    return ResNet(stem, Bottleneck, (3, 4, 6, 3), width, classes)


class ResNet(nn.Module):
    """Its `measured` layers are the stem, every block and the classifier."""

    def __init__(
        self,
        stem: nn.Sequential,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList()
        channels = width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(block(channels, width * 2**stage, stride))
                channels = width * 2**stage * block.expansion
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.measured = ["stem", *(f"blocks.{index}" for index in range(len(self.blocks))), "classifier"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if channels == width and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class MLP(nn.Module):
    """A chain of linear layers of one width with ReLU in between; all linear layers are `measured`."""

    def __init__(self, depth: int = 48, width: int = 512, inputs: int | None = None) -> None:
        super().__init__()
        widths = [inputs or width, *[width] * depth]
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # else the signal dies on the way
        self.measured = [f"layers.{index}" for index in range(depth)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Transformer(nn.Module):
    """A pre-norm encoder over tokens with a classifier on the mean; all blocks are `measured`."""

    def __init__(
        self, depth: int = 12, width: int = 384, heads: int = 6, tokens: int = 128, vocabulary: int = 1000
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)
        self.measured = [f"blocks.{index}" for index in range(depth)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x).mean(1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        split = self.projections(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))
