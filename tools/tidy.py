#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks the rules of the tree that no compiler checks.

  tools/tidy.py [ROOT]     prints FILE:LINE: message for each breach; exit 1

Layers, walls, sizes, the licence line, words that must not be in the tree.
The rules are the tables below; tools/tidy_test.py shows that each bites.
"""

import re
import subprocess
import sys
from pathlib import Path

# What each folder of src/ may include, itself apart. In the order of the
# layers: an edge that points down this list cannot be written by mistake
# (check_tables). mlx_flash stands for the public headers, which need nothing.
LAYERS = {
    "mlx_flash": [],
    "base": ["mlx_flash"],
    "io": ["base"],
    "kernels": ["base"],
    "text": ["base"],
    "checkpoint": ["base", "io"],
    "hub": ["base", "io"],
    "residency": ["base", "io", "checkpoint"],
    "kv": ["base", "io", "kernels", "residency"],
    "nn": ["base", "io", "kernels", "checkpoint", "residency", "kv"],
    "models": ["base", "kernels", "checkpoint", "residency", "kv", "nn"],
    "engine": ["mlx_flash", "base", "io", "kernels", "text", "checkpoint",
               "residency", "kv", "nn", "models"],
    "server": ["mlx_flash", "base", "text", "engine"],
    "cli": ["mlx_flash", "base", "io", "kernels", "text", "checkpoint", "hub",
            "residency", "engine", "server"],
}

# The door to MLX: no other folder includes it. server and cli may not even
# reach it through a header of ours.
MLX_FOLDERS = {"nn", "models", "engine"}

# A library that only some folders may know.
LIBRARY_FOLDERS = {
    "hwy/": {"kernels"},
    "liburing.h": {"io"},
    "curl/": {"hub"},
    "pcre2.h": {"text"},
    "utf8proc.h": {"text", "cli"},  # cli: widths in a terminal
    "CLI/": {"cli"},
    "histedit.h": {"cli"},
    "editline/": {"cli"},
    "httplib.h": {"server"},
}

# kernels never allocate, never block, never read a file. Tests may, and so may
# the scalar reference that they compare with (it is linked into tests only) and
# what measures them.
KERNEL_WORDS = {
    "allocates": r"\bnew\b|\b(malloc|calloc|realloc|posix_memalign|strdup|"
                 r"aligned_alloc|AllocateAligned|make_unique|make_shared)\b|"
                 r"\bstd::(vector|string|deque|list|map|set|unordered_\w+|"
                 r"function|unique_ptr|shared_ptr|any)\b",
    "blocks": r"\b(mutex|condition_variable|lock_guard|unique_lock|"
              r"scoped_lock|Mutex|MutexLock|sleep_for|usleep|nanosleep|"
              r"counting_semaphore|binary_semaphore|latch|barrier|"
              r"std::thread|std::jthread|std::future)\b",
    "reads or writes a file": r"\b(fopen|fread|fwrite|printf|fprintf|pread|"
                              r"ifstream|ofstream|fstream|mmap)\b|"
                              r"::(open|read|write)\(",
}
KERNEL_HEADERS = {"vector", "string", "map", "memory", "mutex", "thread",
                  "fstream", "iostream", "cstdio", "functional", "future",
                  "condition_variable", "deque", "list", "unordered_map"}

HEADER_LINES_MAX = 200
SOURCE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# (file, rule): why it is right there. Keep it short; split instead.
EXCEPTIONS = {}

# Written so that this file does not contain them.
BANNED = [
    (re.compile(r"(?<![\w.}])/(?:work|root|home)/"),
     "a path of one machine"),
    (re.compile(r"\b(?:FIX" r"ME|XX" r"X|HA" r"CK)\b"),
     "do it or file it"),
    (re.compile(r"^(?:<{7}|>{7}|={7})(?: |$)"), "a merge conflict"),
]

CPP_SUFFIXES = {".h", ".cpp", ".inc"}
TEXT_SUFFIXES = CPP_SUFFIXES | {".py", ".sh", ".cmake", ".md", ".txt", ".json",
                                ".supp", ".yml", ""}
SPDX_SUFFIXES = {".h", ".cpp", ".py", ".sh"}
CPP_ROOTS = {"src", "include", "tests", "bench", "fuzz", "examples", "python"}

TOKENS = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"([^()\\\s]{0,16})\(.*?\)\1"|'
    r'"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\'', re.S)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def is_test(name):
    return re.search(r"_(test|bench)(_\w+)?\.(cpp|h)$|(^|/)test(ing|_)", name)


def blank_out(text, keep_strings=False):
    """The code without comments, strings and characters; lines keep place."""
    def blank(match):
        token = match.group(0)
        if keep_strings and not token.startswith(("//", "/*")):
            return token
        filler = "" if token.startswith("/") else '""'
        return filler + "\n" * token.count("\n")
    return TOKENS.sub(blank, text)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def includes(text):
    """(line, quoted, path) of each include that is not in a comment."""
    code = blank_out(text, keep_strings=True)
    return [(line_of(code, m.start(1)), m.group(1) == '"', m.group(2))
            for m in INCLUDE.finditer(code)]


def functions(text):
    """(first line, lines, head) of each function body, roughly.

    A brace outside any function opens a scope (namespace, class, enum), an
    initialiser, or a function: told apart by the words before it.
    """
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*",
                  lambda m: "\n" * m.group(0).count("\n"), blank_out(text),
                  flags=re.M)
    found, scopes, depth, start, head = [], [], 0, 0, ""
    for m in re.finditer(r"[{};]", code):
        char, position = m.group(0), m.start()
        if depth:  # inside a function: only count braces
            depth += {"{": 1, "}": -1, ";": 0}[char]
            if depth == 0:
                first = line_of(code, start)
                found.append((first, line_of(code, position) - first + 1,
                              " ".join(head.split())))
                start = m.end()
            continue
        head_start = start + len(code[start:position]) - len(
            code[start:position].lstrip())
        head = code[start:position]
        if char == "{":
            scope = (re.match(r"\s*(?:\w+\s*:\s*)?(?:inline\s+)?"
                              r"(?:template\s*<.*?>\s*)?"
                              r"(?:namespace|class|struct|union|enum|extern|"
                              r"public|private|protected)\b", head, re.S)
                     and not re.search(r"\)[\w\s]*$", head))
            if scope:
                scopes.append(char)
            else:
                start, depth = head_start, 1
                continue
        elif char == "}" and scopes:
            scopes.pop()
        start = m.end()
    return found


class Tidy:
    def __init__(self, root, files):
        self.root = Path(root)
        self.files = files
        self.breaches = []
        self.texts = {}
        for name in files:
            try:
                self.texts[name] = (self.root / name).read_text("utf-8")
            except (UnicodeDecodeError, IsADirectoryError, FileNotFoundError):
                continue  # binary test data, links

    def report(self, name, line, rule, message):
        if (name, rule) not in EXCEPTIONS:
            self.breaches.append((name, line, f"{message} [{rule}]"))

    def run(self):
        for name, text in self.texts.items():
            path = Path(name)
            if name.startswith("testdata/"):
                continue
            if path.suffix in TEXT_SUFFIXES:
                self.check_text(name, text)
            if path.suffix in CPP_SUFFIXES and path.parts[0] in CPP_ROOTS:
                self.check_cpp(name, text)
        self.check_walls()
        return sorted(set(self.breaches))

    def check_text(self, name, text):
        lines = text.split("\n")
        if Path(name).suffix in SPDX_SUFFIXES and not any(
                "SPDX-License-Identifier: MIT" in line for line in lines[:2]):
            self.report(name, 1, "licence",
                        "the SPDX line is missing at the top")
        if text and not text.endswith("\n"):
            self.report(name, len(lines), "space", "no newline at the end")
        for number, line in enumerate(lines, 1):
            if line != line.rstrip():
                self.report(name, number, "space", "trailing space")
            for pattern, why in BANNED:
                if pattern.search(line):
                    self.report(name, number, "words", why)

    def check_cpp(self, name, text):
        count = text.count("\n")
        path = Path(name)
        if path.suffix == ".h":
            if count > HEADER_LINES_MAX and not path.stem.endswith("-inl"):
                self.report(name, 1, "size", f"{count} lines, a header has "
                            f"at most {HEADER_LINES_MAX}")
            if "#pragma once" not in text and not path.stem.endswith("-inl"):
                self.report(name, 1, "pragma", "#pragma once is missing")
        elif path.suffix == ".cpp" and count > SOURCE_LINES_MAX:
            self.report(name, 1, "size", f"{count} lines, a source has at "
                        f"most {SOURCE_LINES_MAX}")
        for line, lines, head in functions(text):
            if lines > FUNCTION_LINES_MAX:
                self.report(name, line, "function", f"{lines} lines, at most "
                            f"{FUNCTION_LINES_MAX}: {head[-60:]}")
        if path.parts[0] == "src" and len(path.parts) > 2:
            self.check_folder(name, path.parts[1], text)
        if path.parts[0] == "include":
            self.check_folder(name, "mlx_flash", text)

    def check_folder(self, name, folder, text):
        if folder not in LAYERS:
            self.report(name, 1, "layer", f"src/{folder} is in no layer: add "
                        "it to LAYERS")
            return
        for line, quoted, path in includes(text):
            head = path.split("/")[0] if "/" in path else None
            if head in LAYERS and head != folder:
                if head not in LAYERS[folder]:
                    self.report(name, line, "layer",
                                f"{folder} may not include {path}")
            elif quoted and (self.root / name).parent.joinpath(
                    path).exists():
                self.report(name, line, "layer", f"include \"{path}\" by its "
                            "full path from src/")
            if head == "mlx" and folder not in MLX_FOLDERS:
                self.report(name, line, "mlx", f"{folder} never includes MLX")
            for library, folders in LIBRARY_FOLDERS.items():
                if path.startswith(library) and folder not in folders:
                    self.report(name, line, "library", f"{path} belongs to "
                                    f"{', '.join(sorted(folders))}")
        if folder == "kernels" and not is_test(name) and not re.search(
                r"/(reference|measure)\.(h|cpp)$", name):
            self.check_kernel(name, text)

    def check_kernel(self, name, text):
        for line, _, path in includes(text):
            if path in KERNEL_HEADERS:
                self.report(name, line, "kernel", f"a kernel has no use for "
                            f"<{path}>")
        for number, line in enumerate(blank_out(text).split("\n"), 1):
            if line.lstrip().startswith("#"):
                continue
            for what, words in KERNEL_WORDS.items():
                if re.search(words, line):
                    self.report(name, number, "kernel", f"a kernel {what}")

    def check_walls(self):
        """server and cli do not reach MLX through headers of ours either."""
        edges = {}
        for name, text in self.texts.items():
            parts = Path(name).parts
            if parts[0] in ("src", "include") and len(parts) > 1:
                edges["/".join(parts[1:])] = [p for _, _, p in includes(text)]
        for start in edges:
            folder = start.split("/")[0]
            if folder in MLX_FOLDERS or folder not in LAYERS or is_test(start):
                continue
            seen, stack = {start}, [(start, start)]
            while stack:
                node, via = stack.pop()
                for target in edges.get(node, []):
                    if target.startswith("mlx/") and node != start:
                        self.report(f"src/{start}", 1, "mlx", f"{folder} "
                                    f"reaches MLX through {via}")
                    elif target in edges and target not in seen:
                        seen.add(target)
                        stack.append(
                            (target, target if node == start else via))


def check_tables():
    order = list(LAYERS)
    for folder, allowed in LAYERS.items():
        for other in allowed:
            assert order.index(other) < order.index(folder), (folder, other)


def tracked(root):
    """Files that git knows or would take; all files outside a checkout."""
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others",
             "--exclude-standard"], check=True, capture_output=True).stdout
        return sorted(set(out.decode().split("\0")) - {""})
    except (OSError, subprocess.CalledProcessError):
        return sorted(str(p.relative_to(root)) for p in Path(root).rglob("*")
                      if p.is_file() and "build" not in p.parts)


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else
                Path(__file__).resolve().parent.parent)
    check_tables()
    breaches = Tidy(root, tracked(root)).run()
    for name, line, message in breaches:
        print(f"{name}:{line}: {message}")
    print(f"tidy: {len(breaches)} breaches" if breaches else "tidy: clean",
          file=sys.stderr)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
