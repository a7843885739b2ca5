"""The compute buffer of a graph of tensors, as ggml's graph allocator lays it out.

Source: ggml/src/ggml-alloc.c and the order of nodes in ggml/src/ggml.c. The recipe:

1. Nodes follow the order in which a graph is expanded: sources first, from left to right.
2. Every leaf gets memory before the first node. A node takes over the memory of a source that nothing
   else needs, if its operation can work in place on the same layout; otherwise it takes the tightest
   free block.
3. A tensor's memory is free once its last reader is done. Views own nothing and keep their tensor.

The buffer's size is the highest address that was ever in use. Sizes are bytes.
"""

from collections.abc import Sequence
from math import prod
from typing import Final

F32: Final = 4
F16: Final = 2
I32: Final = 4
I64: Final = 8
"""Bytes of one number."""

IN_PLACE: Final = frozenset({"add", "clamp", "div", "fill", "mul", "rms_norm", "rope", "scale",
                             "soft_max", "unary"})  # fmt: skip
"""Operations that may overwrite a source (`ggml_op_can_inplace`)."""

_ALIGNMENT: Final = 32  # of a CPU buffer (TENSOR_ALIGNMENT)
_ENDLESS: Final = 1 << 62


class Node:
    """A tensor of the graph: a leaf without an operation, or the result of `operation`.

    `shape` lists rows first, as ggml does. `view_of` is the tensor that owns the memory; a tensor
    that is `stored` elsewhere (weights, KV cache) takes none.
    """

    __slots__ = (
        "address", "children", "is_output", "item_bytes", "operation", "owned", "shape", "sources",
        "stored", "view_of", "views",
    )  # fmt: skip

    def __init__(
        self,
        operation: str | None,
        shape: Sequence[int],
        sources: Sequence["Node"] = (),
        *,
        item_bytes: int = F32,
        view_of: "Node | None" = None,
        stored: bool = False,
    ) -> None:
        self.operation = operation
        self.shape = tuple(shape)
        self.sources = tuple(sources)
        self.item_bytes = item_bytes
        owner = view_of.view_of if view_of is not None else None
        self.view_of: Node | None = owner or view_of
        self.stored = stored
        self.is_output = False
        self.owned = False
        self.children = 0
        self.views = 0
        self.address = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes of its own memory, aligned."""
        size = prod(self.shape) * self.item_bytes
        return -(-size // _ALIGNMENT) * _ALIGNMENT


class Graph:
    """Nodes and leaves in the order in which they were added."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._leaves: list[Node] = []
        self._known: set[int] = set()

    def expand(self, node: Node) -> None:
        """Add `node` after everything that it depends on."""
        waiting: list[tuple[Node, int]] = [(node, 0)]
        while waiting:
            current, next_source = waiting.pop()
            if next_source == 0:
                if id(current) in self._known:
                    continue
                self._known.add(id(current))
            if next_source < len(current.sources):
                waiting.append((current, next_source + 1))
                source = current.sources[next_source]
                if id(source) not in self._known:
                    waiting.append((source, 0))
            elif current.operation is None:
                self._leaves.append(current)
            else:
                self._nodes.append(current)

    def buffer_bytes(self) -> int:
        """Size of the buffer that holds every tensor of the graph while it is needed."""
        memory = _Memory()
        for leaf in self._leaves:
            memory.reserve(leaf)
        for node in self._nodes:
            if node.view_of is not None:
                node.view_of.views += 1
            for source in node.sources:
                source.children += 1
        for node in self._nodes:
            memory.reserve(node)
            for source in node.sources:
                source.children -= 1
                if source.children or source.views:
                    continue
                owner = source.view_of
                if owner is not None:
                    owner.views -= 1
                    if not owner.views and not owner.children and owner.owned:
                        memory.release(owner)
                elif source.owned:
                    memory.release(source)
        return memory.highest


class _Memory:
    """Free blocks by address, the last one endless."""

    def __init__(self) -> None:
        self._starts = [0]
        self._sizes = [_ENDLESS]
        self.highest = 0

    def reserve(self, node: Node) -> None:
        """Give `node` its memory, unless it is a view or stored elsewhere."""
        if node.owned or node.view_of is not None or node.stored:
            return
        node.owned = True
        if node.operation in IN_PLACE:
            for source in node.sources:
                if (
                    source.owned
                    and not source.is_output
                    and source.children == 1
                    and source.views == 0
                    and source.shape == node.shape
                    and source.item_bytes == node.item_bytes
                ):
                    node.address = source.address
                    source.owned = False
                    return
        node.address = self._take(node.reserved_bytes)

    def release(self, node: Node) -> None:
        """Free the memory of `node`; outputs keep theirs."""
        if node.is_output:
            return
        node.owned = False
        starts, sizes = self._starts, self._sizes
        start, size = node.address, node.reserved_bytes
        position = 0
        while position < len(starts) and starts[position] < start:
            position += 1
        if position and starts[position - 1] + sizes[position - 1] == start:
            position -= 1
            sizes[position] += size
        elif position < len(starts) and start + size == starts[position]:
            starts[position] = start
            sizes[position] += size
        else:
            starts.insert(position, start)
            sizes.insert(position, size)
        following = position + 1
        if following < len(starts) and starts[position] + sizes[position] == starts[following]:
            sizes[position] += sizes.pop(following)
            starts.pop(following)

    def _take(self, size: int) -> int:
        starts, sizes = self._starts, self._sizes
        best = len(sizes) - 1
        tightest = _ENDLESS
        for position in range(len(sizes) - 1):
            if size <= sizes[position] <= tightest:
                best, tightest = position, sizes[position]
        start = starts[best]
        starts[best] += size
        sizes[best] -= size
        if not sizes[best]:
            starts.pop(best)
            sizes.pop(best)
        self.highest = max(self.highest, start + size)
        return start
