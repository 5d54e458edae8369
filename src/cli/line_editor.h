// SPDX-License-Identifier: MIT
#pragma once

// Lines typed by a person: editing and history by libedit where stdin and
// stdout are a terminal (text pasted with newlines stays one line of input),
// plain lines otherwise. Between two reads the terminal shows nothing of what
// is typed; it waits for the next read. Thread-compatible.

#include <functional>
#include <memory>
#include <string>

namespace mlx_flash {

class LineEditor {
 public:
  enum class Outcome {
    kLine,
    kEnd,          // end of input
    kInterrupted,  // a signal came while waiting; what was typed is dropped
  };

  // Waits for input on a file descriptor; false: a signal came instead.
  using Wait = std::function<bool(int fd)>;

  // `history_file`: read now, written when a line is added; empty: none.
  LineEditor(std::string history_file, Wait wait);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // A person sits at the other end.
  bool interactive() const;

  // The next line, without its newline. The prompt is shown to people only.
  Outcome read(const std::string& prompt, std::string& line);

  // Remembers a whole message for the arrow keys.
  void remember(const std::string& message);

 private:
  struct Terminal;
  Wait wait_;
  std::unique_ptr<Terminal> terminal_;  // null where nobody types
  std::string buffer_;                  // read from stdin, not yet given out
  bool ended_ = false;
};

}  // namespace mlx_flash
