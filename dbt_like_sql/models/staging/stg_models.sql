-- The shape of every model that has an artifact, one row per model.
select
    model,
    architecture,
    n_layers,
    n_heads,
    n_kv_heads,
    head_dim_k,
    head_dim_v,
    hidden_size,
    vocab_size,
    context_length,
    n_experts,
    n_experts_used,
    n_parameters,
    n_parameters / 1e9 as billion_parameters,
    n_linear_parameters
from {{ source('raw', 'models') }}
