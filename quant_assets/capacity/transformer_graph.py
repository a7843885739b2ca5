"""The graph that llama.cpp reserves for the largest micro-batch of a transformer.

Source: src/llama-graph.cpp, src/llama-kv-cache.cpp and the graphs of src/models/ in llama.cpp. Only
what decides memory is modelled: additions of a bias, scales and soft caps work in place and are left
out. A family that `models/graph_traits.py` does not know counts as Llama's, with the tensors that its
files name.
"""

from math import prod
from typing import NamedTuple

from quant_assets.capacity.graph_allocator import F16, F32, I32, I64, Graph, Node
from quant_assets.formats.ggml_types import ggml_type
from quant_assets.models.graph_traits import LayerKind
from quant_assets.models.inspection import ModelShape

_ROTATION = 64
"""Rows of the smallest Hadamard rotation, which a quantized cache is stored under."""
_EXPERTS_SUMMED = 3
"""From the third on, the sum of the experts' outputs takes the place of the one before it."""


class GraphSize(NamedTuple):
    """What the memory of a graph depends on beside the model.

    `tokens` of all `streams` (sequences) are computed at once, each against the `cells` of its
    cache: those of a layer without and of one with a sliding window. `kv_type_k` and `kv_type_v` are
    the types of the cache.
    """

    tokens: int
    streams: int
    cells: tuple[int, int]
    kv_type_k: str
    kv_type_v: str
    flash_attention: bool


def transformer_buffer_bytes(shape: ModelShape, size: GraphSize) -> int:
    """Bytes of the compute buffer of `shape`."""
    return _TransformerGraph(shape, size).buffer_bytes()


class _TransformerGraph:
    def __init__(self, shape: ModelShape, size: GraphSize) -> None:
        self._shape = shape
        self._streams = size.streams
        # The reservation rounds the micro-batch up to whole sequences, its outputs are not rounded.
        self._outputs = size.tokens
        self._tokens = -(-size.tokens // size.streams) * size.streams
        self._flash_attention = size.flash_attention
        self._cells = size.cells
        self._kv_types = (ggml_type(size.kv_type_k), ggml_type(size.kv_type_v))
        self._graph = Graph()
        self._positions = Node(None, (self._tokens,), item_bytes=I32)
        self._output_rows = Node(None, (self._outputs,), item_bytes=I32)
        self._inputs = (self._cache_inputs(False), self._cache_inputs(True))

    def buffer_bytes(self) -> int:
        """Bytes of the compute buffer."""
        hidden = self._embeddings()
        for layer in range(self._shape.n_layers):
            hidden = self._layer(hidden, layer, last=layer == self._shape.n_layers - 1)
        normed = self._norm(hidden)
        normed.is_output = True
        logits = self._matrix(self._shape.vocab_size, normed)
        logits.is_output = True
        self._graph.expand(logits)
        return self._graph.buffer_bytes()

    # Inputs

    def _embeddings(self) -> Node:
        tokens = Node(None, (self._tokens,), item_bytes=I32)
        rows = Node("get_rows", (self._shape.hidden_size, self._tokens), (tokens,))
        self._graph.expand(rows)
        # Embeddings that a caller may hand over instead of tokens.
        self._graph.expand(Node(None, (self._shape.hidden_size, self._tokens)))
        return rows

    def _cache_inputs(self, slides: bool) -> "_CacheInputs":
        shape, tokens = self._shape, self._tokens
        cells = self._cells[slides]
        widest = max(
            shape.kv_heads(layer) * shape.head_dims(layer)[1] for layer in range(shape.n_layers)
        )
        return _CacheInputs(
            key_rows=Node(None, (tokens,), item_bytes=I64),
            value_rows=Node(
                None, (tokens * (1 if self._flash_attention else widest),), item_bytes=I64
            ),
            mask=Node(
                None,
                (cells, tokens // self._streams, 1, self._streams),
                item_bytes=F16 if self._flash_attention else F32,
            ),
            key_rotation=self._rotation(0, slides),
            value_rotation=self._rotation(1, slides),
        )

    def _rotation(self, part: int, slides: bool) -> Node | None:
        """The matrix that K (part 0) or V (part 1) is rotated with, if its type is quantized.

        The cache of V takes the smallest rotation, that of K the largest that divides its heads.
        """
        shape = self._shape
        sizes = {
            shape.head_dims(layer)[part]
            for layer in range(shape.n_layers)
            if shape.layer_slides(layer) == slides and shape.kv_heads(layer)
        }
        first = shape.head_dims(0)[part]
        if (
            self._kv_types[part].block_size == 1
            or len(sizes) != 1
            or not first
            or first % _ROTATION
            or shape.graph.latent is not None
        ):
            return None
        rows, (size,) = _ROTATION, sizes
        if part == 0:
            while size % (2 * rows) == 0:
                rows *= 2
        return Node(None, (rows, rows))

    # Layers

    def _layer(self, hidden: Node, layer: int, *, last: bool) -> Node:
        shape = self._shape
        traits = shape.graph
        normed = self._norm(hidden) if not traits.post_norms_only else hidden
        latent = traits.latent
        attended = (
            self._latent_attention(normed, layer)
            if latent is not None
            else self._attention(normed, layer)
        )
        skipped = hidden
        if last:
            attended, skipped = self._selected(attended), self._selected(hidden)
            if traits.parallel_blocks:
                normed = self._selected(normed)
        if traits.parallel_blocks:
            forward = self._feed_forward(normed, layer)
            return _added(_added(forward, skipped), attended)
        if traits.post_norms:
            attended = self._norm(attended)
        inner = _added(attended, skipped)
        forward = self._feed_forward(inner if traits.post_norms_only else self._norm(inner), layer)
        if traits.post_norms:
            forward = self._norm(forward)
        return _added(inner, forward) if traits.residual_first else _added(forward, inner)

    def _selected(self, node: Node) -> Node:
        return Node("get_rows", (node.shape[0], self._outputs), (node, self._output_rows))

    def _norm(self, node: Node) -> Node:
        operation = "norm" if self._shape.graph.centred_norms else "rms_norm"
        normed = Node(operation, node.shape, (node,))
        return Node("mul", node.shape, (normed,))

    def _matrix(self, rows: int, node: Node) -> Node:
        """`node` times a matrix of weights."""
        return Node("mul_mat", (rows, *node.shape[1:]), (node,))

    def _rope(self, node: Node) -> Node:
        return Node("rope", node.shape, (node, self._positions))

    # Attention

    def _attention(self, normed: Node, layer: int) -> Node:
        shape, tokens = self._shape, self._tokens
        dim_k, dim_v = shape.head_dims(layer)
        dim_v = dim_v or dim_k  # latent attention whose parts are unknown
        heads, kv_heads = shape.n_heads, shape.kv_heads(layer)
        parts = ((dim_k, heads), (dim_k, kv_heads), (dim_v, kv_heads))
        traits = shape.graph
        if traits.fused_qkv:
            together = self._matrix(sum(prod(part) for part in parts), normed)
            query, key, value = (_view(together, (*part, tokens)) for part in parts)
        else:
            flat = [self._matrix(prod(part), normed) for part in parts]
            if traits.query_key_norms == "flat":
                flat[:2] = [self._norm(node) for node in flat[:2]]
            query, key, value = (
                _view(node, (*part, tokens)) for node, part in zip(flat, parts, strict=True)
            )
        if traits.query_key_norms == "heads":
            query, key = self._norm(query), self._norm(key)
        if traits.ropes(layer, slides=shape.layer_slides(layer) or not shape.slides):
            query, key = self._rope(query), self._rope(key)
        return self._matrix(shape.hidden_size, self._cached(query, key, value, layer))

    def _cached(self, query: Node, key: Node, value: Node, layer: int) -> Node:
        """Attention over the cache, after K and V are stored in it."""
        slides = self._shape.layer_slides(layer)
        inputs = self._inputs[slides]
        if inputs.key_rotation is not None:
            query = _rotated(query, inputs.key_rotation)
            key = _rotated(key, inputs.key_rotation)
        if inputs.value_rotation is not None:
            value = _rotated(value, inputs.value_rotation)
        # Without sliding windows V precedes K.
        order = (query, key, value) if self._shape.slides else (query, value, key)
        for node in order:
            self._graph.expand(node)
        self._graph.expand(_stored(key, inputs.key_rows))
        if self._flash_attention or _is_contiguous(value):
            self._graph.expand(_stored(value, inputs.value_rows))
        else:
            copy = Node("cont", (value.shape[0] * value.shape[1], self._tokens), (value,))
            self._graph.expand(_stored(copy, inputs.value_rows))
        attended = self._mixed(query, key, value, layer)
        if inputs.value_rotation is not None:
            attended = _rotated(attended, inputs.value_rotation)
        return attended

    def _mixed(self, query: Node, key: Node, value: Node, layer: int) -> Node:
        """Values weighted by attention: softmax(Q K) V, flat; `key` and `value` are a token's."""
        slides = self._shape.layer_slides(layer)
        cells, mask = self._cells[slides], self._inputs[slides].mask
        dim_v = value.shape[0]
        dim, heads, tokens = query.shape
        latent = self._shape.graph.latent
        per_stream = tokens // self._streams
        split = _view(query, (dim, heads, per_stream, self._streams))
        split = _view(split, (dim, per_stream, heads, self._streams))
        if self._flash_attention:
            # The kernel takes a cache in F32 as a copy in F16.
            copies = [
                Node("cast", (*node.shape[:2], cells, self._streams), item_bytes=F16)
                for node, kind in zip((key, value), self._kv_types, strict=True)
                if kind.name == "F32"
            ]
            shape = (dim_v, heads, per_stream, self._streams)
            result = Node("flash_attention", shape, (split, *copies, mask))
            if latent is not None:
                swapped = _view(result, (dim_v, per_stream, heads, self._streams))
                result = self._matrix(latent.value_dim, swapped)
                result = _view(result, (latent.value_dim, heads, per_stream, self._streams))
                result = Node("cont", result.shape, (result,))
            result = _view(result, (prod(result.shape[:2]), tokens))
        else:
            scores = Node("mul_mat", (cells, per_stream, heads, self._streams), (split,))
            weights = Node("soft_max", scores.shape, (scores, mask))
            sources = [weights]
            if latent is not None:
                # V is a view of the rows of K and is transposed for the product.
                column = self._kv_types[0].row_bytes(cells)
                copy = Node("cont", (column * latent.rank * self._streams,), item_bytes=1)
                sources.insert(0, copy)
            result = Node("mul_mat", (dim_v, per_stream, heads, self._streams), sources)
            if latent is not None:
                result = self._matrix(latent.value_dim, result)
            swapped = _view(result, (result.shape[0], heads, per_stream, self._streams))
            result = Node("cont", (result.shape[0] * heads, tokens), (swapped,))
        self._graph.expand(result)
        return result

    def _latent_attention(self, normed: Node, layer: int) -> Node:
        """Multi-head latent attention: one compressed row per token, of which V is a part."""
        shape, tokens, latent = self._shape, self._tokens, self._shape.graph.latent
        assert latent is not None
        heads, rope, plain = shape.n_heads, latent.rope_dim, latent.plain_dim
        query = normed
        if latent.query_rank:
            query = self._norm(self._matrix(latent.query_rank, query))
        query = _view(self._matrix(heads * (plain + rope), query), (plain + rope, heads, tokens))
        compressed = self._matrix(latent.rank + rope, normed)
        row = _view(compressed, (latent.rank, tokens))
        key_rope = self._rope(_view(compressed, (rope, 1, tokens)))
        row = self._norm(row)
        query_rope = self._rope(_view(query, (rope, heads, tokens)))
        absorbed = self._matrix(latent.rank, _view(query, (plain, tokens, heads)))
        absorbed = _view(absorbed, (latent.rank, heads, tokens))
        width = latent.rank + rope
        query = Node("concat", (width, heads, tokens), (absorbed, query_rope))
        value = _view(row, (latent.rank, 1, tokens))
        key = Node("concat", (width, 1, tokens), (value, key_rope))
        for node in (query, value, key):
            self._graph.expand(node)
        rows = self._inputs[shape.layer_slides(layer)].key_rows
        self._graph.expand(_stored(key, rows))
        return self._matrix(shape.hidden_size, self._mixed(query, key, value, layer))

    # Feed-forward

    def _feed_forward(self, node: Node, layer: int) -> Node:
        kind = self._shape.layer_kind(layer)
        if kind == LayerKind.DENSE:
            return self._dense(node, self._shape.intermediate_size)
        mixed = self._experts(node)
        traits = self._shape.graph
        if not traits.shared_width:
            return mixed
        shared = self._dense(node, traits.shared_width)
        if traits.gated_shared_experts:
            score = self._matrix(1, node)
            gate = Node("div", score.shape, (Node("unary", score.shape, (score,)), score))
            shared = Node("mul", shared.shape, (shared, gate))
        return _added(mixed, shared)

    def _dense(self, node: Node, width: int) -> Node:
        if self._shape.graph.feed_forward == "fused":
            both = self._matrix(2 * width, node)
            inner = Node("glu", (width, *both.shape[1:]), (both,))
        elif self._shape.graph.feed_forward == "plain":
            up = self._matrix(width, node)
            inner = Node("unary", up.shape, (up,))
        else:
            up = self._matrix(width, node)
            gate = self._matrix(width, node)
            inner = Node("glu", up.shape, (gate, up))
        return self._matrix(node.shape[0], inner)

    def _experts(self, node: Node) -> Node:
        shape = self._shape
        traits = shape.graph
        width, tokens = node.shape
        used = max(1, shape.n_experts_used)
        inner_width = traits.expert_width or shape.intermediate_size
        logits = self._matrix(shape.n_experts, node)
        probabilities = Node(
            "soft_max" if not traits.sigmoid_gate else "unary", logits.shape, (logits,)
        )
        selection = probabilities
        if traits.biased_selection:
            selection = Node("add", probabilities.shape, (probabilities,))
        if traits.expert_groups > 1:
            selection = self._groups(selection)
        order = Node("argsort", selection.shape, (selection,), item_bytes=I32)
        chosen = _view(order, (used, tokens))
        weights = Node(
            "get_rows",
            (1, used, tokens),
            (_view(probabilities, (1, shape.n_experts, tokens)), chosen),
        )
        if traits.normed_expert_weights:
            flat = _view(weights, (used, tokens))
            total = Node("sum_rows", (1, tokens), (flat,))
            total = Node("clamp", total.shape, (total,))
            weights = _view(Node("div", flat.shape, (flat, total)), (1, used, tokens))
        if traits.scaled_expert_weights:
            weights = Node("scale", weights.shape, (weights,))
        self._graph.expand(weights)
        inputs = _view(node, (width, 1, tokens))
        if traits.merged_experts:
            both = Node("mul_mat_id", (2 * inner_width, used, tokens), (inputs, chosen))
            halves = (inner_width, used, tokens)
            gate, up = _view(both, halves), _view(both, halves)
        else:
            up = Node("mul_mat_id", (inner_width, used, tokens), (inputs, chosen))
            gate = Node("mul_mat_id", (inner_width, used, tokens), (inputs, chosen))
        inner = Node("glu", up.shape, (gate, up))
        experts = Node("mul_mat_id", (width, used, tokens), (inner, chosen))
        experts = Node("mul", experts.shape, (experts, weights))
        self._graph.expand(experts)
        parts = [_view(experts, (width, tokens)) for _ in range(min(used, _EXPERTS_SUMMED))]
        for part in parts:
            self._graph.expand(part)
        mixed = parts[0]
        for part in parts[1:]:
            mixed = _added(mixed, part)
            self._graph.expand(mixed)
        return mixed if used > 1 else Node("cont", (width, tokens), (mixed,))

    def _groups(self, selection: Node) -> Node:
        """The selection limited to the best groups of experts (DeepSeek-V3)."""
        traits = self._shape.graph
        experts, tokens = selection.shape
        groups, kept = traits.expert_groups, traits.expert_groups_used
        size = experts // groups
        grouped = _view(selection, (size, groups, tokens))
        best = _view(
            Node("argsort", grouped.shape, (grouped,), item_bytes=I32), (2, groups, tokens)
        )
        scores = Node(
            "get_rows", (1, 2, groups, tokens), (_view(grouped, (1, size, groups, tokens)), best)
        )
        scores = Node("sum_rows", (1, groups, tokens), (_view(scores, (2, groups, tokens)),))
        scores = _view(scores, (groups, tokens))
        ranked = Node("argsort", scores.shape, (scores,), item_bytes=I32)
        top = _view(ranked, (kept, tokens))
        rows = Node("get_rows", (size, kept, tokens), (grouped, top))
        filled = Node("fill", grouped.shape, (grouped,))
        masked = Node("set_rows", grouped.shape, (rows, top, filled), view_of=filled)
        return _view(masked, (experts, tokens))


class _CacheInputs(NamedTuple):
    """The inputs of attention over one kind of cache."""

    key_rows: Node
    value_rows: Node
    mask: Node
    key_rotation: Node | None
    value_rotation: Node | None


def _view(node: Node, shape: tuple[int, ...]) -> Node:
    return Node("view", shape, (node,), item_bytes=node.item_bytes, view_of=node)


def _added(first: Node, second: Node) -> Node:
    return Node("add", first.shape, (first, second))


def _stored(values: Node, rows: Node) -> Node:
    """Writing `values` to the cache, whose memory is its own."""
    flat = _view(values, (prod(values.shape),))
    return Node("set_rows", (1,), (flat, rows), stored=True)


def _rotated(node: Node, rotation: Node) -> Node:
    size = rotation.shape[0]
    rows = prod(node.shape) // size
    if _is_contiguous(node):
        flat = _view(node, (size, rows))
    else:
        flat = Node("cont", (size, rows), (node,))
    product = Node("mul_mat", (size, rows), (rotation, flat))
    return _view(product, node.shape)


def _is_contiguous(node: Node) -> bool:
    """Whether `node` is all of the memory that it views."""
    return node.view_of is None or prod(node.view_of.shape) == prod(node.shape)
