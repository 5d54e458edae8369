#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Plants one breach of each rule and asks that tidy.py finds exactly it."""

import tempfile
import unittest
from pathlib import Path

import tidy

SPDX = "// SPDX-License-Identifier: MIT\n"
HEADER = SPDX + "#pragma once\n"


def breaches(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        found = tidy.Tidy(folder, sorted(files)).run()
    return [(name, line, message.rsplit("[", 1)[1][:-1])
            for name, line, message in found]


def function_of(lines):
    return "int f(int x) {\n" + "  ++x;\n" * (lines - 2) + "}\n"


class TidyTest(unittest.TestCase):
    def expect(self, files, *expected):
        if isinstance(files, str):
            files = {"src/base/a.cpp": files}
        self.assertEqual(breaches(files), list(expected))

    def test_tables_only_point_up(self):
        tidy.check_tables()

    def test_clean_tree_has_no_breach(self):
        self.expect({
            "src/base/a.h": HEADER + "#include <vector>\n",
            "src/io/b.h": HEADER + '#include "base/a.h"\n',
            "src/nn/c.cpp": SPDX + '#include <mlx/mlx.h>\n'
                            '#include "io/b.h"\n' + function_of(70),
        })

    def test_upward_include_is_caught(self):
        self.expect({"src/io/a.h": HEADER + '#include "residency/plan.h"\n'},
                    ("src/io/a.h", 3, "layer"))

    def test_include_of_a_folder_that_is_not_needed_is_caught(self):
        self.expect({"src/text/a.h": HEADER + '#include "kernels/matmul.h"\n'},
                    ("src/text/a.h", 3, "layer"))

    def test_include_in_angle_brackets_is_caught_too(self):
        self.expect({"src/base/a.h": HEADER + "#include <io/file.h>\n"},
                    ("src/base/a.h", 3, "layer"))

    def test_include_in_a_comment_is_none(self):
        self.expect(SPDX + '// #include "io/file.h"\n'
                    '/*\n#include "io/file.h"\n*/\n')

    def test_neighbour_by_bare_name_is_caught(self):
        self.expect({"src/base/a.h": HEADER,
                     "src/base/a.cpp": SPDX + '#include "a.h"\n'},
                    ("src/base/a.cpp", 2, "layer"))

    def test_folder_in_no_layer_is_caught(self):
        self.expect({"src/misc/a.cpp": SPDX}, ("src/misc/a.cpp", 1, "layer"))

    def test_mlx_stays_behind_its_wall(self):
        for folder in sorted(set(tidy.LAYERS) - tidy.MLX_FOLDERS):
            if folder != "mlx_flash":
                name = f"src/{folder}/a.cpp"
                self.expect({name: SPDX + "#include <mlx/array.h>\n"},
                            (name, 2, "mlx"))
        name = "include/mlx_flash/a.h"
        self.expect({name: HEADER + "#include <mlx/array.h>\n"},
                    (name, 3, "mlx"))

    def test_server_reaching_mlx_through_a_header_is_caught(self):
        self.expect({
            "src/engine/e.h": HEADER + '#include "engine/f.h"\n',
            "src/engine/f.h": HEADER + '#include "mlx/array.h"\n',
            "src/server/s.cpp": SPDX + '#include "engine/e.h"\n',
        }, ("src/server/s.cpp", 1, "mlx"))

    def test_library_outside_its_folder_is_caught(self):
        self.expect(SPDX + "#include <liburing.h>\n",
                    ("src/base/a.cpp", 2, "library"))

    def test_kernels_that_allocate_block_or_read_are_caught(self):
        for line in ["auto* p = new float[3];", "void* p = malloc(3);",
                     "std::vector<float> v;", "std::mutex m;",
                     "auto f = fopen(path, mode);", "#include <vector>",
                     "auto p = std::make_unique<int>(3);",
                     "Mutex mutex;", "::read(fd, p, n);"]:
            with self.subTest(line):
                self.expect({"src/kernels/k.cpp": SPDX + line + "\n"},
                            ("src/kernels/k.cpp", 2, "kernel"))

    def test_kernel_tests_and_comments_may_name_them(self):
        self.expect({
            "src/kernels/k.cpp": SPDX + "// a new row; std::vector\n",
            "src/kernels/k_test.cpp": SPDX + "std::vector<float> v;\n",
            "src/kernels/k_bench.cpp": SPDX + "auto* p = new int;\n",
        })

    def test_sizes(self):
        self.expect({"src/base/a.h": HEADER + "int a;\n" * 199},
                    ("src/base/a.h", 1, "size"))
        self.expect({"src/base/a.h": HEADER + "int a;\n" * 198})
        self.expect(SPDX + "int a;\n" * 600, ("src/base/a.cpp", 1, "size"))
        self.expect(SPDX + "int a;\n" * 599)

    def test_long_function_is_caught_where_it_begins(self):
        self.expect(SPDX + "namespace a {\nstruct S {\n" + function_of(71) +
                    "};\n}\n", ("src/base/a.cpp", 4, "function"))
        self.expect(SPDX + function_of(70) + function_of(70))
        self.expect(SPDX + "TEST(A, B) {\n" + "f();\n" * 70 + "}\n",
                    ("src/base/a.cpp", 2, "function"))

    def test_braces_in_strings_and_comments_do_not_count(self):
        body = ("  s = \"}\";\n  c = '}';\n  // }\n  /* } */\n"
                "  r = R\"(}})\";\n  n = 1'000;\n")
        self.expect(SPDX + "int f() {\n" + body + "  ++x;\n" * 63 + "}\n",
                    ("src/base/a.cpp", 2, "function"))
        self.expect(SPDX + "int f() {\n" + body + "  ++x;\n" * 62 + "}\n")

    def test_long_class_is_no_function(self):
        self.expect(SPDX + "class CAPABILITY(\"m\") A : B<int(int)> {\n" +
                    "  int a_;\n" * 90 + "};\n")
        self.expect(SPDX + "#include <a>\n\nnamespace a {\n" + "int b;\n" * 90
                    + "}\n")

    def test_constructor_with_initialisers_is_a_function(self):
        self.expect(SPDX + "A::A(int b)\n    : b_{b},\n      c_(b) {\n" +
                    "  ++b_;\n" * 80 + "}\n",
                    ("src/base/a.cpp", 3, "function"))

    def test_missing_licence_line_is_caught(self):
        self.expect({"src/base/a.cpp": "int a;\n", "tools/b.py": "a = 1\n",
                     "tools/c.sh": "#!/bin/sh\n" + "# SPDX-License-"
                     "Identifier: MIT\n"},
                    ("src/base/a.cpp", 1, "licence"),
                    ("tools/b.py", 1, "licence"))

    def test_missing_pragma_once_is_caught(self):
        self.expect({"src/base/a.h": SPDX}, ("src/base/a.h", 1, "pragma"))

    def test_space_at_the_end_is_caught(self):
        self.expect(SPDX + "int a; \n", ("src/base/a.cpp", 2, "space"))
        self.expect(SPDX + "int a;", ("src/base/a.cpp", 2, "space"))

    def test_paths_of_one_machine_and_leftovers_are_caught(self):
        for line in ["/wo" "rk/x", "a=/ro" "ot/x", '"/ho' 'me/me/x"',
                     "FIX" "ME: later", "<<<" "<<<< HEAD"]:
            with self.subTest(line):
                self.expect({"docs/a.md": "# A\n" + line + "\n"},
                            ("docs/a.md", 2, "words"))
        self.expect({"docs/a.md": "~/.cache/home/x and net/work/y\n"})

    def test_exceptions_name_files_that_exist(self):
        root = Path(tidy.__file__).resolve().parent.parent
        for name, _ in tidy.EXCEPTIONS:
            self.assertTrue((root / name).is_file(), name)


if __name__ == "__main__":
    unittest.main()
