"""An item's requests as one tree of tokens: what they share is computed once.

Requests of an item begin alike: choices share their context, and often their own first words;
winogrande's contexts share what stands before the name. Every distinct prefix is a node. A node
attends to its ancestors and itself, at the position of its depth, so that it holds exactly what the
last token of that prefix would hold in a sequence of its own. Nothing is computed twice, and one
forward pass scores an item.

Legend: B trees, T nodes of the largest tree, P nodes that predict, R targets.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from versatileffn.evaluation.tasks.requests import Item


@dataclass
class TokenTree:
    """The distinct prefixes of an item's queries, as nodes that follow their ancestors.

    Args:
        item: whose they are.
        tokens: a node's token.
        depths: a node's position in its query, from 0.
        paths: for each query, its nodes.
        chains: runs of new nodes, as (the ancestors before them, first node, end).
    """

    item: Item
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[np.ndarray] = field(default_factory=list)
    chains: list[tuple[np.ndarray, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)


def grow_tree(item: Item) -> TokenTree:
    """Merge an item's queries into a tree."""
    tree = TokenTree(item)
    children: dict[tuple[int, int], int] = {}
    for query in (request.query for request in item.requests):
        path: list[int] = []
        node = -1
        for token in query:
            known = children.get((node, token))
            if known is None:
                break
            node = known
            path.append(node)
        shared, start = len(path), len(tree)
        for depth in range(shared, len(query)):
            children[node, query[depth]] = node = len(tree)
            tree.tokens.append(query[depth])
            tree.depths.append(depth)
        nodes = np.array([*path, *range(start, len(tree))], dtype=np.int64)
        tree.paths.append(nodes)
        tree.chains.append((nodes[:shared], start, len(tree)))
    return tree


@dataclass
class Batch:
    """Trees side by side, padded to the largest.

    Args:
        input_ids_BT, position_ids_BT: tokens and their positions.
        sees_BTT: which node attends to which.
        predicting_P: flat indices (row · T + node) of the nodes that predict something.
        source_R, target_R: for each target, its place in `predicting_P`, and its token.
        counts: targets of each request, in the order of the trees.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    sees_BTT: Tensor
    predicting_P: Tensor
    source_R: Tensor
    target_R: Tensor
    counts: list[int]


def collate(trees: list[TokenTree]) -> Batch:
    """Pad trees to one batch."""
    width = max(map(len, trees))
    ids_BT = np.zeros((len(trees), width), dtype=np.int64)
    positions_BT = np.zeros_like(ids_BT)
    wanted: list[np.ndarray] = []
    targets: list[int] = []
    counts: list[int] = []
    for row, tree in enumerate(trees):
        ids_BT[row, : len(tree)] = tree.tokens
        positions_BT[row, : len(tree)] = tree.depths
        for request, path in zip(tree.item.requests, tree.paths, strict=True):
            wanted.append(row * width + path[request.first :])
            targets.extend(request.targets)
            counts.append(len(request.targets))
    predicting_P, source_R = np.unique(np.concatenate(wanted), return_inverse=True)
    return Batch(
        input_ids_BT=torch.from_numpy(ids_BT),
        position_ids_BT=torch.from_numpy(positions_BT),
        sees_BTT=torch.from_numpy(_sees(trees, width)),
        predicting_P=torch.from_numpy(predicting_P),
        source_R=torch.from_numpy(source_R),
        target_R=torch.tensor(targets, dtype=torch.int64),
        counts=counts,
    )


def _sees(trees: list[TokenTree], width: int) -> np.ndarray:
    """Each node sees its ancestors and itself; padding sees itself, so that it stays finite."""
    sees_BTT = np.zeros((len(trees), width, width), dtype=bool)
    sees_BTT[:, np.arange(width), np.arange(width)] = True
    before_TT = np.tri(width, dtype=bool)
    for row, tree in enumerate(trees):
        for ancestors, start, end in tree.chains:
            sees_BTT[row, start:end, ancestors] = True
            sees_BTT[row, start:end, start:end] = before_TT[: end - start, : end - start]
    return sees_BTT
