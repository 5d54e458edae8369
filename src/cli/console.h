// SPDX-License-Identifier: MIT
#pragma once

// What a command says, and to whom: answers go to stdout, everything else to
// stderr. Writes go straight to the descriptor, so that a closed pipe or a
// full disk is noticed at the write that failed.
//
// Thread-compatible.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

bool stdin_is_terminal();
bool stdout_is_terminal();
bool stderr_is_terminal();

// Columns of the terminal behind stderr; 80 if there is none.
int terminal_columns();

// Writes all of it. Fails with pipe_closed() when nobody reads any more, with
// kIoError otherwise (no space left, ...).
Status write_stdout(std::string_view text);

// One JSON value and a newline. Bytes that are not UTF-8 become U+FFFD.
Status write_json_line(const Json& value);

// The reader of stdout went away: the process ends with code 1 and says
// nothing, as other tools do.
Status pipe_closed();
bool is_pipe_closed(const Status& status);

// A failure that another process has told about: it sets the exit code only.
Status already_said(StatusCode code);

// Best effort: nothing can be said when stderr fails.
void write_stderr(std::string_view text);

// "mlx-flash: error: ..." on one line of stderr, control characters escaped
// (messages quote names that come from files and flags).
void print_error(const Status& status);

// Text that may come from a file, for one line of a terminal: control
// characters as \xNN.
std::string one_line(std::string_view text);

// Decimal units, one digit: "98.4 MB", "64 MB", "1.5 GB", "912 B".
std::string format_bytes(double bytes);

// "35 ms", "0.8 s", "12 s", "3:05", "1:02:03".
std::string format_seconds(double seconds);

}  // namespace mlx_flash
