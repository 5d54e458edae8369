// SPDX-License-Identifier: MIT
#include "cli/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "cli/console.h"

namespace mlx_flash {
namespace {

constexpr int kHistoryLines = 1000;
constexpr size_t kPasteMax = size_t{1} << 20;  // characters

// xterm's bracketed paste: the terminal marks what was pasted, so that its
// newlines do not send a line each.
constexpr const char* kPasteOn = "\x1b[?2004h";
constexpr const char* kPasteOff = "\x1b[?2004l";
constexpr std::wstring_view kPasteEnd = L"\x1b[201~";

// libedit works in characters of the locale; text here is UTF-8.
void use_utf8_locale() {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(::nl_langinfo(CODESET), "UTF-8") != 0) {
    std::setlocale(LC_CTYPE, "C.UTF-8");
  }
}

// Bytes that follow the first one of a UTF-8 character; -1: no first byte.
int continuation_bytes(unsigned char first) {
  if (first < 0x80) return 0;
  if (first >= 0xc2 && first < 0xe0) return 1;
  if (first >= 0xe0 && first < 0xf0) return 2;
  if (first >= 0xf0 && first < 0xf5) return 3;
  return -1;
}

// Bound to the mark that begins a paste: puts all of it into the line.
unsigned char insert_paste(EditLine* editor, wint_t) {
  std::wstring text;
  wchar_t character = 0;
  while (!text.ends_with(kPasteEnd) && text.size() < kPasteMax) {
    if (el_wgetc(editor, &character) != 1) return CC_EOF;
    // Terminals send the newlines of a paste as carriage returns.
    text += character == L'\r' ? L'\n' : character;
  }
  if (text.ends_with(kPasteEnd)) text.resize(text.size() - kPasteEnd.size());
  if (!text.empty()) el_winsertstr(editor, text.c_str());
  return CC_REFRESH;
}

}  // namespace

struct LineEditor::Terminal {
  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string prompt;
  std::string history_file;
  const Wait& wait;
  termios original{};

  static int read_character(EditLine* editor, wchar_t* out);

  static char* prompt_of(EditLine* editor) {
    Terminal* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return self->prompt.data();
  }

  Terminal(std::string file, const Wait& wait_for)
      : history_file(std::move(file)), wait(wait_for) {
    use_utf8_locale();
    ::tcgetattr(STDIN_FILENO, &original);
    history = history_init();
    HistEvent event;
    ::history(history, &event, H_SETSIZE, kHistoryLines);
    ::history(history, &event, H_SETUNIQUE, 1);
    if (!history_file.empty()) {
      ::history(history, &event, H_LOAD, history_file.c_str());
    }
    editor = el_init("mlx-flash", stdin, stdout, stderr);
    el_set(editor, EL_CLIENTDATA, this);
    el_set(editor, EL_PROMPT, prompt_of);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, ::history, history);
    el_set(editor, EL_GETCFN, read_character);
    el_wset(editor,
            EL_ADDFN,
            L"insert-paste",
            L"Inserts pasted text",
            insert_paste);
    el_set(editor, EL_BIND, "\\e[200~", "insert-paste", nullptr);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    el_set(editor, EL_BIND, "\\e[3~", "ed-delete-next-char", nullptr);
    el_set(editor, EL_BIND, "\\e[1;5C", "em-next-word", nullptr);
    el_set(editor, EL_BIND, "\\e[1;5D", "ed-prev-word", nullptr);
    el_source(editor, nullptr);  // the user's ~/.editrc
    // Between reads: no echo into an answer, and no line discipline that would
    // turn a Ctrl-D typed ahead into nothing.
    el_set(editor, EL_SETTY, "-x", "-echo", "-icanon", nullptr);
    write_stderr(kPasteOn);
  }

  ~Terminal() {
    write_stderr(kPasteOff);
    el_end(editor);
    ::tcsetattr(STDIN_FILENO, TCSADRAIN, &original);
    history_end(history);
  }

  // Writes beside the file and renames, so that two chats cannot leave half a
  // file; a folder that cannot be written costs the history, nothing else.
  void save() const {
    if (history_file.empty()) return;
    std::error_code error;
    std::filesystem::create_directories(
        std::filesystem::path(history_file).parent_path(), error);
    const std::string partial = history_file + "." + std::to_string(::getpid());
    HistEvent event;
    const mode_t mask =
        ::umask(077);  // what was asked is nobody else's business
    const int saved = ::history(history, &event, H_SAVE, partial.c_str());
    ::umask(mask);
    if (saved >= 0) std::filesystem::rename(partial, history_file, error);
    if (saved < 0 || error) std::filesystem::remove(partial, error);
  }
};

// Reads one character of the terminal. libedit's own reader starts again after
// a signal; this one lets Ctrl-C end the line.
int LineEditor::Terminal::read_character(EditLine* editor, wchar_t* out) {
  Terminal* self = nullptr;
  el_get(editor, EL_CLIENTDATA, &self);
  std::FILE* input = nullptr;
  el_get(editor, EL_GETFP, 0, &input);
  const int fd = ::fileno(input);
  if (!self->wait(fd)) {
    errno = EINTR;
    return -1;
  }
  unsigned char bytes[4];
  ssize_t n = ::read(fd, bytes, 1);
  if (n <= 0) return static_cast<int>(n);
  const int more = continuation_bytes(bytes[0]);
  for (int i = 1; i <= more; ++i) {
    do {
      n = ::read(fd, bytes + i, 1);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) return static_cast<int>(n);
  }
  utf8proc_int32_t point = 0xfffd;
  if (more < 0 || utf8proc_iterate(bytes, more + 1, &point) <= 0) {
    point = 0xfffd;
  }
  *out = static_cast<wchar_t>(point);
  return 1;
}

LineEditor::LineEditor(std::string history_file, Wait wait)
    : wait_(std::move(wait)) {
  if (stdin_is_terminal() && stdout_is_terminal()) {
    terminal_ = std::make_unique<Terminal>(std::move(history_file), wait_);
  }
}

LineEditor::~LineEditor() = default;

bool LineEditor::interactive() const {
  return terminal_ != nullptr;
}

LineEditor::Outcome LineEditor::read(const std::string& prompt,
                                     std::string& line) {
  if (terminal_ != nullptr) {
    terminal_->prompt = prompt;
    el_resize(terminal_->editor);
    int count = 0;
    errno = 0;
    const char* text = el_gets(terminal_->editor, &count);
    const int error = errno;
    if (text == nullptr || count <= 0) {
      if (error == EINTR) {
        el_reset(terminal_->editor);
        return Outcome::kInterrupted;
      }
      return Outcome::kEnd;
    }
    line.assign(text, static_cast<size_t>(count));
    if (line.ends_with('\n')) line.pop_back();
    return Outcome::kLine;
  }
  for (;;) {
    const size_t newline = buffer_.find('\n');
    if (newline != buffer_.npos || (ended_ && !buffer_.empty())) {
      const size_t length = std::min(newline, buffer_.size());
      line = buffer_.substr(0, length);
      buffer_.erase(0, length + 1);
      return Outcome::kLine;
    }
    if (ended_) return Outcome::kEnd;
    if (!wait_(STDIN_FILENO)) return Outcome::kInterrupted;
    char bytes[4096];
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) return Outcome::kInterrupted;
    if (n <= 0) ended_ = true;
    if (n > 0) buffer_.append(bytes, static_cast<size_t>(n));
  }
}

void LineEditor::remember(const std::string& message) {
  if (terminal_ == nullptr) return;
  HistEvent event;
  ::history(terminal_->history, &event, H_ENTER, message.c_str());
  terminal_->save();
}

}  // namespace mlx_flash
