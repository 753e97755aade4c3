//! The resource `otel-memory`: what allocators say of the blocks that they have chosen as samples,
//! by probes of their own (USDT). OpenTelemetry's contract: `otel_memory:alloc(ptr, size, weight)`,
//! where the weight is the bytes that the block stands for, and `otel_memory:free(ptr)`
//! (opentelemetry-ebpf-profiler, design-docs/00003-memory-profiling).

use memleak_common::probe::{ProbeRow, Resource, handle, size, success};

use super::{Role, Row, Scope, of, releases, row};

const SAMPLE: ProbeRow = of(Resource::OtelMemory, 0);
const ALLOC: ProbeRow = ProbeRow {
    handle: handle::ARG,
    handle_arg: 0,
    size: size::ARG,
    size_arg: 2,
    success: success::ALWAYS,
    ..SAMPLE
};

/// In no order that matters.
pub(super) const ROWS: &[Row] = &[
    row("otel_memory:alloc", Role::Acquire, Scope::Usdt, ALLOC),
    row("otel_memory:free", Role::Release, Scope::Usdt, releases(SAMPLE, 0)),
];
