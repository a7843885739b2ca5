-- The raw tables: the content of the data root's files, from which they are rebuilt at any time.
-- The dbt project derives staging, intermediate and marts from them. Column names carry the units.
create schema if not exists raw;

-- A view of earlier versions, over columns that are no longer there.
drop view if exists intermediate.int_speed_calibration;

create table if not exists raw.gpus (
    canonical_name varchar not null,
    vendor varchar,
    architecture varchar,
    vram_gb double,
    memory_bandwidth_gb_s double,
    tdp_w double,
    fp16_dense_tflops double,
    int8_dense_tops double,
    compute_capability varchar,
    release_year integer
);

create table if not exists raw.models (
    model varchar not null,
    architecture varchar not null,
    n_layers integer not null,
    n_heads integer not null,
    n_kv_heads integer not null,
    head_dim_k integer not null,
    head_dim_v integer not null,
    hidden_size integer not null,
    intermediate_size integer not null,
    vocab_size integer not null,
    context_length integer,
    sliding_window integer,
    n_sliding_layers integer not null,
    n_experts integer not null,
    n_experts_used integer not null,
    n_parameters bigint not null,
    n_linear_parameters bigint not null
);

-- Memory, bytes and operations that one copy of a variant needs (quant_assets/speed/needs.py).
create table if not exists raw.serving_needs (
    model varchar not null,
    variant varchar not null,
    backend varchar not null,
    artifact_id varchar not null,
    source varchar not null,
    context_tokens integer not null,
    prompt_tokens integer not null,
    batch_size integer not null,
    weights_bytes bigint not null,
    kv_cache_bytes bigint not null,
    compute_bytes bigint not null,
    decode_bytes bigint not null,
    decode_flops bigint not null,
    prefill_bytes bigint not null,
    prefill_flops hugeint not null,
    weight_type varchar,
    n_layers integer,
    is_sparse boolean,
    decode_kv_bytes bigint,
    decode_parameters bigint,
    decode_attention_flops bigint,
    prefill_pass_tokens bigint,
    prefill_parameters bigint,
    prefill_attention_flops hugeint
);

alter table raw.serving_needs add column if not exists weight_type varchar;
alter table raw.serving_needs add column if not exists n_layers integer;
alter table raw.serving_needs add column if not exists is_sparse boolean;
alter table raw.serving_needs add column if not exists decode_kv_bytes bigint;
alter table raw.serving_needs add column if not exists decode_parameters bigint;
alter table raw.serving_needs add column if not exists decode_attention_flops bigint;
alter table raw.serving_needs add column if not exists prefill_pass_tokens bigint;
alter table raw.serving_needs add column if not exists prefill_parameters bigint;
alter table raw.serving_needs add column if not exists prefill_attention_flops hugeint;

-- What the speed model predicts for each GPU of the registry at each point of the serving grid
-- (quant_assets/warehouse/loads/speed.py), all sequences of a copy together, with 90 % intervals.
-- Prefill is null where the model needs a figure of the GPU that the registry lacks.
create table if not exists raw.speed_predictions (
    gpu varchar not null,
    model varchar not null,
    variant varchar not null,
    context_tokens integer not null,
    batch_size integer not null,
    decode_tokens_per_s double not null,
    decode_tokens_per_s_low double not null,
    decode_tokens_per_s_high double not null,
    decode_rests_on varchar not null,
    decode_runs integer not null,
    prefill_tokens_per_s double,
    prefill_tokens_per_s_low double,
    prefill_tokens_per_s_high double,
    prefill_rests_on varchar,
    prefill_runs integer
);

-- How each GPU of the registry holds a copy at each point of the serving grid
-- (quant_assets/capacity/placement.py): `gpus_per_card` GPUs on a card, each with `gpu_memory_bytes` for
-- copies; a copy spans `gpus_per_copy` of them (null: it never fits), of which the fullest holds
-- `fullest_gpu_bytes`, and a decoding step spends `transfer_s` between them.
create table if not exists raw.placements (
    gpu varchar not null,
    model varchar not null,
    variant varchar not null,
    context_tokens integer not null,
    batch_size integer not null,
    gpus_per_card integer not null,
    gpu_memory_bytes bigint not null,
    gpus_per_copy integer,
    copies_per_gpu integer not null,
    fullest_gpu_bytes bigint,
    transfer_s double
);

-- One row per measurement: perplexity and divergence, or obedience.
create table if not exists raw.variant_quality (
    model varchar not null,
    variant varchar not null,
    artifact_id varchar not null,
    kind varchar not null,
    measured_at timestamp with time zone not null,
    baseline_artifact_id varchar,
    text varchar,
    text_sha256 varchar,
    windows integer,
    context_tokens integer,
    scored_tokens integer,
    perplexity double,
    perplexity_standard_error double,
    perplexity_ratio double,
    perplexity_ratio_low double,
    perplexity_ratio_high double,
    kl_divergence double,
    kl_divergence_low double,
    kl_divergence_high double,
    kl_divergence_p99 double,
    kl_divergence_p99_low double,
    kl_divergence_p99_high double,
    top1_agreement double,
    obedience_prompts integer,
    obedience_pass_rate double,
    obedience_pass_rate_low double,
    obedience_pass_rate_high double
);

alter table raw.variant_quality add column if not exists text_sha256 varchar;
alter table raw.variant_quality add column if not exists perplexity_ratio_low double;
alter table raw.variant_quality add column if not exists perplexity_ratio_high double;
alter table raw.variant_quality add column if not exists kl_divergence_low double;
alter table raw.variant_quality add column if not exists kl_divergence_high double;
alter table raw.variant_quality add column if not exists kl_divergence_p99_low double;
alter table raw.variant_quality add column if not exists kl_divergence_p99_high double;
alter table raw.variant_quality add column if not exists obedience_pass_rate_low double;
alter table raw.variant_quality add column if not exists obedience_pass_rate_high double;

-- One row per measurement of a quantized KV cache at one context, against an F16 cache on the same
-- weights and tokens (quant_assets/bench/kv_cache.py).
create table if not exists raw.kv_cache_quality (
    model varchar not null,
    variant varchar not null,
    artifact_id varchar not null,
    cache_type_k varchar not null,
    cache_type_v varchar not null,
    context_tokens integer not null,
    measured_at timestamp with time zone not null,
    text varchar,
    text_sha256 varchar,
    windows integer,
    scored_tokens integer,
    f16_cache_perplexity double,
    perplexity double,
    perplexity_standard_error double,
    perplexity_ratio double,
    perplexity_ratio_low double,
    perplexity_ratio_high double,
    kl_divergence double,
    kl_divergence_low double,
    kl_divergence_high double,
    kl_divergence_p99 double,
    kl_divergence_p99_low double,
    kl_divergence_p99_high double,
    top1_agreement double
);

create table if not exists raw.hosts (
    cpu_name varchar,
    threads integer not null,
    triad_gb_s double not null,
    read_gb_s double not null,
    matmul_gflop_s double not null,
    contended boolean not null,
    host_id varchar,
    measured_at timestamp with time zone not null
);

alter table raw.hosts add column if not exists host_id varchar;

-- One row per offer and snapshot; a snapshot is taken when an offer or a price changed.
create table if not exists raw.listing_history (
    recorded_at timestamp with time zone not null,
    offer_id varchar not null,
    canonical_name varchar not null,
    gpu_count bigint,
    price_kind varchar,
    seller varchar,
    title varchar,
    price_usd double,
    price_per_gpu_usd double
);

create table if not exists raw.artifacts (
    job_id varchar not null,
    model varchar not null,
    format varchar not null,
    level varchar not null,
    status varchar not null,
    rejection varchar,
    source_provenance varchar,
    source_identity varchar,
    size_bytes bigint not null,
    n_parameters bigint not null,
    bits_per_weight double not null,
    perplexity double,
    generated_text varchar,
    seconds double,
    peak_rss_bytes bigint,
    path varchar,
    created_at timestamp with time zone
);

create table if not exists raw.variants (
    variant varchar not null,
    format varchar not null,
    level varchar,
    cache_type_k varchar,
    cache_type_v varchar,
    description varchar
);

create table if not exists raw.benchmark_runs (
    record_id varchar not null,
    variant varchar not null,
    format varchar,
    level varchar,
    cache_type_k varchar,
    cache_type_v varchar,
    batch_size integer not null,
    warmups integer not null,
    runs integer not null,
    timestamp timestamp with time zone not null,
    prompt_tokens integer,
    generated_tokens integer,
    model varchar not null,
    artifact_id varchar not null,
    backend varchar not null,
    device varchar,
    threads integer,
    build_flags varchar,
    cpu_name varchar,
    gpu_name varchar,
    gpu varchar,
    host_id varchar,
    p50 double,
    p50_ms double not null,
    p95 double,
    p95_ms double not null,
    p95_flagged boolean,
    mean_ms double,
    stddev_ms double,
    ttft_p50_ms double,
    ttft_p95_ms double,
    per_token_p50_ms double,
    per_token_p95_ms double,
    prefill_tokens_per_s double,
    prefill_tokens_per_s_per_sequence double,
    token_throughput double,
    decode_tokens_per_s double,
    decode_tokens_per_s_per_sequence double,
    load_time_ms double,
    command_duration_ms double,
    peak_rss bigint,
    peak_rss_bytes bigint,
    peak_vram_bytes bigint,
    kv_cache_bytes bigint,
    kv_cache_bytes_expected bigint,
    obedience_pass_rate double,
    obedience_pass_rate_low double,
    obedience_pass_rate_high double,
    obedience_prompts integer,
    perplexity double,
    perplexity_standard_error double,
    perplexity_ratio double,
    perplexity_ratio_low double,
    perplexity_ratio_high double,
    kl_divergence double,
    kl_divergence_low double,
    kl_divergence_high double,
    top1_agreement double,
    quality_text varchar,
    quality_text_sha256 varchar,
    quality_windows integer,
    quality_context_tokens integer,
    contended boolean,
    contended_reasons varchar,
    samples_file varchar,
    library_versions varchar,
    host_load_average_1m double,
    host_others_busy_cores double
);

alter table raw.benchmark_runs add column if not exists gpu varchar;
alter table raw.benchmark_runs add column if not exists perplexity_standard_error double;
alter table raw.benchmark_runs add column if not exists perplexity_ratio_low double;
alter table raw.benchmark_runs add column if not exists perplexity_ratio_high double;
alter table raw.benchmark_runs add column if not exists kl_divergence_low double;
alter table raw.benchmark_runs add column if not exists kl_divergence_high double;
alter table raw.benchmark_runs add column if not exists quality_text varchar;
alter table raw.benchmark_runs add column if not exists quality_text_sha256 varchar;
alter table raw.benchmark_runs add column if not exists quality_windows integer;
alter table raw.benchmark_runs add column if not exists quality_context_tokens integer;
alter table raw.benchmark_runs add column if not exists host_id varchar;
alter table raw.benchmark_runs add column if not exists obedience_pass_rate_low double;
alter table raw.benchmark_runs add column if not exists obedience_pass_rate_high double;
alter table raw.benchmark_runs add column if not exists command_duration_ms double;
alter table raw.benchmark_runs add column if not exists obedience_prompts integer;
alter table raw.benchmark_runs add column if not exists p50 double;
alter table raw.benchmark_runs add column if not exists p95 double;
alter table raw.benchmark_runs add column if not exists peak_rss bigint;
alter table raw.benchmark_runs add column if not exists token_throughput double;

-- Loading listings replaces these tables by the content of Parquet files; until then they are
-- empty.
create table if not exists raw.raw_listings (
    row_id varchar, source_file varchar, line_number bigint, title varchar, seller varchar,
    price_text varchar, currency varchar, url varchar
);

create table if not exists raw.quarantined_listings (
    row_id varchar, source_file varchar, line_number bigint, title varchar, reason varchar,
    explanation varchar, candidates varchar
);

create table if not exists raw.enriched_listings (
    row_id varchar, source_file varchar, line_number bigint, title varchar, seller varchar,
    url varchar, canonical_name varchar, match_type varchar, match_score double, gpu_count bigint,
    price_kind varchar, price_usd double, price_per_gpu_usd double, price_per_gb_usd double,
    collapsed_duplicates bigint, vram_gb double, memory_bandwidth_gb_s double, tdp_w bigint,
    quantization_capacity varchar
);
