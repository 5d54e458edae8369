// SPDX-License-Identifier: MIT
#pragma once

// A fuzz target: built with libFuzzer (-DFLASH_FUZZ=ON, clang), and with
// replay_main.cpp for every test run.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Must survive any bytes, in memory in proportion to them.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Heap bytes that a run may take beside 256 for each byte of its input.
size_t fuzz_heap_bytes();

// Valid inputs that mutations start from.
std::vector<std::string> fuzz_seeds();
