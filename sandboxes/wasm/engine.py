"""wasmtime's configuration, the same for compiling and running: a precompiled module loads only under its own."""

from __future__ import annotations

import wasmtime

MAX_WASM_STACK_BYTES = 1024 * 1024
CONFIG_VERSION = 2
"""Part of every cache key; raise it with any change of ``engine``."""


def engine(*, fuel: bool) -> wasmtime.Engine:
    """An engine with epochs, one linear memory and only the proposals our images use."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.consume_fuel = fuel
    config.max_wasm_stack = MAX_WASM_STACK_BYTES
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_tail_call = False
    config.wasm_relaxed_simd = False
    config.wasm_stack_switching = False
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_component_model = False
    return wasmtime.Engine(config)
